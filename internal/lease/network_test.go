package lease

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/ranges"
)

// more adds ranges to a network.
func more(n Network, texts ...string) Network {
	n.Additional = ranges.Of(prefixes(texts...)...)
	return n
}

func TestPartsAreTheRangesInOrder(t *testing.T) {
	n := more(network("10.5.0.0/16", 24, "10.5.7.0", "10.5.9.0"), "10.8.0.0/22", "10.7.0.0/16")
	want := []Network{
		network("10.5.0.0/16", 24, "10.5.7.0", "10.5.9.0"),
		network("10.8.0.0/22", 24, "10.8.1.0", "10.8.3.0"),
		network("10.7.0.0/16", 24, "10.7.1.0", "10.7.255.0"),
	}
	got := n.Parts()
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("got %v, want %v", got, want)
	}
	if r := n.Ranges().String(); r != "10.5.0.0/16,10.8.0.0/22,10.7.0.0/16" {
		t.Errorf("ranges %s", r)
	}
	kube := Network{Prefix: n.Prefix, Additional: n.Additional}.Parts()
	if len(kube) != 3 || kube[1] != (Network{Prefix: prefixes("10.8.0.0/22")[0]}) {
		t.Errorf("without a length: %v", kube)
	}
	if off := (Network{}); off.Parts() != nil || !off.Ranges().Empty() || off.Contains(netip.MustParseAddr("10.5.0.1")) {
		t.Error("a network that is off has ranges")
	}
}

func TestFitsInAdditionalRanges(t *testing.T) {
	n := more(network("10.5.0.0/16", 24, "10.5.7.0", "10.5.9.0"), "10.8.0.0/22", "10.7.0.0/16")
	for subnet, want := range map[string]bool{
		"10.5.7.0/24": true, "10.8.1.0/24": true, "10.8.3.0/24": true, "10.7.255.0/24": true,
		"10.5.10.0/24": false, // behind SubnetMax, which is about Network
		"10.8.0.0/24":  false, // the range's own address
		"10.7.0.0/24":  false, "10.8.4.0/24": false, "10.6.1.0/24": false, "10.8.1.0/25": false, "10.8.1.1/24": false, "10.8.0.0/22": false,
	} {
		if got := n.Fits(netip.MustParsePrefix(subnet)); got != want {
			t.Errorf("%s: %v", subnet, got)
		}
	}
}

func TestAround(t *testing.T) {
	n := more(Network{Prefix: prefixes("10.5.0.0/16")[0]}, "10.8.0.0/22")
	for subnet, want := range map[string]string{
		"10.5.0.0/17": "10.5.0.0/16", "10.8.0.0/24": "10.8.0.0/22", "10.8.3.255/32": "10.8.0.0/22",
		"10.5.0.0/16": "", "10.8.0.0/22": "", "10.8.4.0/24": "", "0.0.0.0/0": "", "::/64": "", "fd00::/64": "",
	} {
		if got := n.Around(netip.MustParsePrefix(subnet)); got.IsValid() != (want != "") || got.IsValid() && got.String() != want {
			t.Errorf("%s lies in %s", subnet, got)
		}
	}
	if got := n.Around(netip.Prefix{}); got.IsValid() {
		t.Errorf("nothing lies in %s", got)
	}
}

func TestLost(t *testing.T) {
	of := func(first string, others ...string) Network {
		return more(Network{Prefix: prefixes(first)[0]}, others...)
	}
	old := of("10.244.0.0/16", "10.248.0.0/16")
	for _, tc := range []struct {
		name string
		next Network
		want string
	}{
		{"the same", old, ""},
		{"one more", of("10.244.0.0/16", "10.248.0.0/16", "10.250.0.0/16"), ""},
		{"the other way round", of("10.248.0.0/16", "10.244.0.0/16"), ""},
		{"Network holds both", of("10.240.0.0/12"), ""},
		{"an additional one is wider", of("10.244.0.0/16", "10.248.0.0/15"), ""},
		{"an additional one holds Network", of("10.9.0.0/16", "10.240.0.0/12"), ""},
		{"one removed", of("10.244.0.0/16"), "10.248.0.0/16"},
		{"Network removed", of("10.248.0.0/16"), "10.244.0.0/16"},
		{"one narrowed", of("10.244.0.0/16", "10.248.0.0/17"), "10.248.0.0/16"},
		{"two halves, as a subnet may lie across them", of("10.244.0.0/16", "10.248.0.0/17", "10.248.128.0/17"), "10.248.0.0/16"},
		{"off", Network{}, "10.244.0.0/16"},
	} {
		if got := old.Lost(tc.next); got.IsValid() != (tc.want != "") || got.IsValid() && got.String() != tc.want {
			t.Errorf("%s: got %s, want %q", tc.name, got, tc.want)
		}
	}
	if got := (Network{}).Lost(old); got.IsValid() {
		t.Errorf("off before: %s", got)
	}
}

