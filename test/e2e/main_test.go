// Package e2e tests whole networks: labs with real agents, the real CNI plugin and a real etcd, each a
// process of its own. Root is needed; nothing outside the labs' namespaces is touched.
//
// Environment:
//
//	WEFT_E2E_BIN            directory with weft, flanneld and flannel; default: they are built
//	WEFT_E2E_LOGS           directory where the logs of agents go when a test fails
//	WEFT_TURNS              "all": every change of the backend, instead of some
//	WEFT_TURNS_HZ           datagrams per second of each stream while the backend changes; 500
//	WEFT_UPSTREAM_FLANNELD  flanneld of the original; without it the tests of mixed clusters are skipped
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

// stale is the form of the directories below which a run of the tests puts its labs; the rest of the
// name is the process number.
const stale = "weft-e2e-"

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "SKIPPED: the end-to-end tests need root")
		if os.Getenv("CI") == "true" {
			return 1
		}
		return 0
	}
	sweep()
	dir := filepath.Join(os.TempDir(), stale+strconv.Itoa(os.Getpid()))
	defer os.RemoveAll(dir)
	if err := build(filepath.Join(dir, "bin")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := os.Setenv("WEFT_E2E_DIR", dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// build puts the binaries under test into dir.
func build(dir string) error {
	if given := os.Getenv("WEFT_E2E_BIN"); given != "" {
		abs, err := filepath.Abs(given)
		if err != nil {
			return err
		}
		return errors.Join(os.MkdirAll(filepath.Dir(dir), 0o755), os.Symlink(abs, dir))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-o", dir+"/", "./cmd/...")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// sweep removes what runs that were killed have left.
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), stale+"*")) // the pattern is well formed
	for _, dir := range dirs {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), stale))
		if err != nil {
			continue
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			continue // still running
		}
		labs := filepath.Join(dir, "labs")
		names, err := lab.Names(labs)
		for _, name := range names {
			err = errors.Join(err, lab.Down(labs, name))
		}
		if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
			fmt.Fprintln(os.Stderr, "leavings of an earlier run:", err)
		}
	}
}

// limit bounds every test but those that say how long they take.
const limit = 5 * time.Minute

// patience is for what takes no time, on a machine that is busy.
const patience = 30 * time.Second

// up makes a lab that goes away with the test. When the test fails, it shows the agents' logs.
func up(t *testing.T, o lab.Options) (context.Context, *lab.Lab) {
	t.Helper()
	return upFor(t, limit, o)
}

// upFor is up for a test that takes up to a given time.
func upFor(t *testing.T, atMost time.Duration, o lab.Options) (context.Context, *lab.Lab) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), atMost)
	t.Cleanup(cancel)
	dir := os.Getenv("WEFT_E2E_DIR")
	o.Base = filepath.Join(dir, "labs")
	o.Name = labName(t)
	for _, b := range []struct {
		field *string
		name  string
	}{{&o.Weft, "weft"}, {&o.Flanneld, "flanneld"}, {&o.Flannel, "flannel"}} {
		if *b.field == "" {
			*b.field = filepath.Join(dir, "bin", b.name)
		}
	}
	l, err := lab.Up(ctx, o)
	t.Cleanup(func() {
		if t.Failed() && l != nil {
			for _, n := range l.Nodes {
				t.Logf("node %s:\n%s", n.Name, n.Agent.LogTail(60))
				keepLog(t, o.Name, n)
			}
		}
		if err := lab.Down(o.Base, o.Name); err != nil && !errors.Is(err, lab.ErrNone) {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return ctx, l
}

// keepLog writes the whole log of an agent to where it outlives the lab.
func keepLog(t *testing.T, name string, n *lab.Node) {
	dir := os.Getenv("WEFT_E2E_LOGS")
	if dir == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(dir, name+"-"+n.Name+".log"), []byte(n.Agent.Log()), 0o644); err != nil {
		t.Log(err)
	}
}

// labName turns the test's name into that of its lab.
func labName(t *testing.T) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.TrimPrefix(t.Name(), "Test"))
	return strings.Trim(name[:min(len(name), 60)], "-")
}

// three is the usual lab: A and B on one segment, C behind the router.
func three() [][]string { return [][]string{{"A", "B"}, {"C"}} }

