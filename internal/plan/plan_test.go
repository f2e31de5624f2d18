package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/weftnet/weft/internal/backend"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/firewall"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/ranges"
	"github.com/weftnet/weft/internal/state"
	"github.com/weftnet/weft/internal/uplink"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

// node returns the IPv4 lease of the n-th node.
func node(n int, backendType, data string) lease.Lease {
	return lease.Lease{
		Subnet:  family.Pair[netip.Prefix]{V4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(n), 0}), 24)},
		Public:  family.Pair[netip.Addr]{V4: netip.AddrFrom4([4]byte{10, 77, 0, byte(n)})},
		Receive: []lease.Receiver{{Type: backendType, Data: family.Pair[string]{V4: data}}},
	}
}

func vxlanNode(n int) lease.Lease {
	return node(n, "vxlan", fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:00:%02x"}`, n))
}

// input is node 1 of an IPv4 vxlan cluster with the given other nodes.
func input(b netconf.Backend, own lease.Lease, peers ...lease.Lease) Input {
	network := lease.Network{Prefix: prefix("10.244.0.0/16"), SubnetLen: 24, Min: addr("10.244.0.0"), Max: addr("10.244.255.0")}
	c := netconf.Config{Network: family.Pair[lease.Network]{V4: network}, Backend: b}
	return Input{
		Config: c, Own: own, Leases: append([]lease.Lease{own}, peers...),
		Self: backend.Self{Identity: "id", Network: c.Network, Uplink: uplink.Uplink{
			Name: "eth0", MTU: 1500, Addr: own.Public, Public: own.Public,
		}},
	}
}

func build(t *testing.T, in Input) Plan {
	t.Helper()
	p, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestEachPeerTakesTheBestWay(t *testing.T) {
	vx := netconf.VXLAN{VNI: 1}
	direct := netconf.VXLAN{VNI: 1, DirectRouting: true}
	onLink := map[netip.Addr]string{addr("10.77.0.2"): "eth0"}
	for _, tc := range []struct {
		name   string
		in     Input
		direct map[netip.Addr]string
		way    string // empty: none
		reason string
		route  string
	}{
		{"vxlan", input(vx, vxlanNode(1), vxlanNode(2)), nil, "vxlan", "", "via 10.244.2.0 dev flannel.1 onlink"},
		{"vxlan does not go direct unasked", input(vx, vxlanNode(1), vxlanNode(2)), onLink, "vxlan", "", "via 10.244.2.0 dev flannel.1 onlink"},
		{"direct when on-link", input(direct, vxlanNode(1), vxlanNode(2)), onLink, "direct", "", "via 10.77.0.2 dev eth0"},
		{"vxlan when behind a router", input(direct, vxlanNode(1), vxlanNode(2)), nil, "vxlan", "not on-link", "via 10.244.2.0 dev flannel.1 onlink"},
		{"host-gw when on-link", input(netconf.HostGW{}, node(1, "host-gw", ""), node(2, "host-gw", "")), onLink, "direct", "", "via 10.77.0.2 dev eth0"},
		{"host-gw behind a router has no way", input(netconf.HostGW{}, node(1, "host-gw", ""), node(2, "host-gw", "")), nil, "", "not on-link", ""},
		{"a peer's word does nothing to a terminal", input(vx, vxlanNode(1), node(2, "\x1b[2Jx", "")), onLink, "", `receives on "\x1b[2Jx", not on vxlan`, ""},
		{"a peer of another backend has no way", input(vx, vxlanNode(1), node(2, "host-gw", "")), onLink, "", "receives on host-gw, not on vxlan", ""},
		{"udp", input(netconf.UDP{Port: 8285}, node(1, "", ""), node(2, "", "")), onLink, "udp", "", ""},
		{"udp does not reach a peer of another backend", input(netconf.UDP{Port: 8285}, node(1, "", ""), vxlanNode(2)), nil, "", "receives on vxlan, not on udp/8285", ""},
		{"alloc carries nothing", input(netconf.Alloc{}, node(1, "", ""), node(2, "", "")), onLink, "", "alloc carries no packets", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.in.Direct = tc.direct
			p := build(t, tc.in)
			if len(p.Paths) != 1 {
				t.Fatalf("paths = %+v", p.Paths)
			}
			path := p.Paths[0]
			if way := wayName(path); way != tc.way || !strings.Contains(path.Reason, tc.reason) {
				t.Errorf("way %q because %q, want %q because %q", way, path.Reason, tc.way, tc.reason)
			}
			r, ok := p.State.Routes[state.RouteKey{Dst: prefix("10.244.2.0/24")}]
			if got := r.String(); ok && got != tc.route || !ok && tc.route != "" {
				t.Errorf("route %q, want %q", got, tc.route)
			}
		})
	}
}

func wayName(p Path) string {
	if p.Way == nil {
		return ""
	}
	return p.Way.Name
}

// A wrong or hostile lease costs its owner the network, and nobody else.
func TestAHostileLeaseCostsOnlyItsOwner(t *testing.T) {
	good := vxlanNode(2)
	for name, spoil := range map[string]func(*lease.Lease){
		"our own subnet":             func(l *lease.Lease) { l.Subnet.V4 = prefix("10.244.1.128/25") },
		"a good node's subnet":       func(l *lease.Lease) { l.Subnet.V4 = prefix("10.244.2.128/25") },
		"a range over a good node's": func(l *lease.Lease) { l.Subnet.V4 = prefix("10.244.0.0/17") },
		"a good node's subnet first": func(l *lease.Lease) { l.Subnet.V4 = prefix("10.244.2.0/23") },
		"the whole network":          func(l *lease.Lease) { l.Subnet.V4 = prefix("10.244.0.0/16") },
		"the default route":          func(l *lease.Lease) { l.Subnet.V4 = prefix("0.0.0.0/0") },
		"outside the network":        func(l *lease.Lease) { l.Subnet.V4 = prefix("10.96.0.0/24") },
		"our own address":            func(l *lease.Lease) { l.Public.V4 = addr("10.77.0.1") },
		"loopback as address":        func(l *lease.Lease) { l.Public.V4 = addr("127.0.0.1") },
		"multicast as address":       func(l *lease.Lease) { l.Public.V4 = addr("224.0.0.1") },
		"broadcast as address":       func(l *lease.Lease) { l.Public.V4 = addr("255.255.255.255") },
		"zero as address":            func(l *lease.Lease) { l.Public.V4 = addr("0.0.0.0") },
		"no address":                 func(l *lease.Lease) { l.Public.V4 = netip.Addr{} },
		"a pod address as address":   func(l *lease.Lease) { l.Public.V4 = addr("10.244.9.9") },
		"our VTEP's MAC":             func(l *lease.Lease) { l.Receive = vxlanNode(1).Receive },
		"a good node's MAC":          func(l *lease.Lease) { l.Receive = vxlanNode(2).Receive },
		"backend data that is noise": func(l *lease.Lease) { l.Receive[0].Data.V4 = "\x00" },
	} {
		t.Run(name, func(t *testing.T) {
			bad := vxlanNode(200) // after the good one in order
			spoil(&bad)
			want := build(t, input(netconf.VXLAN{VNI: 1}, vxlanNode(1), good))
			got := build(t, input(netconf.VXLAN{VNI: 1}, vxlanNode(1), bad, good))
			opt := cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})
			if d := cmp.Diff(want.State, got.State, opt); d != "" {
				t.Errorf("the bad lease changed the state (-without +with):\n%s", d)
			}
			for _, p := range got.Paths {
				if (p.Subnet == good.Subnet.V4) != (p.Way != nil) || (p.Way == nil) != (p.Reason != "") {
					t.Errorf("path %+v", p)
				}
			}
		})
	}
}

