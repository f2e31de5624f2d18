package vxlan

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

// usual returns the backend with devices named as the original names them.
func usual(c netconf.VXLAN) VXLAN { return New(c, Names(c.VNI)) }

func dual() backend.Self {
	return backend.Self{
		Identity: "id", Owner: "weft test",
		Network: family.Pair[lease.Network]{
			V4: lease.Network{Prefix: prefix("10.244.0.0/16"), Additional: ranges.Of(prefix("10.248.0.0/16"))}, V6: lease.Network{Prefix: prefix("fd24::/48")},
		},
		Uplink: uplink.Uplink{
			Name: "eth0", MTU: 1500,
			Addr:   family.Pair[netip.Addr]{V4: addr("10.77.0.1"), V6: addr("fd77::1")},
			Public: family.Pair[netip.Addr]{V4: addr("192.0.2.1"), V6: addr("fd77::1")},
		},
	}
}

func v4Only() backend.Self {
	s := dual()
	s.Network.V6 = lease.Network{}
	return s
}

func TestMTULeavesRoomForTheLargerOverhead(t *testing.T) {
	for _, tc := range []struct {
		name string
		self backend.Self
		conf netconf.VXLAN
		want int
	}{
		{"IPv4 subtracts 50", v4Only(), netconf.VXLAN{VNI: 1}, 1450},
		{"IPv6 underlay subtracts 70", dual(), netconf.VXLAN{VNI: 1}, 1430},
		{"MTU means that of the underlay", v4Only(), netconf.VXLAN{VNI: 1, MTU: 1400}, 1350},
		{"MTU above the interface's is the interface's", v4Only(), netconf.VXLAN{VNI: 1, MTU: 9000}, 1450},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := usual(tc.conf).MTU(tc.self); got != tc.want {
				t.Errorf("MTU = %d, want %d", got, tc.want)
			}
		})
	}
}

func TestPublishKeepsWhatPeersRelyOn(t *testing.T) {
	v := usual(netconf.VXLAN{VNI: 1})
	prior := lease.Receiver{Type: "vxlan", Data: family.Pair[string]{V4: `{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}`}}
	device := map[string]state.Link{"flannel.1": {Kind: "vxlan", MAC: state.MAC{2, 0, 0, 0, 0, 9}, VXLAN: state.VXLAN{VNI: 1}}}
	for _, tc := range []struct {
		name  string
		prior lease.Receiver
		links map[string]state.Link
		want  string
	}{
		{"an existing device's MAC wins", prior, device, `{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}`},
		{"else what was published before", prior, nil, `{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}`},
		{"a device of another VNI does not count", prior,
			map[string]state.Link{"flannel.1": {Kind: "vxlan", MAC: state.MAC{2, 0, 0, 0, 0, 9}, VXLAN: state.VXLAN{VNI: 7}}},
			`{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}`},
		{"what another backend published does not count", lease.Receiver{Type: "x", Data: prior.Data}, nil, ""},
		{"a multicast MAC is not taken over", lease.Receiver{Type: "vxlan", Data: family.Pair[string]{V4: `{"VtepMAC":"03:00:00:00:00:01"}`}}, nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := v.Publish(v4Only(), []lease.Receiver{tc.prior}, tc.links)
			want := tc.want
			if want == "" { // derived: the same every time
				want = v.Publish(v4Only(), nil, nil).Data.V4
			}
			if got.Data.V4 != want || got.Data.V6 != "" || got.Type != "vxlan" {
				t.Errorf("Publish = %+v, want %s", got, want)
			}
		})
	}
}

func TestReceiveMakesADevicePerFamily(t *testing.T) {
	self := dual()
	v := usual(netconf.VXLAN{VNI: 4096, Port: 4789, GBP: true})
	own := lease.Lease{
		Subnet: family.Pair[netip.Prefix]{V4: prefix("10.244.3.0/24"), V6: prefix("fd24:0:0:3::/64")},
		Receive: []lease.Receiver{{Key: "vxlan/4096/4789/gbp", Type: "vxlan", Data: family.Pair[string]{
			V4: `{"VNI":4096,"VtepMAC":"02:00:00:00:00:01"}`, V6: `{"VNI":4096,"VtepMAC":"02:00:00:00:00:02"}`,
		}}},
	}
	s := state.New()
	if err := v.Receive(self, own, &s); err != nil {
		t.Fatal(err)
	}
	want := map[string]state.Link{
		"flannel.4096": {Kind: "vxlan", MTU: 1450, MAC: state.MAC{2, 0, 0, 0, 0, 1}, Owner: "weft test", Prune: family.Pair[ranges.List]{V4: ranges.Of(prefix("10.244.0.0/16"), prefix("10.248.0.0/16"))},
			VXLAN: state.VXLAN{VNI: 4096, Port: 4789, Parent: "eth0", Local: addr("10.77.0.1"), GBP: true}},
		"flannel-v6.4096": {Kind: "vxlan", MTU: 1430, MAC: state.MAC{2, 0, 0, 0, 0, 2}, Owner: "weft test", Prune: family.Pair[ranges.List]{V6: ranges.Of(prefix("::/0"))},
			VXLAN: state.VXLAN{VNI: 4096, Port: 4789, Parent: "eth0", Local: addr("fd77::1"), GBP: true}},
	}
	opt := cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})
	if d := cmp.Diff(want, s.Links, opt); d != "" {
		t.Errorf("links (-want +got):\n%s", d)
	}
	for _, a := range []state.Address{
		{Dev: "flannel.4096", Prefix: prefix("10.244.3.0/32")}, {Dev: "flannel-v6.4096", Prefix: prefix("fd24:0:0:3::/128")},
	} {
		if !s.Addresses[a] {
			t.Errorf("no address %s in %v", a, s.Addresses)
		}
	}
}

