package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/state"
)

// keyed returns the n-th node's lease with these keys; the first is vxlan/1/8472's.
func keyed(n int, receive, send []lease.Key) lease.Lease {
	l := vxlanNode(n)
	data := l.Receive[0].Data
	l.Receive = nil
	for _, k := range receive {
		r := lease.Receiver{Key: k, Type: "vxlan", Data: data}
		if k == "host-gw" {
			r = lease.Receiver{Key: k, Type: "host-gw"}
		}
		l.Receive = append(l.Receive, r)
	}
	l.Send = send
	return l
}

const (
	old  lease.Key = "vxlan/1/8472"
	next lease.Key = "vxlan/1/4789"
)

// The store may have told a peer what we publish before it told us; what we see is what all have at least.
func TestANodeSendsOnWhatItHasSeenPublished(t *testing.T) {
	peer := keyed(2, []lease.Key{old, next}, []lease.Key{next, old})
	own := keyed(1, []lease.Key{old, next}, []lease.Key{next, old})
	own.Serial = 1
	for want, shown := range map[lease.Key]lease.Lease{old: keyed(1, []lease.Key{old}, []lease.Key{old}), next: own} {
		in := input(netconf.VXLAN{VNI: 1, Port: 4789}, own, peer)
		in.Leases[0], in.Complete = shown, true
		if p := build(t, in); p.Paths[0].Way.Key != want {
			t.Errorf("%v is seen, sends on %s", shown.Send, p.Paths[0].Way.Key)
		}
	}
}

func TestANodeIsOpenUntilItHasSeenThatItIsNot(t *testing.T) {
	peer := keyed(2, []lease.Key{next}, []lease.Key{next})
	own := keyed(1, []lease.Key{next}, []lease.Key{next})
	own.Serial = 1
	for open, shown := range map[bool]lease.Lease{true: keyed(1, []lease.Key{old, next}, []lease.Key{next}), false: own} {
		in := input(netconf.VXLAN{VNI: 1, Port: 4789}, own, peer)
		in.Leases[0], in.Complete, in.Open = shown, true, []lease.Key{old, next}
		if got := slices.Contains(openKeys(in), old); got != open {
			t.Errorf("%v is seen, open: %v", keysOf(shown), openKeys(in))
		}
	}
}

// What the configuration asks for, and this node cannot have, must not cost what it has.
func TestANodeThatCannotFollowStays(t *testing.T) {
	in := input(netconf.HostGW{}, keyed(1, []lease.Key{old}, []lease.Key{old}), keyed(2, []lease.Key{"host-gw", old}, []lease.Key{"host-gw", old}))
	in.Self.Uplink.Public.V4, in.Complete = addr("192.0.2.1"), true
	p := build(t, in)
	if p.Paths[0].Way == nil || p.Paths[0].Way.Key != old || len(p.Offer.Receive) != 1 || len(p.Offer.Kept) == 0 {
		t.Errorf("path %+v, offer %+v", p.Paths[0], p.Offer)
	}
}

