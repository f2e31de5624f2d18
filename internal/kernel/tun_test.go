package kernel_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/ranges"
	"github.com/weftnet/weft/internal/state"
)

// tunNode is a node whose tunnel's device is flannel0.
func tunNode() state.State {
	s := state.New()
	s.Links["flannel0"] = state.Link{Kind: "tun", MTU: 1452, Owner: owner,
		Prune: family.Pair[ranges.List]{V4: ranges.Of(scope.Networks[0]), V6: ranges.Of(netip.MustParsePrefix("::/0"))}}
	s.Addresses[state.Address{Dev: "flannel0", Prefix: netip.MustParsePrefix("10.244.1.0/32")}] = true
	s.Addresses[state.Address{Dev: "flannel0", Prefix: netip.MustParsePrefix("fd24:0:0:1::/128")}] = true
	for i, n := range scope.Networks {
		s.Routes[state.RouteKey{Dst: n, Metric: []int{1, 1024}[i]}] = state.Route{Type: state.Unicast, Dev: "flannel0", Protocol: state.Protocol}
	}
	return s
}

// A TUN device is made by whoever has its queues open. It is set up like any link, and removed when it is
// no longer wanted.
func TestTUNDeviceIsAdopted(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		r, err := k.Apply(context.Background(), tunNode(), scope)
		if err == nil {
			err = r.Err()
		}
		if err == nil || !strings.Contains(err.Error(), "no such TUN device") {
			t.Fatalf("without the device: %v", err)
		}
		sh(t, "ip tuntap add flannel0 mode tun")
		apply(t, k, tunNode())
		if links, err := k.Links(); err != nil || links["flannel0"].Owner != owner {
			t.Errorf("links %v, %v", links, err)
		}
		rests(t, k, tunNode())
		out := sh(t, "ip -d addr show flannel0") + sh(t, "ip route show dev flannel0") + sh(t, "ip -6 route show dev flannel0")
		for _, want := range []string{"mtu 1452", "tun type tun", "alias weft:test", "10.244.1.0/32", "fd24:0:0:1::/128", "10.244.0.0/16 proto 119", "fd24::/48 proto 119"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
		// Another subnet's addresses, damage, and somebody's address outside of the network.
		sh(t, "ip addr add 10.244.7.0/32 dev flannel0")
		sh(t, "ip addr add fd24:0:0:7::/128 dev flannel0")
		sh(t, "ip addr add 192.0.2.1/32 dev flannel0")
		sh(t, "ip link set flannel0 down mtu 1300")
		apply(t, k, tunNode())
		rests(t, k, tunNode())
		out = sh(t, "ip addr show flannel0")
		if strings.Contains(out, ".7.0") || strings.Contains(out, ":7::") || !strings.Contains(out, "192.0.2.1") || !strings.Contains(out, "mtu 1452") {
			t.Errorf("addresses:\n%s", out)
		}
		apply(t, k, state.New())
		if out := sh(t, "ip -br link"); strings.Contains(out, "flannel0") {
			t.Errorf("still there: %s", out)
		}
	})
}