// TestAdditionalNetworks: what is true of a network is true of all of its ranges.
func TestAdditionalNetworks(t *testing.T) {
	at := func(n int, subnet string) lease.Lease {
		l := vxlanNode(n)
		l.Subnet.V4 = prefix(subnet)
		return l
	}
	second, third := at(2, "10.248.2.0/24"), at(3, "10.250.3.0/24")
	podAddress := at(4, "10.248.4.0/24")
	podAddress.Public.V4 = addr("10.248.9.9")
	larger := at(5, "10.248.2.0/23") // comes before the second one in order, but no node could lease it
	in := input(netconf.VXLAN{VNI: 1}, vxlanNode(1), podAddress, larger, at(6, "10.248.0.0/16"), second, at(7, "10.248.0.0/15"), third, at(8, "10.246.1.0/24"))
	in.Config.Network.V4.Additional = ranges.Of(prefix("10.248.0.0/16"))
	in.Self.Network = in.Config.Network
	in.Options = Options{Masquerade: true, ForwardRules: true}
	want := map[string]string{
		"10.248.0.0/15": "is not inside the network 10.244.0.0/16,10.248.0.0/16",
		"10.248.0.0/16": "is not inside the network",
		"10.248.2.0/23": "overlaps another node's",
		"10.248.2.0/24": "",
		"10.248.4.0/24": "public address 10.248.9.9 is inside the pod network 10.244.0.0/16,10.248.0.0/16",
		"10.250.3.0/24": "is not inside the network",
		"10.246.1.0/24": "is not inside the network",
	}
	p := build(t, in)
	for _, path := range p.Paths {
		reason, known := want[path.Subnet.String()]
		if !known || (path.Way != nil) != (reason == "") || !strings.Contains(path.Reason, reason) {
			t.Errorf("path to %s: %+v, because %q", path.Subnet, path.Way, path.Reason)
		}
	}
	if len(p.Paths) != len(want) {
		t.Errorf("%d paths", len(p.Paths))
	}
	both := []netip.Prefix{prefix("10.244.0.0/16"), prefix("10.248.0.0/16")}
	if !slices.Equal(p.Firewall.Network.V4, both) || p.Firewall.Network.V6 != nil {
		t.Errorf("firewall for %v", p.Firewall.Network)
	}
	if got := p.Subnet.Network.V4; got != ranges.Of(both...) || !p.Subnet.Network.V6.Empty() {
		t.Errorf("subnet.env for %s", got)
	}
	if got := p.State.Links["flannel.1"].Prune.V4; got != ranges.Of(both...) {
		t.Errorf("addresses of %s are ours", got)
	}
}