func TestFreeGoesOnToTheNextRange(t *testing.T) {
	n := more(network("10.5.0.0/22", 24, "10.5.1.0", "10.5.1.0"), "10.8.0.0/22", "10.7.0.0/22")
	for _, tc := range []struct {
		name  string
		taken []netip.Prefix
		want  string // range
	}{
		{"Network has one", prefixes("10.8.1.0/24"), "10.5.0.0/22"},
		{"Network is full", prefixes("10.5.1.0/24"), "10.8.0.0/22"},
		{"so is the next", prefixes("10.5.1.0/24", "10.8.1.0/24", "10.8.2.0/23"), "10.7.0.0/22"},
		{"someone claims more than a range", prefixes("10.5.1.0/24", "10.8.0.0/21"), "10.8.0.0/22"},
		{"someone claims a range", prefixes("10.5.1.0/24", "10.8.0.0/22"), "10.8.0.0/22"},
	} {
		got, err := Free(n, tc.taken, 100, seeded())
		if err != nil || n.Around(got).String() != tc.want || !n.Fits(got) {
			t.Errorf("%s: got %s, %v", tc.name, got, err)
		}
	}
	_, err := Free(n, prefixes("10.5.1.0/24", "10.8.0.0/23", "10.8.2.0/23", "10.7.0.0/23", "10.7.2.0/23"), 100, seeded())
	const want = "no free /24 in 10.5.0.0/22 between 10.5.1.0 and 10.5.1.0, nor in 10.8.0.0/22,10.7.0.0/22: network is full"
	if !errors.Is(err, ErrFull) || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

func TestChooseInAdditionalRanges(t *testing.T) {
	n := family.Pair[Network]{V4: more(network("10.5.0.0/22", 24, "10.5.1.0", "10.5.1.0"), "10.8.0.0/22")}
	entry := func(subnet string, mine bool) Entry { return Entry{Lease: Lease{Subnet: pair(subnet, "")}, Mine: mine} }
	full := entry("10.5.1.0/24", false)
	for _, tc := range []struct {
		name    string
		prior   string
		entries []Entry
		keep    int
		drop    int
		want    string // empty: any of the additional range
	}{
		{"Network is full", "", []Entry{full}, -1, 0, ""},
		{"the own lease there stays, although Network has room", "", []Entry{entry("10.8.2.0/24", true)}, 0, 0, "10.8.2.0/24"},
		{"the prior subnet there is taken again, although Network has room", "10.8.2.0/24", nil, -1, 0, "10.8.2.0/24"},
		{"the prior subnet there is another's", "10.8.2.0/24", []Entry{full, entry("10.8.2.0/24", false), entry("10.8.1.0/24", false)}, -1, 0, "10.8.3.0/24"},
		{"the prior subnet there, and someone claims the whole range", "10.8.2.0/24", []Entry{entry("10.8.0.0/22", false)}, -1, 0, "10.8.2.0/24"},
		{"pods have the first subnet, of when the range was Network", "10.8.0.0/24", []Entry{entry("10.8.0.0/24", true)}, 0, 0, "10.8.0.0/24"},
		{"nobody has the first one", "", []Entry{full, entry("10.8.0.0/24", true)}, -1, 1, ""},
		{"the own lease outside goes", "", []Entry{entry("10.9.1.0/24", true)}, -1, 1, "10.5.1.0/24"},
	} {
		prior := pair(tc.prior, "")
		self := Self{Network: n, Prior: prior, Public: family.Pair[netip.Addr]{V4: netip.MustParseAddr("192.0.2.1")}}
		got, err := Choose(self, tc.entries, 100, seeded())
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if got.Keep != tc.keep || len(got.Drop) != tc.drop {
			t.Errorf("%s: got %+v", tc.name, got)
		}
		if tc.want == "" && (n.V4.Around(got.Subnet.V4) != prefixes("10.8.0.0/22")[0] || !Fits(n, got.Subnet)) || tc.want != "" && got.Subnet != pair(tc.want, "") {
			t.Errorf("%s: got %v", tc.name, got.Subnet)
		}
	}
}
