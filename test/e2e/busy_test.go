package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

// What is to happen within a time is allowed more of it on a machine whose processors are busy with other things, or
// are another machine's. On one that has time these are next to nothing, and what is promised is what is tested.

// pressed returns for how long somebody has had to wait for a processor since the machine was started
// (Documentation/accounting/psi.rst); 0 where the kernel does not say.
func pressed() time.Duration {
	raw, _ := os.ReadFile("/proc/pressure/cpu")
	some, _, _ := strings.Cut(string(raw), "\n")
	_, total, _ := strings.Cut(some, "total=")
	us, _ := strconv.ParseInt(strings.TrimSpace(total), 10, 64)
	return time.Duration(us) * time.Microsecond
}

// lent returns for how long processors were another machine's (proc_stat(5)), in sum.
func lent() time.Duration {
	raw, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(raw), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 {
		return 0
	}
	ticks, _ := strconv.ParseInt(fields[8], 10, 64)
	return time.Duration(ticks) * time.Second / 100 // USER_HZ
}

// waited returns for how long threads of the agents of nodes had work and no processor (sched-stats.rst), in sum, and
// for how long there was none to have.
func waited(nodes ...*lab.Node) time.Duration {
	sum := lent()
	for _, n := range nodes {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", n.Agent.PID())) // the pattern is well formed
		for _, f := range files {
			raw, _ := os.ReadFile(f) // a thread that has ended: nothing
			if fields := strings.Fields(string(raw)); len(fields) > 1 {
				ns, _ := strconv.ParseInt(fields[1], 10, 64)
				sum += time.Duration(ns)
			}
		}
	}
	return sum
}

// A patient follows for how long agents wait for processors.
type patient struct {
	nodes []*lab.Node
	quit  chan struct{}
	work  sync.WaitGroup

	mu    sync.Mutex // guards what follows
	looks []waits
}

// waits are those of a patient's nodes, up to a moment.
type waits struct {
	at  time.Time
	sum []time.Duration
}

const lookEvery = 100 * time.Millisecond

// follow looks at nodes until the test ends.
func follow(t *testing.T, nodes ...*lab.Node) *patient {
	t.Helper()
	p := &patient{nodes: nodes, quit: make(chan struct{})}
	p.work.Go(func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			p.look()
			select {
			case <-p.quit:
				return
			case <-tick.C:
			}
		}
	})
	t.Cleanup(func() {
		close(p.quit)
		p.work.Wait()
	})
	return p
}

func (p *patient) look() {
	w := waits{at: time.Now()}
	for _, n := range p.nodes {
		w.sum = append(w.sum, waited(n))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looks = append(p.looks, w)
}

// between returns how long the agent that had to wait longest waited between two moments. A wait is known when it is
// over, so the next look but one after the end counts.
func (p *patient) between(begin, end time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	first, _ := slices.BinarySearchFunc(p.looks, begin, func(w waits, at time.Time) int { return w.at.Compare(at) })
	last, _ := slices.BinarySearchFunc(p.looks, end, func(w waits, at time.Time) int { return w.at.Compare(at) })
	first, last = max(0, first-1), min(last+1, len(p.looks)-1)
	longest := time.Duration(0)
	for i := range p.nodes {
		longest = max(longest, p.looks[last].sum[i]-p.looks[first].sum[i])
	}
	return longest
}
