package udptun

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/state"
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
	// A router asks for no neighbour before its link-local address is known to be nobody else's.
	s.sysctl("net/ipv6/conf/all/accept_dad", "0")
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

// try runs a command inside the namespace.
func (s *space) try(name string, args ...string) (out string, err error) {
	s.run(func() {
		var b []byte
		b, err = exec.Command(name, args...).CombinedOutput()
		out = string(b)
	})
	return out, err
}

func (s *space) command(name string, args ...string) string {
	s.t.Helper()
	out, err := s.try(name, args...)
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func (s *space) ip(args string) string {
	s.t.Helper()
	return s.command("ip", strings.Fields(args)...)
}

func (s *space) sysctl(key, value string) {
	s.t.Helper()
	s.run(func() {
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
			s.t.Error(err)
		}
	})
}

// addr6 adds an IPv6 address and waits until packets to it are taken for the space's own, which a work queue of the
// kernel sees to.
func (s *space) addr6(addr, dev string) {
	s.t.Helper()
	s.ip("addr add " + addr + " dev " + dev + " nodad")
	bare, _, _ := strings.Cut(addr, "/")
	eventually(s.t, addr+" is local", func() bool { return s.ip("-6 route show table local "+bare) != "" })
}

// A host is a node: node n has 10.77.0.n and fd77::n on the wire, 10.244.n.0/24 and fd24:0:0:n::/64 for pods,
// and one pod, 10.244.n.2 and fd24:0:0:n::2.
type host struct {
	*space
	n      int
	pod    *space
	tunnel *Tunnel
	want   state.State
}

const testDev = "flannel0"

func underlay(n int) family.Pair[netip.Addr] {
	return family.Pair[netip.Addr]{V4: netip.MustParseAddr(fmt.Sprintf("10.77.0.%d", n)), V6: netip.MustParseAddr(fmt.Sprintf("fd77::%d", n))}
}

func subnetOf(n int) family.Pair[netip.Prefix] {
	return family.Pair[netip.Prefix]{V4: netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", n)), V6: netip.MustParsePrefix(fmt.Sprintf("fd24:0:0:%d::/64", n))}
}

func wantFor(n int, off state.TunnelOff, peers ...int) state.State {
	s := state.New()
	w := state.Tunnel{Port: 8285, Local: underlay(n), Off: off, Queues: 2}
	for _, f := range family.All() {
		*w.Addr.Ref(f) = subnetOf(n).Of(f).Addr()
	}
	s.Tunnels[testDev] = w
	for _, p := range peers {
		for _, f := range family.All() {
			s.TunnelPeers[state.TunnelKey{Dev: testDev, Subnet: subnetOf(p).Of(f)}] = underlay(p).Of(f)
		}
	}
	return s
}

// cable joins two namespaces by a veth pair named eth0 on both sides.
func cable(a, b *space, mtu int) {
	a.t.Helper()
	a.ip("link add eth0 type veth peer name eth0 netns " + b.file)
	for _, s := range []*space{a, b} {
		s.ip(fmt.Sprintf("link set eth0 up mtu %d", mtu))
	}
}

// meets waits until a neighbour answers: a new device carries nothing before a work queue of the kernel has noticed its
// carrier, and who solicits in vain for three seconds gives up.
func (s *space) meets(addr string) {
	s.t.Helper()
	eventually(s.t, addr+" is met", func() bool {
		_, err := s.try("ping", "-c1", "-W1", addr)
		return err == nil
	})
}

// newHosts makes node 1 and 2, without tunnels.
func newHosts(t testing.TB, mtu int) (a, b *host) {
	t.Helper()
	a, b = &host{space: newSpace(t), n: 1}, &host{space: newSpace(t), n: 2}
	cable(a.space, b.space, mtu)
	for _, h := range []*host{a, b} {
		h.ip(fmt.Sprintf("addr add 10.77.0.%d/24 dev eth0", h.n))
		h.addr6(fmt.Sprintf("fd77::%d/64", h.n), "eth0")
		h.sysctl("net/ipv4/ip_forward", "1")
		h.sysctl("net/ipv6/conf/all/forwarding", "1")
		h.addPod()
	}
	a.meets("fd77::2")
	b.meets("fd77::1")
	return a, b
}

func (h *host) addPod() {
	h.t.Helper()
	h.pod = newSpace(h.t)
	h.ip("link add pod type veth peer name eth0 netns " + h.pod.file)
	h.ip(fmt.Sprintf("link set pod up mtu %d", 1500))
	h.ip(fmt.Sprintf("addr add 10.244.%d.1/24 dev pod", h.n))
	h.addr6(fmt.Sprintf("fd24:0:0:%d::1/64", h.n), "pod")
	h.pod.ip("link set eth0 up")
	h.pod.ip(fmt.Sprintf("addr add 10.244.%d.2/24 dev eth0", h.n))
	h.pod.addr6(fmt.Sprintf("fd24:0:0:%d::2/64", h.n), "eth0")
	h.pod.ip(fmt.Sprintf("route add default via 10.244.%d.1", h.n))
	h.pod.ip(fmt.Sprintf("route add default via fd24:0:0:%d::1", h.n))
	h.pod.meets(fmt.Sprintf("fd24:0:0:%d::1", h.n))
}

// start makes the tunnel and does to its device what the kernel layer does.
func (h *host) start(off state.TunnelOff, mtu int, peers ...int) {
	h.t.Helper()
	h.tunnel = New("", slog.New(slog.NewTextHandler(h.t.Output(), nil)))
	h.t.Cleanup(func() { h.tunnel.Close() })
	h.apply(wantFor(h.n, off, peers...))
	h.configure(mtu)
}

func (h *host) apply(want state.State) {
	h.t.Helper()
	h.want = want
	var err error
	h.run(func() { _, err = h.tunnel.Apply(want, true) })
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) configure(mtu int) {
	h.t.Helper()
	h.ip(fmt.Sprintf("link set %s up mtu %d", testDev, mtu))
	h.ip(fmt.Sprintf("addr add 10.244.%d.0/32 dev %s", h.n, testDev))
	h.addr6(fmt.Sprintf("fd24:0:0:%d::/128", h.n), testDev)
	h.ip("route add 10.244.0.0/16 dev " + testDev)
	h.ip("route add fd24::/48 dev " + testDev)
	h.sysctl("net/ipv4/conf/"+testDev+"/accept_local", "1")
	h.sysctl("net/ipv4/conf/"+testDev+"/rp_filter", "2")
	h.pod.ip(fmt.Sprintf("link set eth0 mtu %d", mtu))
}

func (h *host) stats() Stats { return h.tunnel.Stats()[0] }
