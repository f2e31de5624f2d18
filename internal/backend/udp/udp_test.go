package udp

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weftnet/weft/internal/backend"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/ranges"
	"github.com/weftnet/weft/internal/state"
	"github.com/weftnet/weft/internal/uplink"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

func node(dual bool) (backend.Self, lease.Lease) {
	self := backend.Self{
		Owner:   "weft:x",
		Network: family.Pair[lease.Network]{V4: lease.Network{Prefix: prefix("10.244.0.0/16"), Additional: ranges.Of(prefix("10.248.0.0/16"))}},
		Uplink:  uplink.Uplink{Name: "eth0", MTU: 1500, Addr: family.Pair[netip.Addr]{V4: addr("10.0.0.1")}},
	}
	own := lease.Lease{Subnet: family.Pair[netip.Prefix]{V4: prefix("10.244.1.0/24")}}
	if dual {
		self.Network.V6.Prefix = prefix("fd24::/48")
		self.Uplink.Addr.V6 = addr("fd00::1")
		own.Subnet.V6 = prefix("fd24:0:0:1::/64")
	}
	return self, own
}

func TestReceiveAndReach(t *testing.T) {
	self, own := node(true)
	u := New(netconf.UDP{Port: 8285, Queues: 2, DisableUDPGRO: true}, Device, true)
	got := state.New()
	if err := u.Receive(self, own, &got); err != nil {
		t.Fatal(err)
	}
	for _, p := range []backend.Peer{
		{Family: family.V4, Subnet: prefix("10.244.2.0/24"), Public: addr("10.0.0.2"), Data: "whatever another backend says"},
		{Family: family.V6, Subnet: prefix("fd24:0:0:2::/64"), Public: addr("fd00::2")},
	} {
		w, _, err := u.Reach(p, &got)
		if err != nil || w != (backend.Way{Key: "udp/8285", Name: "udp", Dev: "flannel0", Via: p.Public}) {
			t.Errorf("%+v, %v", w, err)
		}
	}
	want := state.New()
	want.Links["flannel0"] = state.Link{Kind: "tun", MTU: 1452, Owner: "weft:x", Prune: family.Pair[ranges.List]{V4: ranges.Of(prefix("10.244.0.0/16"), prefix("10.248.0.0/16")), V6: ranges.Of(prefix("::/0"))}}
	want.Addresses[state.Address{Dev: "flannel0", Prefix: prefix("10.244.1.0/32")}] = true
	want.Addresses[state.Address{Dev: "flannel0", Prefix: prefix("fd24:0:0:1::/128")}] = true
	r := state.Route{Type: state.Unicast, Dev: "flannel0", Protocol: state.Protocol}
	want.Routes[state.RouteKey{Dst: prefix("10.244.0.0/16"), Metric: 1}] = r
	want.Routes[state.RouteKey{Dst: prefix("10.248.0.0/16"), Metric: 1}] = r
	want.Routes[state.RouteKey{Dst: prefix("fd24::/48"), Metric: state.Metric6}] = r
	want.Sysctls["net/ipv4/conf/flannel0/accept_local"] = "1"
	want.Sysctls["net/ipv4/conf/flannel0/rp_filter"] = "2"
	want.Sysctls["net/ipv6/conf/flannel0/accept_ra"] = "0"
	want.Tunnels["flannel0"] = state.Tunnel{
		Port: 8285, Queues: 2, Local: self.Uplink.Addr, Off: state.TunnelOff{GRO: true},
		Addr: family.Pair[netip.Addr]{V4: addr("10.244.1.0"), V6: addr("fd24:0:0:1::")},
	}
	want.TunnelPeers[state.TunnelKey{Dev: "flannel0", Subnet: prefix("10.244.2.0/24")}] = addr("10.0.0.2")
	want.TunnelPeers[state.TunnelKey{Dev: "flannel0", Subnet: prefix("fd24:0:0:2::/64")}] = addr("fd00::2")
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestMTUAsTheOriginals(t *testing.T) {
	for dual, want := range map[bool]int{false: 1472, true: 1452} {
		self, _ := node(dual)
		if got := New(netconf.UDP{}, Device, true).MTU(self); got != want {
			t.Errorf("dual %v: %d, want %d", dual, got, want)
		}
	}
}

func TestAFamilyWithoutAddress(t *testing.T) {
	self, own := node(false)
	own.Subnet.V6 = prefix("fd24:0:0:1::/64")
	s := state.New()
	if err := New(netconf.UDP{Port: 1}, Device, true).Receive(self, own, &s); err == nil {
		t.Error("no error")
	}
	_, own = node(false)
	s = state.New()
	if err := New(netconf.UDP{Port: 1}, Device, true).Receive(self, own, &s); err != nil {
		t.Fatal(err)
	}
	if _, _, err := New(netconf.UDP{}, Device, true).Reach(backend.Peer{Family: family.V6, Subnet: prefix("fd24:0:0:2::/64"), Public: addr("fd00::2")}, &s); err == nil {
		t.Error("a peer was reached without a socket")
	}
}
