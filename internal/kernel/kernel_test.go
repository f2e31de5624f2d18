package kernel_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/kernel"
	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/ranges"
	"github.com/weftnet/weft/internal/state"
)

const owner = "weft:test"

var scope = kernel.Scope{
	Owner:    owner,
	Networks: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd24::/48")},
	Uplink:   "eth0",
	Complete: true,
}

// host is a namespace with an uplink, eth0, that has an address of each family.
func host(t testing.TB) *kernel.Kernel {
	t.Helper()
	uplink(t)
	k, err := kernel.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

func uplink(t testing.TB) {
	t.Helper()
	sh(t, "ip link add eth0 type veth peer name wire")
	for _, dev := range []string{"eth0", "wire"} { // a link-local address would come in its own time, and wake
		sh(t, "ip link set "+dev+" addrgenmode none")
	}
	sh(t, "ip link set eth0 up")
	sh(t, "ip link set wire up")
	carriers(t, "eth0", "wire")
	sh(t, "ip addr add 10.77.0.1/24 dev eth0")
	sh(t, "ip addr add fd77::1/64 dev eth0 nodad")
	local6(t, "fd77::1")
}

// carriers waits until devices have told that they are up, which they do in their own time (net/core/link_watch.c).
func carriers(t testing.TB, devs ...string) {
	t.Helper()
	for _, dev := range devs {
		// Asked for by name, unlike in a listing, a link is shown when whoever changes it has told so.
		eventually(t, dev+" is up", func() bool { return strings.Contains(sh(t, "ip link show dev "+dev), " state UP ") })
	}
}

// local6 waits until the kernel routes an IPv6 address to itself, which it does after the address is there.
func local6(t testing.TB, addr string) {
	t.Helper()
	eventually(t, addr+" is routed", func() bool {
		return strings.Contains(sh(t, "ip -6 route show table local"), "local "+addr+" ")
	})
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// sh runs one command; its words are separated by spaces.
func sh(t testing.TB, command string) string {
	t.Helper()
	words := strings.Fields(command)
	return netnstest.Command(t, words[0], words[1:]...)
}

func mac(n int) state.MAC { return state.MAC{0x0a, 0, 0, 0, byte(n >> 8), byte(n)} }

func peerAddr(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, byte(n >> 8), byte(n)}) }

// node is the state of a node with the subnet 10.244.0.0/24 (and fd24::/64) and peers 2..n over VXLAN.
func node(peers ...int) state.State {
	s := state.New()
	for f, dev := range []string{"flannel.1", "flannel-v6.1"} {
		l := state.Link{Kind: "vxlan", MTU: 1450 - 20*f, MAC: mac(1), Owner: owner}
		*l.Prune.Ref(family.Of(scope.Networks[f].Addr())) = ranges.Of(scope.Networks[f])
		l.VXLAN = state.VXLAN{VNI: 1, Port: 8472, Parent: "eth0", Local: netip.MustParseAddr([]string{"10.77.0.1", "fd77::1"}[f])}
		s.Links[dev] = l
		own := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/32"), netip.MustParsePrefix("fd24::/128")}[f]
		s.Addresses[state.Address{Dev: dev, Prefix: own}] = true
		s.Sysctls["net/ipv6/conf/"+dev+"/accept_ra"] = "0"
	}
	for _, n := range peers {
		overlay(s, n)
	}
	return s
}

func subnet4(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(n), 0}), 24)
}

func subnet6(n int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("fd24:0:0:%x::/64", n)) }

func overlay(s state.State, n int) {
	for f, dev := range []string{"flannel.1", "flannel-v6.1"} {
		dst, via := subnet4(n), peerAddr(n)
		if f == 1 {
			dst, via = subnet6(n), netip.MustParseAddr(fmt.Sprintf("fd77::%x", n))
		}
		s.Neighbours[state.NeighbourKey{Dev: dev, Addr: dst.Addr()}] = mac(n)
		s.FDB[state.FDBKey{Dev: dev, MAC: mac(n)}] = via
		s.Routes[state.RouteKey{Dst: dst, Metric: 1024 * f}] = state.Route{
			Type: state.Unicast, Via: dst.Addr(), Dev: dev, OnLink: true, Protocol: state.Protocol}
	}
}

