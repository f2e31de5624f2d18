package lease

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/family"
)

func TestChoose(t *testing.T) {
	v4 := family.Pair[Network]{V4: network("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0")}
	dual := family.Pair[Network]{V4: v4.V4, V6: network("fd05::/48", 64, "fd05:0:0:1::", "fd05:0:0:ffff::")}
	other := func(v4, v6 string) Entry { return Entry{Lease: Lease{Subnet: pair(v4, v6)}} }
	mine := func(v4, v6 string) Entry { return Entry{Lease: Lease{Subnet: pair(v4, v6)}, Mine: true} }
	reserved := func(e Entry) Entry { e.Reserved = true; return e }

	for _, c := range []struct {
		name         string
		network      family.Pair[Network]
		prior        family.Pair[netip.Prefix]
		entries      []Entry
		keep         int
		drop         []int
		reserved     bool
		want4, want6 string // empty: any that fits and overlaps nothing, or none if the family is off
	}{
		{name: "nothing known", network: v4, keep: -1},
		{name: "own lease fits", network: v4, entries: []Entry{other("10.5.1.0/24", ""), mine("10.5.7.0/24", "")}, keep: 1, want4: "10.5.7.0/24"},
		{name: "own lease with the prior subnet comes first", network: v4, prior: pair("10.5.9.0/24", ""),
			entries: []Entry{mine("10.5.7.0/24", ""), mine("10.5.9.0/24", "")}, keep: 1, want4: "10.5.9.0/24"},
		{name: "own lease counts before a prior subnet", network: v4, prior: pair("10.5.9.0/24", ""),
			entries: []Entry{mine("10.5.7.0/24", "")}, keep: 0, want4: "10.5.7.0/24"},
		{name: "own lease outside the network goes", network: v4, entries: []Entry{mine("10.6.7.0/24", "")}, keep: -1, drop: []int{0}},
		{name: "own lease of another length goes", network: v4, entries: []Entry{mine("10.5.7.0/25", "")}, keep: -1, drop: []int{0}},
		{name: "of two own leases the one outside goes", network: v4, entries: []Entry{mine("10.4.7.0/24", ""), mine("10.5.7.0/24", "")}, keep: 1, drop: []int{0}, want4: "10.5.7.0/24"},
		{name: "prior subnet is free", network: v4, prior: pair("10.5.9.0/24", ""), entries: []Entry{other("10.5.8.0/24", "")}, keep: -1, want4: "10.5.9.0/24"},
		{name: "prior subnet of both families", network: dual, prior: pair("10.5.9.0/24", "fd05:0:0:9::/64"), keep: -1, want4: "10.5.9.0/24", want6: "fd05:0:0:9::/64"},
		{name: "IPv6 turned on", network: dual, entries: []Entry{mine("10.5.7.0/24", "")}, keep: -1, drop: []int{0}, want4: "10.5.7.0/24"},
		{name: "IPv6 turned off", network: v4, entries: []Entry{mine("10.5.7.0/24", "fd05:0:0:7::/64")}, keep: -1, drop: []int{0}, want4: "10.5.7.0/24"},
		{name: "IPv6 turned on, after a day away", network: dual, prior: pair("10.5.7.0/24", ""), keep: -1, want4: "10.5.7.0/24"},
		{name: "IPv6 network moved", network: dual, entries: []Entry{mine("10.5.7.0/24", "fd06:0:0:7::/64")}, keep: -1, drop: []int{0}, want4: "10.5.7.0/24"},
		{name: "reservation of ours", network: v4, entries: []Entry{reserved(mine("10.5.7.0/24", ""))}, keep: 0, reserved: true, want4: "10.5.7.0/24"},
		{name: "reservation of ours, IPv6 turned on", network: dual, entries: []Entry{reserved(mine("10.5.7.0/24", ""))}, keep: -1, drop: []int{0}, reserved: true, want4: "10.5.7.0/24"},
		{name: "reservation of ours outside the network stays", network: v4, entries: []Entry{reserved(mine("10.6.7.0/24", ""))}, keep: -1},
		{name: "someone claims the world", network: v4, prior: pair("10.5.9.0/24", ""), entries: []Entry{other("0.0.0.0/0", "::/0")}, keep: -1, want4: "10.5.9.0/24"},
	} {
		t.Run(c.name, func(t *testing.T) {
			self := Self{Network: c.network, Prior: c.prior, Public: family.Pair[netip.Addr]{
				V4: netip.MustParseAddr("192.0.2.1"), V6: netip.MustParseAddr("2001:db8::1")}}
			got, err := Choose(self, c.entries, 100, seeded())
			if err != nil {
				t.Fatal(err)
			}
			if got.Keep != c.keep || !slices.Equal(got.Drop, c.drop) || got.Reserved != c.reserved {
				t.Errorf("got %+v", got)
			}
			if !Fits(c.network, got.Subnet) {
				t.Errorf("%v does not fit", got.Subnet)
			}
			if c.want4 != "" && got.Subnet.V4.String() != c.want4 || c.want6 != "" && got.Subnet.V6.String() != c.want6 {
				t.Errorf("got %v", got.Subnet)
			}
		})
	}
}