func TestPeersAreTalkedToInTheFamiliesThatBothHave(t *testing.T) {
	own := vxlanNode(1)
	own.Subnet.V6, own.Public.V6 = prefix("fd24:0:0:1::/64"), addr("fd77::1")
	own.Receive[0].Data.V6 = `{"VNI":1,"VtepMAC":"02:00:00:00:06:01"}`
	in := input(netconf.VXLAN{VNI: 1}, own, vxlanNode(2))
	in.Config.Network.V6 = lease.Network{Prefix: prefix("fd24::/48"), SubnetLen: 64}
	in.Self.Network = in.Config.Network
	p := build(t, in)
	if len(p.Paths) != 1 || p.Paths[0].Family != family.V4 || p.Paths[0].Way == nil {
		t.Errorf("paths = %+v", p.Paths)
	}
	if p.Subnet.MTU != 1430 {
		t.Errorf("MTU = %d, want 1430", p.Subnet.MTU)
	}
}

func TestHostStateFollowsTheOptions(t *testing.T) {
	in := input(netconf.HostGW{}, node(1, "host-gw", ""))
	in.Options = Options{Masquerade: true, ForwardRules: true, RandomFully: true, BlackholeRoute: true}
	p := build(t, in)
	if r := p.State.Routes[state.RouteKey{Dst: prefix("10.244.1.0/24"), Metric: BlackholeMetric}]; r.Type != state.Blackhole {
		t.Errorf("no blackhole route: %v", p.State.Routes)
	}
	if p.State.Sysctls["net/ipv4/ip_forward"] != "1" {
		t.Errorf("sysctls = %v", p.State.Sysctls)
	}
	want := firewall.Policy{
		Mode: firewall.IPTables, Masquerade: true, Forward: true, RandomFully: true, Subnet: in.Own.Subnet,
		Network: family.Pair[[]netip.Prefix]{V4: []netip.Prefix{prefix("10.244.0.0/16")}},
	}
	if d := cmp.Diff(want, p.Firewall, cmpopts.EquateComparable(netip.Prefix{})); d != "" {
		t.Errorf("policy (-want +got):\n%s", d)
	}
}

