package lease

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weftnet/weft/internal/family"
)

func network(prefix string, length int, first, last string) Network {
	return Network{Prefix: netip.MustParsePrefix(prefix), SubnetLen: length, Min: netip.MustParseAddr(first), Max: netip.MustParseAddr(last)}
}

func seeded() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

func prefixes(ss ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func TestFreeTakesTheOnlyOneLeft(t *testing.T) {
	for _, c := range []struct {
		name  string
		n     Network
		taken []netip.Prefix
		want  string
	}{
		{"last", network("10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0"), prefixes("10.5.1.0/24", "10.5.2.0/24"), "10.5.3.0/24"},
		{"first", network("10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0"), prefixes("10.5.3.0/24", "10.5.2.0/24"), "10.5.1.0/24"},
		{"behind a larger one", network("10.5.0.0/21", 24, "10.5.1.0", "10.5.4.0"), prefixes("10.5.0.0/22"), "10.5.4.0/24"},
		{"beside smaller ones", network("10.5.0.0/22", 24, "10.5.1.0", "10.5.2.0"), prefixes("10.5.1.4/30", "10.5.1.0/25"), "10.5.2.0/24"},
		{"others overlap each other", network("10.5.0.0/21", 24, "10.5.0.0", "10.5.4.0"), prefixes("10.5.0.0/22", "10.5.0.0/24", "10.5.3.0/24"), "10.5.4.0/24"},
		{"someone claims the world", network("10.5.0.0/22", 24, "10.5.3.0", "10.5.3.0"), prefixes("0.0.0.0/0", "10.5.0.0/22", "10.0.0.0/8"), "10.5.3.0/24"},
		{"at the end of IPv4", network("255.255.252.0/22", 24, "255.255.254.0", "255.255.255.0"), prefixes("255.255.254.0/24"), "255.255.255.0/24"},
		{"IPv6", network("fd05::/62", 64, "fd05:0:0:1::", "fd05:0:0:3::"), prefixes("fd05:0:0:1::/64", "fd05:0:0:3::/64"), "fd05:0:0:2::/64"},
		{"IPv6, odd length", network("fd05::/112", 114, "fd05::4000", "fd05::c000"), prefixes("fd05::4000/114", "fd05::c001/128"), "fd05::8000/114"},
		{"at the end of IPv6", network("ffff:ffff:ffff:fffc::/62", 64, "ffff:ffff:ffff:ffff::", "ffff:ffff:ffff:ffff::"), nil, "ffff:ffff:ffff:ffff::/64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Free(c.n, c.taken, 100, seeded())
			if err != nil || got.String() != c.want {
				t.Errorf("got %v, %v, want %s", got, err, c.want)
			}
			if _, err := Free(c.n, append(c.taken, got), 100, seeded()); !errors.Is(err, ErrFull) {
				t.Errorf("one more: got %v, want ErrFull", err)
			}
		})
	}
}

func TestFreeOfAnOddNetworkIsFull(t *testing.T) {
	for name, n := range map[string]Network{
		"off":                 {},
		"min above max":       network("10.5.0.0/16", 24, "10.5.9.0", "10.5.1.0"),
		"min outside":         network("10.5.0.0/16", 24, "10.6.0.0", "10.6.9.0"),
		"min of other family": network("10.5.0.0/16", 24, "::", "::1"),
	} {
		if got, err := Free(n, nil, 100, seeded()); !errors.Is(err, ErrFull) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
}

func TestFreeChoosesAmongTheFirstHundred(t *testing.T) {
	n := network("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0")
	seen := map[netip.Prefix]bool{}
	r := seeded()
	for range 5000 {
		p, err := Free(n, prefixes("10.0.1.0/24", "10.0.3.0/24"), 100, r)
		if err != nil || !n.Fits(p) {
			t.Fatalf("%v, %v", p, err)
		}
		seen[p] = true
	}
	if len(seen) != 100 || seen[prefixes("10.0.103.0/24")[0]] || !seen[prefixes("10.0.102.0/24")[0]] {
		t.Errorf("%d different ones", len(seen))
	}
}

func TestFreeNeverOverlaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(26, 30).Draw(t, "length")
		n := network("192.168.0.0/24", bits, "192.168.0.0", "192.168.0.0")
		n.Max = netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 0, 255}), bits).Masked().Addr()
		var taken []netip.Prefix
		for range rapid.IntRange(0, 20).Draw(t, "others") {
			last := byte(rapid.IntRange(0, 255).Draw(t, "address"))
			taken = append(taken, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 0, last}), rapid.IntRange(23, 32).Draw(t, "bits")).Masked())
		}
		free := map[netip.Prefix]bool{} // by trying each
		for a := n.Min; n.Prefix.Contains(a); a, _ = after(netip.PrefixFrom(a, bits)) {
			p := netip.PrefixFrom(a, bits)
			free[p] = true
			for _, o := range taken {
				if o.Bits() > 24 && o.Overlaps(p) {
					delete(free, p)
				}
			}
		}
		got, err := Free(n, taken, 100, rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)))
		if (err == nil) != (len(free) > 0) || err == nil && !free[got] {
			t.Fatalf("taken %v: got %v, %v", taken, got, err)
		}
	})
}