func TestChooseDoesNotTakeAPriorSubnetThatOverlapsAnother(t *testing.T) {
	self := Self{Network: family.Pair[Network]{V4: network("10.5.0.0/22", 24, "10.5.1.0", "10.5.2.0")},
		Public: family.Pair[netip.Addr]{V4: netip.MustParseAddr("192.0.2.1")}, Prior: pair("10.5.1.0/24", "")}
	got, err := Choose(self, []Entry{{Lease: Lease{Subnet: pair("10.5.1.128/25", "")}}}, 100, seeded())
	if err != nil || got.Subnet != pair("10.5.2.0/24", "") {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestChooseSaysWhatIsMissing(t *testing.T) {
	n4 := family.Pair[Network]{V4: network("10.5.0.0/22", 24, "10.5.1.0", "10.5.1.0")}
	a4 := netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		self Self
		want string
	}{
		{Self{}, "neither IPv4 nor IPv6"},
		{Self{Network: n4}, "no public IPv4 address"},
		{Self{Network: n4, Public: family.Pair[netip.Addr]{V4: netip.IPv4Unspecified()}}, "no public IPv4 address"},
		{Self{Network: family.Pair[Network]{V6: network("fd05::/48", 64, "fd05::", "fd05::")}, Public: family.Pair[netip.Addr]{V6: a4}}, "no public IPv6 address"},
	} {
		if _, err := Choose(c.self, nil, 100, seeded()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
	full := []Entry{{Lease: Lease{Subnet: pair("10.5.1.0/24", "")}}}
	if _, err := Choose(Self{Network: n4, Public: family.Pair[netip.Addr]{V4: a4}}, full, 100, seeded()); !errors.Is(err, ErrFull) {
		t.Errorf("got %v, want ErrFull", err)
	}
}

func TestRecall(t *testing.T) {
	self := Self{Network: family.Pair[Network]{V4: network("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0")}}
	entries := []Entry{{Lease: Lease{Subnet: pair("10.4.1.0/24", "")}, Mine: true}, {Lease: Lease{Subnet: pair("10.5.1.0/24", "")}}}
	if l, ok := Recall(self, entries); !ok || l.Subnet != entries[0].Subnet {
		t.Errorf("only one that does not fit: got %v, %t", l, ok)
	}
	entries[1].Mine = true
	if l, ok := Recall(self, entries); !ok || l.Subnet != entries[1].Subnet {
		t.Errorf("one that fits: got %v, %t", l, ok)
	}
	if l, ok := Recall(self, nil); ok {
		t.Errorf("none: got %v", l)
	}
}