func TestHostGWRefusesAnAddressThatIsNotItsOwn(t *testing.T) {
	in := input(netconf.HostGW{}, node(1, "host-gw", ""))
	in.Self.Uplink.Public.V4 = addr("192.0.2.1")
	if _, err := Build(in); err == nil || !strings.Contains(err.Error(), "--public-ip") {
		t.Errorf("err = %v", err)
	}
}

// The order in which a store hands leases over must not matter.
func TestThePlanDoesNotDependOnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ls := []lease.Lease{vxlanNode(1), vxlanNode(2), vxlanNode(3), vxlanNode(4), node(5, "host-gw", "")}
		ls[3].Subnet.V4 = prefix("10.244.2.0/25") // overlaps node 2
		in := input(netconf.VXLAN{VNI: 1}, ls[0])
		in.Leases = ls
		want, err := Build(in)
		if err != nil {
			t.Fatal(err)
		}
		in.Leases = rapid.Permutation(ls).Draw(t, "leases")
		got, err := Build(in)
		if err != nil {
			t.Fatal(err)
		}
		opts := cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})
		if d := cmp.Diff(want, got, opts); d != "" {
			t.Errorf("plan (-first +permuted):\n%s", d)
		}
	})
}

// Several agents on one host have a TUN device each, as the original's have.
func TestATUNDeviceOfAnotherAgentIsLeftToIt(t *testing.T) {
	for owner, want := range map[string]string{"": "flannel0", "weft:ours": "flannel0", "weft:another": "flannel1"} {
		in := input(netconf.UDP{Port: 8286}, node(1, "udp", ""), node(2, "udp", ""))
		in.Self.Owner = "weft:ours"
		in.Host.Devices = map[string]state.Link{"flannel0": {Kind: "tun", Owner: owner}}
		p := build(t, in)
		if _, ok := p.State.Tunnels[want]; !ok || len(p.State.Tunnels) != 1 {
			t.Errorf("beside a device of %q: %v, want %s", owner, p.State.Tunnels, want)
		}
	}
}

// BenchmarkBuild is what a pass over a large cluster costs before the kernel is asked.
func BenchmarkBuild(b *testing.B) {
	const peers = 5000
	in := input(netconf.VXLAN{VNI: 1}, vxlanNode(1))
	network := lease.Network{Prefix: prefix("10.0.0.0/8"), SubnetLen: 24, Min: addr("10.0.0.0"), Max: addr("10.255.255.0")}
	in.Config.Network.V4, in.Self.Network.V4, in.Complete = network, network, true
	for i := range peers {
		in.Leases = append(in.Leases, lease.Lease{
			Subnet:  family.Pair[netip.Prefix]{V4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + i>>8), byte(i), 0}), 24)},
			Public:  family.Pair[netip.Addr]{V4: netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})},
			Receive: []lease.Receiver{{Type: "vxlan", Data: family.Pair[string]{V4: fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:01:%02x:%02x"}`, i>>8, i&255)}}},
		})
	}
	for b.Loop() {
		if p, err := Build(in); err != nil || len(p.State.Routes) < peers {
			b.Fatalf("%d routes, %v", len(p.State.Routes), err)
		}
	}
}