// underlay makes peer n a direct one.
func underlay(s state.State, n int) {
	for f, dev := range []string{"flannel.1", "flannel-v6.1"} {
		dst, via := subnet4(n), peerAddr(n)
		if f == 1 {
			dst, via = subnet6(n), netip.MustParseAddr(fmt.Sprintf("fd77::%x", n))
		}
		delete(s.Neighbours, state.NeighbourKey{Dev: dev, Addr: dst.Addr()})
		delete(s.FDB, state.FDBKey{Dev: dev, MAC: mac(n)})
		s.Routes[state.RouteKey{Dst: dst, Metric: 1024 * f}] = state.Route{
			Type: state.Unicast, Via: via, Dev: "eth0", Protocol: state.Protocol}
	}
}

func apply(t testing.TB, k *kernel.Kernel, want state.State) kernel.Report {
	t.Helper()
	r, err := k.Apply(context.Background(), want, scope)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	return r
}

// rests makes sure that there is nothing to do.
func rests(t testing.TB, k *kernel.Kernel, want state.State) {
	t.Helper()
	if c, err := k.Plan(want, scope); err != nil || len(c) > 0 {
		t.Fatalf("plan after apply: %v %v", lines(c), err)
	}
	if r := apply(t, k, want); len(r.Writes) > 0 {
		t.Fatalf("second pass wrote %v: %v", r.Writes, lines(r.Changes()))
	}
}

func lines(cs []state.Change) []string {
	var out []string
	for _, c := range cs {
		s := fmt.Sprintf("%s %s %s", c.Op, c.Kind, c.Object)
		if c.Have != "" {
			s += " -" + c.Have
		}
		if c.Want != "" {
			s += " +" + c.Want
		}
		out = append(out, s)
	}
	return out
}

// look is what ip and bridge print of our devices and the main table.
func look(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, dev := range []string{"flannel.1", "flannel-v6.1"} {
		for _, c := range []string{"ip -o addr show dev %s scope global", "ip neigh show nud permanent dev %s", "bridge fdb show dev %s"} {
			b.WriteString(sh(t, fmt.Sprintf(c, dev)))
		}
	}
	b.WriteString(sh(t, "ip route show"))
	b.WriteString(sh(t, "ip -6 route show"))
	return b.String()
}

// contains makes sure that each of want is a line of text, whatever white space it has.
func contains(t testing.TB, text string, want ...string) {
	t.Helper()
	have := map[string]bool{}
	for l := range strings.Lines(text) {
		have[strings.Join(strings.Fields(l), " ")] = true
	}
	for _, w := range want {
		if !have[w] {
			t.Errorf("no line %q in\n%s", w, text)
		}
	}
}

func lacks(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if strings.Contains(text, p) {
			t.Errorf("%q in\n%s", p, text)
		}
	}
}

func TestEmptyNamespace(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		want := node(2, 3)
		planned, err := k.Plan(want, scope)
		if err != nil {
			t.Fatal(err)
		}
		r := apply(t, k, want)
		ignored := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Have" }, cmp.Ignore()) // sysctls of new devices
		if diff := cmp.Diff(planned, r.Changes(), ignored); diff != "" {
			t.Errorf("plan and what was done (-plan +done):\n%s", diff)
		}
		contains(t, look(t),
			"10.244.2.0 lladdr 0a:00:00:00:00:02 PERMANENT",
			"0a:00:00:00:00:02 dst 10.77.0.2 self permanent",
			"10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 119 onlink",
			"10.244.3.0/24 via 10.244.3.0 dev flannel.1 proto 119 onlink",
			"fd24:0:0:2:: lladdr 0a:00:00:00:00:02 PERMANENT",
			"0a:00:00:00:00:02 dst fd77::2 self permanent",
			"fd24:0:0:2::/64 via fd24:0:0:2:: dev flannel-v6.1 proto 119 metric 1024 onlink pref medium",
		)
		for dev, want := range map[string][]string{
			"flannel.1":    {"<BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 ", "link/ether 0a:00:00:00:00:01 ", "vxlan id 1 local 10.77.0.1 dev eth0 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300 udpcsum noudp6zerocsumtx noudp6zerocsumrx", "alias weft:test"},
			"flannel-v6.1": {"mtu 1430 ", "vxlan id 1 local fd77::1 dev eth0 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300 udpcsum noudp6zerocsumtx noudp6zerocsumrx"},
		} {
			out := sh(t, "ip -d link show "+dev)
			for _, w := range want {
				if !strings.Contains(out, w) {
					t.Errorf("no %q in\n%s", w, out)
				}
			}
		}
		lacks(t, sh(t, "ip addr show"), "tentative dadfailed")
		rests(t, k, want)
	})
}
