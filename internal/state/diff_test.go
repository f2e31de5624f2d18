package state

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// What Diff says to set and to delete turns have into want, each key once and in order, and then nothing is
// left to do.
func TestDiffTurnsHaveIntoWant(t *testing.T) {
	key := rapid.Custom(func(t *rapid.T) RouteKey {
		b := rapid.Byte().Draw(t, "subnet")
		return RouteKey{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, b % 8, 0}), 24), Metric: rapid.IntRange(0, 1).Draw(t, "metric")}
	})
	routes := rapid.MapOf(key, rapid.Custom(func(t *rapid.T) Route {
		return Route{Type: Unicast, Dev: rapid.SampledFrom([]string{"eth0", "flannel.1"}).Draw(t, "dev")}
	}))
	rapid.Check(t, func(t *rapid.T) {
		have, want := routes.Draw(t, "have"), routes.Draw(t, "want")
		set, del := Diff(have, want)
		for _, ks := range [][]RouteKey{set, del} {
			if !slices.IsSortedFunc(ks, RouteKey.Compare) || len(slices.CompactFunc(slices.Clone(ks), func(a, b RouteKey) bool { return a == b })) != len(ks) {
				t.Fatalf("not in order, or twice: %v", ks)
			}
		}
		got := maps.Clone(have)
		for _, k := range set {
			if v, ok := have[k]; ok && v == want[k] {
				t.Fatalf("%s is set although it is right", k)
			}
			got[k] = want[k]
		}
		for _, k := range del {
			delete(got, k)
		}
		if !maps.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		if set, del := Diff(got, want); len(set)+len(del) != 0 {
			t.Fatalf("still to do: %v %v", set, del)
		}
	})
}

func TestObjectsReadAsTheToolsPrintThem(t *testing.T) {
	via := netip.MustParseAddr("10.244.1.0")
	for _, tc := range []struct{ got, want string }{
		{RouteKey{Dst: netip.MustParsePrefix("10.244.1.0/24")}.String(), "10.244.1.0/24"},
		{RouteKey{Dst: netip.MustParsePrefix("fd24::/64"), Metric: 1024}.String(), "fd24::/64 metric 1024"},
		{Route{Type: Unicast, Via: via, Dev: "flannel.1", OnLink: true, Protocol: Protocol}.String(), "via 10.244.1.0 dev flannel.1 onlink"},
		{Route{Type: Unicast, Dev: "eth0", Protocol: ProtocolBoot}.String(), "dev eth0 proto 3"},
		{Route{Type: Blackhole, Protocol: Protocol}.String(), "blackhole"},
		{MAC{0xbe, 0x76, 0xf7, 0xf1, 0xfc, 0x89}.String(), "be:76:f7:f1:fc:89"},
	} {
		if tc.got != tc.want {
			t.Errorf("%q, want %q", tc.got, tc.want)
		}
	}
}

func TestChangesAreReadableJSON(t *testing.T) {
	raw, err := json.Marshal(Change{Op: Add, Kind: "route", Object: "10.244.1.0/24", Want: "dev eth0"})
	if want := `{"op":"add","kind":"route","object":"10.244.1.0/24","want":"dev eth0"}`; err != nil || string(raw) != want {
		t.Errorf("%s, %v; want %s", raw, err, want)
	}
}