func TestReachProgramsThreeEntriesPerPeer(t *testing.T) {
	v, s := usual(netconf.VXLAN{VNI: 1}), state.New()
	p := backend.Peer{
		Family: family.V6, Subnet: prefix("fd24:0:0:1::/64"), Public: addr("fd77::2"),
		Data: `{"VNI":1,"VtepMAC":"be:76:f7:f1:fc:89"}`,
	}
	way, route, err := v.Reach(p, &s)
	if err != nil {
		t.Fatal(err)
	}
	s.Routes[backend.Route(p.Subnet)] = route
	mac := state.MAC{0xbe, 0x76, 0xf7, 0xf1, 0xfc, 0x89}
	want := state.New()
	want.Routes[state.RouteKey{Dst: p.Subnet, Metric: 1024}] = state.Route{
		Type: state.Unicast, Via: addr("fd24:0:0:1::"), Dev: "flannel-v6.1", OnLink: true, Protocol: state.Protocol,
	}
	want.Neighbours[state.NeighbourKey{Dev: "flannel-v6.1", Addr: addr("fd24:0:0:1::")}] = mac
	want.FDB[state.FDBKey{Dev: "flannel-v6.1", MAC: mac}] = p.Public
	opt := cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})
	if d := cmp.Diff(want, s, opt); d != "" {
		t.Errorf("state (-want +got):\n%s", d)
	}
	if way.Name != "vxlan" || way.Dev != "flannel-v6.1" {
		t.Errorf("way = %+v", way)
	}
}

func TestReachRefusesWhatCannotWork(t *testing.T) {
	for name, data := range map[string]string{
		"nothing published": "", "no JSON": "x", "zero MAC": `{"VtepMAC":"00:00:00:00:00:00"}`,
		"multicast MAC": `{"VtepMAC":"01:00:5e:00:00:01"}`, "EUI-64": `{"VtepMAC":"02:00:00:00:00:00:00:01"}`,
		"own MAC": `{"VtepMAC":"02:00:00:00:00:01"}`, "another peer's MAC": `{"VtepMAC":"02:00:00:00:00:05"}`,
	} {
		t.Run(name, func(t *testing.T) {
			v, s := usual(netconf.VXLAN{VNI: 1}), state.New()
			s.Links["flannel.1"] = state.Link{MAC: state.MAC{2, 0, 0, 0, 0, 1}}
			s.FDB[state.FDBKey{Dev: "flannel.1", MAC: state.MAC{2, 0, 0, 0, 0, 5}}] = addr("10.77.0.9")
			p := backend.Peer{Subnet: prefix("10.244.1.0/24"), Public: addr("10.77.0.2"), Data: data}
			if way, _, err := v.Reach(p, &s); err == nil {
				t.Errorf("reached by %+v", way)
			}
			if len(s.Routes)+len(s.Neighbours) != 0 || len(s.FDB) != 1 {
				t.Errorf("state changed: %+v", s)
			}
		})
	}
}

// The text is cut, not decoded, by the original: byte for byte it is the contract.
func TestFormatIsTheOriginalsText(t *testing.T) {
	got := format(1, state.MAC{0xe2, 0x5e, 0xe5, 0x02, 0x97, 0x48})
	if want := `{"VNI":1,"VtepMAC":"e2:5e:e5:02:97:48"}`; got != want {
		t.Errorf("format = %s, want %s", got, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"VNI":1,"VtepMAC":"e2:5e:e5:02:97:48"}`)
	f.Add(`{"VNI":"1"}`)
	f.Fuzz(func(t *testing.T, text string) {
		mac, err := Parse(text)
		if err == nil && (mac == state.MAC{} || mac[0]&1 != 0) {
			t.Errorf("Parse(%q) = %s", text, mac)
		}
	})
}