// A node that the original ran on goes on as the original's peers know it, and not as configured by now.
func TestTakingOverFromTheOriginal(t *testing.T) {
	self := input(nil, vxlanNode(1)).Self
	device := state.Link{Kind: "vxlan", MTU: 1450, MAC: state.MAC{2, 0, 0, 0, 0, 1}, VXLAN: state.VXLAN{VNI: 1, Port: 8472}}
	c := netconf.Config{Network: self.Network, Backend: netconf.HostGW{}}
	for name, tc := range map[string]struct {
		prior   lease.Lease
		devices map[string]state.Link
		want    lease.Key
	}{
		"with its device":         {vxlanNode(1), map[string]state.Link{"flannel.1": device}, old},
		"after a reboot":          {vxlanNode(1), nil, "host-gw"},
		"with another VNI's":      {vxlanNode(1), map[string]state.Link{"flannel.7": {Kind: "vxlan", VXLAN: state.VXLAN{VNI: 7, Port: 8472}}}, "host-gw"},
		"with another agent's":    {vxlanNode(1), map[string]state.Link{"flannel.1": func() state.Link { d := device; d.Owner = "weft:other"; return d }()}, "host-gw"},
		"that ran host-gw":        {node(1, "host-gw", ""), nil, "host-gw"},
		"that never was":          {lease.Lease{}, nil, "host-gw"},
		"of ours, with its lists": {keyed(1, []lease.Key{next}, []lease.Key{next}), nil, next},
	} {
		o, err := First(c, self, tc.prior, Host{Devices: tc.devices})
		if err != nil || len(o.Receive) != 1 || o.Receive[0].Key != tc.want || !slices.Equal(o.Send, []lease.Key{tc.want}) {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
	}
}

func TestPreview(t *testing.T) {
	own := keyed(1, []lease.Key{old}, []lease.Key{old})
	in := input(netconf.VXLAN{VNI: 1}, own, keyed(2, []lease.Key{old}, []lease.Key{old}), keyed(3, []lease.Key{old}, []lease.Key{old}), vxlanNode(4))
	in.Direct = map[netip.Addr]string{addr("10.77.0.2"): "eth0", addr("10.77.0.4"): "eth0"}
	p := build(t, in)
	moves, err := Preview(in, p, netconf.Config{Network: in.Config.Network, Backend: netconf.HostGW{}})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []Move{
		{Subnet: prefix("10.244.2.0/24"), From: old, To: "host-gw"},
		{Subnet: prefix("10.244.3.0/24"), From: old, To: old, Reason: "host-gw: not on-link"},
		{Subnet: prefix("10.244.4.0/24"), From: old, To: old, Reason: "host-gw: the node runs the original, which follows when it is restarted"},
	} {
		if moves[i] != want {
			t.Errorf("%+v, want %+v", moves[i], want)
		}
	}
}

// Every way that is probed beside the one in use has a route that carries nothing else.
func TestProbedWaysStandBy(t *testing.T) {
	keys := []lease.Key{"host-gw", old}
	in := input(netconf.VXLAN{VNI: 1, DirectRouting: true}, keyed(1, keys, keys), keyed(2, keys, keys))
	in.Direct, in.Complete, in.Probe = map[netip.Addr]string{addr("10.77.0.2"): "eth0"}, true, true
	subnet := prefix("10.244.2.0/24")
	for _, tc := range []struct {
		name    string
		current lease.Key
		direct  Health
		vxlan   Health
		use     lease.Key
		probes  int
	}{
		{"nothing known yet", "", Unknown, Unknown, old, 2},
		{"direct is proven", old, Good, Unknown, "host-gw", 1},
		{"after a restart", "host-gw", Unknown, Unknown, "host-gw", 1},
		{"direct died", "host-gw", Dead, Unknown, old, 2},
		{"direct died, vxlan works", "host-gw", Dead, Good, old, 2},
		{"all died, direct is on trial", old, Try, Dead, "host-gw", 2},
	} {
		in.Ways = map[netip.Prefix]lease.Key{}
		if tc.current != "" {
			in.Ways[subnet] = tc.current
		}
		in.Health = map[WayID]Health{{subnet, "host-gw"}: tc.direct, {subnet, old}: tc.vxlan}
		p := build(t, in)
		standby := 0
		for k := range p.State.Routes {
			if k.Dst == subnet && k.Metric >= StandbyMetric {
				standby++
			}
		}
		if p.Paths[0].Way.Key != tc.use || len(p.Probes) != tc.probes || standby != tc.probes-1 {
			t.Errorf("%s: %s, %d probes, %d routes that stand by; want %s, %d", tc.name, p.Paths[0].Way.Key, len(p.Probes), standby, tc.use, tc.probes)
		}
		for _, pr := range p.Probes {
			if pr.Src != own4(in) || pr.Dst != subnet.Addr() || pr.Size != map[lease.Key]int{"host-gw": 1500, old: 1450}[pr.Key] {
				t.Errorf("%s: probe %+v", tc.name, pr)
			}
		}
	}
}

func own4(in Input) netip.Addr { return in.Own.Subnet.Of(family.V4).Addr() }

func TestOldPodsAreClampedOnly(t *testing.T) {
	in := input(netconf.VXLAN{VNI: 1}, vxlanNode(1))
	for mtu, want := range map[int]bool{0: false, 1450: false, 1500: true} {
		in.PodMTU = mtu
		if p := build(t, in); p.Firewall.Clamp != want {
			t.Errorf("pods have %d: clamp %v", mtu, p.Firewall.Clamp)
		}
	}
}

func TestTheOwnAddressIsHeldWhereNoDeviceHasItAnyMore(t *testing.T) {
	tunnel := input(netconf.VXLAN{VNI: 1}, vxlanNode(1))
	bare := input(netconf.HostGW{}, keyed(1, []lease.Key{"host-gw"}, []lease.Key{"host-gw"}))
	bare.Complete = true
	own := family.Pair[netip.Addr]{V4: own4(bare)}
	for _, tc := range []struct {
		name       string
		in         Input
		held, want family.Pair[netip.Addr]
		local      bool
	}{
		{name: "a tunnel has it", in: tunnel, want: own},
		{name: "a tunnel has it again", in: tunnel, held: own, want: own},
		{name: "a tunnel had it", in: bare, held: own, want: own, local: true},
		{name: "there was no tunnel", in: bare},
		{name: "a tunnel had it in another subnet", in: bare, held: family.Pair[netip.Addr]{V4: addr("10.244.9.0")}, want: family.Pair[netip.Addr]{V4: addr("10.244.9.0")}},
	} {
		tc.in.Held = tc.held
		p := build(t, tc.in)
		if p.Held != tc.want || p.State.Locals[own.V4] != tc.local || len(p.State.Locals) > 1 {
			t.Errorf("%s: held %v, local %v", tc.name, p.Held, p.State.Locals)
		}
	}
}

func TestStrictFiltersAreLoosenedWhereTwoWaysAreOpen(t *testing.T) {
	keys := []lease.Key{"host-gw", old}
	in := input(netconf.VXLAN{VNI: 1, DirectRouting: true}, keyed(1, keys, keys))
	in.Host.StrictUplink = true
	if got := build(t, in).State.Sysctls["net/ipv4/conf/eth0/rp_filter"]; got != "2" {
		t.Errorf("rp_filter = %q", got)
	}
	only := keyed(1, []lease.Key{"host-gw"}, []lease.Key{"host-gw"})
	in = input(netconf.HostGW{}, only)
	in.Host.StrictUplink, in.Complete = true, true
	for before, want := range map[string]string{"": "", "1": "1"} {
		in.Host.FilterBefore = before
		if got := build(t, in).State.Sysctls["net/ipv4/conf/eth0/rp_filter"]; got != want {
			t.Errorf("host-gw alone, was %q: rp_filter = %q", before, got)
		}
	}
}

// Nodes of the original that are started with DirectRouting are peers of those that show vxlan only. Those that still
// run host-gw are cut off by that.
func TestFromHostGWToDirectRoutingTheOriginalIsToldOfVXLAN(t *testing.T) {
	for _, tc := range []struct {
		name  string
		peer  lease.Lease
		first lease.Key
	}{
		{"no original", keyed(2, []lease.Key{"host-gw"}, []lease.Key{"host-gw"}), old},
		{"one on vxlan", vxlanNode(2), old},
		{"one on host-gw", node(2, "host-gw", ""), "host-gw"},
	} {
		for _, receive := range [][]lease.Key{{"host-gw"}, {"host-gw", old}} {
			in := input(netconf.VXLAN{VNI: 1, DirectRouting: true}, keyed(1, receive, receive), tc.peer)
			in.Complete = true
			if got := build(t, in).Offer.Receive; len(got) != 2 || got[0].Key != tc.first {
				t.Errorf("%s: from %v to %v, want %s first", tc.name, receive, got, tc.first)
			}
		}
	}
}

// A node that stays as it is lets go of what it was about to: its peers wait for that.
func TestANodeThatCannotFollowLetsGoAllTheSame(t *testing.T) {
	keys := []lease.Key{next, old}
	in := input(netconf.HostGW{}, keyed(1, keys, keys), keyed(2, keys, []lease.Key{next}))
	in.Self.Uplink.Public.V4, in.Complete = addr("192.0.2.1"), true
	if o := build(t, in).Offer; !slices.Equal(o.Send, []lease.Key{next}) || len(o.Receive) != 1 || len(o.Kept) == 0 {
		t.Errorf("offer %+v", o)
	}
}

// What this node cannot follow is no move.
func TestPreviewOfWhatCannotBeFollowed(t *testing.T) {
	for reason, c := range map[string]netconf.Backend{
		"public address": netconf.HostGW{},                 // behind --public-ip
		"without probes": netconf.VXLAN{VNI: 1, GBP: true}, // its port is taken
	} {
		in := input(netconf.VXLAN{VNI: 1}, keyed(1, []lease.Key{old}, []lease.Key{old}), keyed(2, []lease.Key{old}, []lease.Key{old}))
		in.Self.Uplink.Public.V4, in.Complete = addr("192.0.2.1"), true
		p := build(t, in)
		moves, err := Preview(in, p, netconf.Config{Network: in.Config.Network, Backend: c})
		if err != nil || len(moves) != 1 || moves[0].To != old || !strings.Contains(moves[0].Reason, reason) {
			t.Errorf("%+v, %v", moves, err)
		}
	}
}

// An original that was started with DirectRouting sends bare packets until it is started again, and nobody knows.
func TestFiltersStayLooseForNodesOfTheOriginal(t *testing.T) {
	for _, tc := range []struct {
		name     string
		peer     lease.Lease
		complete bool
		want     string
	}{
		{"an original", vxlanNode(2), true, "2"},
		{"none", keyed(2, []lease.Key{old}, []lease.Key{old}), true, "1"},
		{"peers are not known yet", keyed(2, []lease.Key{old}, []lease.Key{old}), false, "2"},
	} {
		in := input(netconf.VXLAN{VNI: 1}, keyed(1, []lease.Key{old}, []lease.Key{old}), tc.peer)
		in.Complete, in.Host.FilterBefore = tc.complete, "1"
		if got := build(t, in).State.Sysctls["net/ipv4/conf/eth0/rp_filter"]; got != tc.want {
			t.Errorf("%s: rp_filter = %q, want %q", tc.name, got, tc.want)
		}
	}
}