func TestFreeIsQuickInALargeNetwork(t *testing.T) {
	n := network("fd00::/8", 64, "fd00:0:0:1::", "fdff:ffff:ffff:ffff::")
	var taken []netip.Prefix
	a := n.Min
	for range 5000 {
		p := netip.PrefixFrom(a, 64)
		taken = append(taken, p)
		a, _ = after(p)
	}
	taken = append(taken, netip.MustParsePrefix("fd00::/9")) // half of the network
	start := time.Now()
	got, err := Free(n, taken, 100, seeded())
	if err != nil || !n.Fits(got) || taken[5000].Overlaps(got) {
		t.Errorf("got %v, %v", got, err)
	}
	if took := time.Since(start); took > 10*time.Second { // without skipping it would not end
		t.Errorf("took %s", took)
	}
}

func TestFits(t *testing.T) {
	n4 := network("10.5.0.0/16", 24, "10.5.1.0", "10.5.200.0")
	n6 := network("fd05::/48", 64, "fd05:0:0:1::", "fd05:0:0:ffff::")
	dual := family.Pair[Network]{V4: n4, V6: n6}
	for _, c := range []struct {
		name   string
		n      family.Pair[Network]
		v4, v6 string
		want   bool
	}{
		{"both", dual, "10.5.1.0/24", "fd05:0:0:1::/64", true},
		{"both, last", dual, "10.5.200.0/24", "fd05:0:0:ffff::/64", true},
		{"IPv6 missing", dual, "10.5.1.0/24", "", false},
		{"IPv4 missing", dual, "", "fd05:0:0:1::/64", false},
		{"IPv6 too many", family.Pair[Network]{V4: n4}, "10.5.1.0/24", "fd05:0:0:1::/64", false},
		{"IPv4 too many", family.Pair[Network]{V6: n6}, "10.5.1.0/24", "fd05:0:0:1::/64", false},
		{"IPv4 alone", family.Pair[Network]{V4: n4}, "10.5.1.0/24", "", true},
		{"below min", family.Pair[Network]{V4: n4}, "10.5.0.0/24", "", false},
		{"above max", family.Pair[Network]{V4: n4}, "10.5.201.0/24", "", false},
		{"other length", family.Pair[Network]{V4: n4}, "10.5.2.0/25", "", false},
		{"host bits", family.Pair[Network]{V4: n4}, "10.5.2.1/24", "", false},
		{"outside", family.Pair[Network]{V4: n4}, "10.6.2.0/24", "", false},
	} {
		if got := Fits(c.n, pair(c.v4, c.v6)); got != c.want {
			t.Errorf("%s: got %t", c.name, got)
		}
	}
}

func BenchmarkFree5000(b *testing.B) {
	n := network("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0")
	var taken []netip.Prefix
	a := n.Min
	for range 5000 {
		taken = append(taken, netip.PrefixFrom(a, 24))
		a, _ = after(taken[len(taken)-1])
	}
	r := seeded()
	for b.Loop() {
		if _, err := Free(n, taken, 100, r); err != nil {
			b.Fatal(err)
		}
	}
}
