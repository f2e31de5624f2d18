package probe

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netnstest"
)

// A space is a network namespace with a thread inside it.
type space struct {
	t    testing.TB
	file string // of the namespace
	do   chan func()
}

func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{t: t, do: make(chan func())}
	up := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread goes with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		s.file = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		up <- err
		for f := range s.do {
			f()
		}
	}()
	if err := <-up; err != nil {
		netnstest.Unavailable(t, "new network namespace (root is needed): %v", err)
	}
	t.Cleanup(func() { close(s.do) })
	s.sysctl("net/ipv6/conf/default/accept_dad", "0")
	s.ip("link set lo up")
	return s
}

// run calls f inside the namespace.
func (s *space) run(f func()) {
	done := make(chan struct{})
	s.do <- func() { defer close(done); f() }
	<-done
}

func (s *space) command(name string, args ...string) string {
	s.t.Helper()
	var out []byte
	var err error
	s.run(func() { out, err = exec.Command(name, args...).CombinedOutput() })
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (s *space) ip(format string, args ...any) {
	s.t.Helper()
	s.command("ip", strings.Fields(fmt.Sprintf(format, args...))...)
}

func (s *space) nft(format string, args ...any) {
	s.t.Helper()
	netnstest.Need(s.t, "nft", "nftables")
	s.command("nft", fmt.Sprintf(format, args...))
}

func (s *space) sysctl(key, value string) {
	s.t.Helper()
	s.run(func() {
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
			s.t.Error(err)
		}
	})
}

// A world is two nodes joined by two cables, of which the main route uses the first. Node n has the subnets
// 10.244.n.0/24 and fd24:0:0:n::/64, and 10.77.k.n and fd77:k::n on cable k, whose device is wk.
type world struct {
	t    *testing.T
	node [2]*space
	*Prober
	news chan struct{}
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, news: make(chan struct{}, 1)}
	for i := range w.node {
		w.node[i] = newSpace(t)
		w.node[i].ip("addr add 10.244.%d.0/32 dev lo", i+1)
		w.node[i].ip("addr add fd24:0:0:%d::/128 dev lo nodad", i+1)
	}
	for k := range 2 {
		w.cable(k)
	}
	w.probe()
	return w
}

// cable joins the nodes, with a route to the other's subnets that is the worse the higher k.
func (w *world) cable(k int) {
	w.t.Helper()
	w.node[0].ip("link add w%d type veth peer name w%d netns %s", k, k, w.node[1].file)
	for i, s := range w.node {
		s.ip("link set w%d up", k)
		s.ip("addr add 10.77.%d.%d/24 dev w%d", k, i+1, k)
		s.ip("addr add fd77:%d::%d/64 dev w%d nodad", k, i+1, k)
	}
	for i, s := range w.node {
		s.ip("route add 10.244.%d.0/24 via 10.77.%d.%d dev w%d metric %d", 2-i, k, 2-i, k, 1+k*524287)
		s.ip("-6 route add fd24:0:0:%d::/64 via fd77:%d::%d dev w%d metric %d", 2-i, k, 2-i, k, 1024+k*523264)
	}
}

// probe starts a prober for the first node, in goroutines that are elsewhere.
func (w *world) probe() {
	w.node[0].run(func() { w.Prober = Open(slog.New(slog.NewTextHandler(w.t.Output(), nil))) })
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() {
		done <- w.Run(ctx, func() {
			select {
			case w.news <- struct{}{}:
			default:
			}
		})
	}()
	w.t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				w.t.Error(err)
			}
		case <-time.After(patience):
			w.t.Error("Run does not end")
		}
	})
}

// other returns the world as the second node sees it, with a prober of its own.
func (w *world) other() *world {
	o := &world{t: w.t, node: [2]*space{w.node[1], w.node[0]}, news: make(chan struct{}, 1)}
	o.probe()
	return o
}

// wayOver returns the way to the second node over cable k.
func wayOver(f family.Family, k int) Target {
	t := Target{
		ID: ID{netip.MustParsePrefix("10.244.2.0/24"), lease.Key(fmt.Sprint("w", k))}, Dev: fmt.Sprint("w", k),
		Src: netip.MustParseAddr("10.244.1.0"), Size: 1500,
	}
	if f == family.V6 {
		t.Subnet, t.Src = netip.MustParsePrefix("fd24:0:0:2::/64"), netip.MustParseAddr("fd24:0:0:1::")
	}
	t.Dst = t.Subnet.Addr()
	return t
}

// both returns the ways over both cables.
func both(f family.Family) []Target { return []Target{wayOver(f, 0), wayOver(f, 1)} }

// await waits until all ways have the wanted verdicts, told by changed, and returns how long that took.
func (w *world) await(limit time.Duration, list []Target, want ...Verdict) time.Duration {
	w.t.Helper()
	start, timeout := time.Now(), time.After(limit)
	for {
		h := w.Health()
		match := true
		for i, v := range want {
			match = match && h[list[i].ID].Verdict == v
		}
		if match {
			return time.Since(start)
		}
		select {
		case <-w.news:
		case <-timeout:
			w.t.Fatalf("after %v: %+v, %+v; want %v", limit, h, w.Stats(), want)
		}
	}
}

// eventually waits for something that changed does not tell.
func (w *world) eventually(what string, holds func() bool) {
	w.t.Helper()
	for start := time.Now(); !holds(); {
		if time.Since(start) > patience {
			w.t.Fatalf("not within %v: %s; %+v, %+v", patience, what, w.Health(), w.Stats())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// rawSockets returns how many raw sockets the first node has.
func (w *world) rawSockets() (n int) {
	w.t.Helper()
	w.node[0].run(func() {
		for _, file := range []string{"raw", "raw6"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				w.t.Error(err)
			}
			n += strings.Count(string(b), "\n") - 1
		}
	})
	return n
}

func eachFamily(t *testing.T, f func(t *testing.T, fam family.Family)) {
	for _, fam := range family.All() {
		t.Run(fam.String(), func(t *testing.T) { f(t, fam) })
	}
}
