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

// threads returns for how long each thread of a node's agent has had work and no processor since it was started
// (sched-stats.rst).
func threads(n *lab.Node) map[string]time.Duration {
	waits := map[string]time.Duration{}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", n.Agent.PID())) // the pattern is well formed
	for _, f := range files {
		raw, _ := os.ReadFile(f) // of a thread that has ended: nothing
		if fields := strings.Fields(string(raw)); len(fields) > 1 {
			ns, _ := strconv.ParseInt(fields[1], 10, 64)
			waits[f] = time.Duration(ns)
		}
	}
	return waits
}

// waited returns for how long threads of the agents of nodes had to wait for a processor, in sum, and for how long there
// was none to have.
func waited(nodes ...*lab.Node) time.Duration {
	sum := lent()
	for _, n := range nodes {
		for _, d := range threads(n) {
			sum += d
		}
	}
	return sum
}

// A follower follows for how long agents wait for processors.
type follower struct {
	nodes []*lab.Node
	quit  chan struct{}
	work  sync.WaitGroup

	mu    sync.Mutex // guards what follows
	looks []sight
}

// A sight is what threads have waited up to a moment, for each of a follower's nodes.
type sight struct {
	at    time.Time
	lent  time.Duration
	waits []map[string]time.Duration
}

const lookEvery = 100 * time.Millisecond

// follow looks at the agents of nodes until the test ends.
func follow(t *testing.T, nodes ...*lab.Node) *follower {
	t.Helper()
	f := &follower{nodes: nodes, quit: make(chan struct{})}
	f.work.Go(func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			f.look()
			select {
			case <-f.quit:
				return
			case <-tick.C:
			}
		}
	})
	t.Cleanup(func() {
		close(f.quit)
		f.work.Wait()
	})
	return f
}

func (f *follower) look() {
	l := sight{at: time.Now(), lent: lent()}
	for _, n := range f.nodes {
		l.waits = append(l.waits, threads(n))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks = append(f.looks, l)
}

// between returns how long the thread of each agent that waited longest did so between two moments, in sum: a packet
// passes one after the other. A wait is known when it is over, so the next look but one after the end counts.
func (f *follower) between(begin, end time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	find := func(at time.Time) int {
		i, _ := slices.BinarySearchFunc(f.looks, at, func(l sight, at time.Time) int { return l.at.Compare(at) })
		return i
	}
	if len(f.looks) == 0 {
		return 0
	}
	first, last := f.looks[max(0, find(begin)-1)], f.looks[min(find(end)+1, len(f.looks)-1)]
	sum := last.lent - first.lent
	for i := range f.nodes {
		longest := time.Duration(0)
		for thread, d := range last.waits[i] {
			longest = max(longest, d-first.waits[i][thread])
		}
		sum += longest
	}
	return sum
}