// addPods puts one pod on each node, named after it, and waits until the nodes know of each other.
func addPods(ctx context.Context, t *testing.T, l *lab.Lab) map[string]*lab.Pod {
	t.Helper()
	pods := map[string]*lab.Pod{}
	for _, n := range l.Nodes {
		p, err := n.AddPod(ctx, "pod-"+n.Name)
		if err != nil {
			t.Fatalf("node %s: %v", n.Name, err)
		}
		pods[n.Name] = p
	}
	return pods
}

func awaitRoutes(ctx context.Context, t *testing.T, l *lab.Lab) {
	t.Helper()
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := l.AwaitRoutes(short); err != nil {
		t.Fatal(err)
	}
	// What the way of before needed goes with the next pass.
	for _, n := range l.Nodes {
		last := ""
		eventually(t, patience, n.Name+" comes to rest", func() error {
			now, err := kernelStateOf(ctx, n)
			time.Sleep(100 * time.Millisecond)
			if before := last; err == nil && now != before {
				last = now
				err = errors.New(lineDiff(before, now))
			}
			return err
		})
	}
}

// pingAll wants every pod to reach every other one.
func pingAll(t *testing.T, l *lab.Lab) {
	t.Helper()
	pairs, err := l.PingAll(patience)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pairs {
		if p.Err != nil {
			t.Errorf("%v: %v", p, p.Err)
		}
	}
}

// eventually waits until f returns nil and says how long that took. The time in which somebody waited for a processor
// does not count, up to patience.
func eventually(t *testing.T, within time.Duration, what string, f func() error) time.Duration {
	t.Helper()
	began, before := time.Now(), pressed()
	for {
		err := f()
		took := time.Since(began)
		if err == nil {
			return took
		}
		if took > within+min(pressed()-before, patience) {
			t.Fatalf("%s: not within %v, but for %v in which there was no processor for somebody: %v", what, within, pressed()-before, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sh runs a shell command on a node.
func sh(ctx context.Context, t *testing.T, n *lab.Node, script string) string {
	t.Helper()
	out, err := n.Exec(ctx, "sh", "-ec", script)
	if err != nil {
		t.Fatalf("node %s: %v", n.Name, err)
	}
	return strings.TrimSpace(out)
}

// probes are steady pings, by what they are called.
type probes map[string]*lab.Probe

// probeAll starts a 1 kHz ping from every pod to every other one, in both families.
func probeAll(t *testing.T, pods map[string]*lab.Pod) probes {
	t.Helper()
	return probeEvery(t, pods, time.Millisecond)
}

// probeEvery is probeAll with another time between pings.
func probeEvery(t *testing.T, pods map[string]*lab.Pod, every time.Duration) probes {
	t.Helper()
	ps := probes{}
	for _, from := range pods {
		for _, to := range pods {
			if from == to {
				continue
			}
			for _, a := range to.Addrs() {
				p, err := lab.StartProbe(from, a, every)
				must(t, err)
				ps[fmt.Sprintf("%s to %s (%s)", from.Name, to.Name, a)] = p
			}
		}
	}
	ps.flowing(t)
	return ps
}

// flowing waits until every probe has been answered some more.
func (ps probes) flowing(t *testing.T) {
	t.Helper()
	for name, p := range ps {
		n := p.Answered()
		eventually(t, 5*time.Second, name, func() error {
			if p.Answered() < n+20 {
				return errors.New("no answers")
			}
			return nil
		})
	}
}

// stop stops the probes, all at once, and returns what they found.
func (ps probes) stop() map[string]lab.Loss {
	var mu sync.Mutex // guards found
	var wg sync.WaitGroup
	found := map[string]lab.Loss{}
	for name, p := range ps {
		wg.Go(func() {
			loss := p.Stop()
			mu.Lock()
			defer mu.Unlock()
			found[name] = loss
		})
	}
	wg.Wait()
	return found
}

// wantNoLoss stops the probes; not one request may have been lost.
func (ps probes) wantNoLoss(t *testing.T) {
	t.Helper()
	sent := 0
	for name, loss := range ps.stop() {
		sent += loss.Sent
		if loss.Lost > 0 {
			t.Errorf("%s: %v", name, loss)
		}
	}
	t.Logf("%d pings on %d paths", sent, len(ps))
}

// ours returns the agent under test.
func ours() string { return filepath.Join(os.Getenv("WEFT_E2E_DIR"), "bin", "flanneld") }
