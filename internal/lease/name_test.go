package lease

import (
	"net/netip"
	"regexp"
	"strconv"
	"testing"

	"github.com/weftnet/weft/internal/family"
)

func pair(v4, v6 string) family.Pair[netip.Prefix] {
	var p family.Pair[netip.Prefix]
	if v4 != "" {
		p.V4 = netip.MustParsePrefix(v4)
	}
	if v6 != "" {
		p.V6 = netip.MustParsePrefix(v6)
	}
	return p
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ name, key, v4, v6 string }{
		{"IPv4 only", "/coreos.com/network/subnets/10.5.72.0-24", "10.5.72.0/24", ""},
		{"dual stack", "/coreos.com/network/subnets/10.5.72.0-24&fd05:0:0:6::-64", "10.5.72.0/24", "fd05:0:0:6::/64"},
		{"bare name", "10.5.72.0-24", "10.5.72.0/24", ""},
		{"a neighbouring directory", "/net/subnetsX/10.1.2.0-24", "10.1.2.0/24", ""},
		{"letters right before", "foo10.5.72.0-24", "10.5.72.0/24", ""},
		{"more than four numbers", "1.2.10.5.72.0-24", "10.5.72.0/24", ""},
		{"two names", "10.5.72.0-24&10.6.0.0-24", "10.6.0.0/24", ""},
		{"length with a leading zero", "10.5.72.0-024", "10.5.72.0/24", ""},
		{"the original's IPv6-only defect", "0.0.0.0-0&fd05::-64", "0.0.0.0/0", "fd05::/64"},
		{"longest", "10.5.72.2-31&fd05::2-127", "10.5.72.2/31", "fd05::2/127"},
		{"all zeros", "0.0.0.0-0&::-0", "0.0.0.0/0", "::/0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, ok := Parse(c.key); !ok || got != pair(c.v4, c.v6) {
				t.Errorf("Parse(%q) = %v, %t", c.key, got, ok)
			}
		})
	}
	for _, key := range []string{
		"", "-", "&", "10.5.72.0", "10.5.72-24", "10.5.72.300-24", "10.5.72.0-24x", "&fd05::-64", "10.5.72.0-24&fd05-64",
		"10.5.72.0-24&fd05::", "10.5.72.0-32", "10.5.72.0-24&fd05::-128", "10.5.72.0-24&FD05::-64", "10.5.72.0-24&fd05::-64&",
		"10.5.72.0-24/", "10.5.72.0--24", "10.5.72.0-+24", "10.5.72.0-", "-24", "010.5.72.0-24", "10.5.72.9-24",
		"10.5.72.0-24&fd05::1-64", "10.5.72.0-24&::ffff:a00:0-104", "fd05::-64", "10.5.72.0-99999999999999999999",
		"10.5.72.0-24&fd05::%25-64", "/net/subnets", "/net/subnets-meta/x", "10.5.72.0-24\n", "١٠.5.72.0-24",
	} {
		if got, ok := Parse(key); ok {
			t.Errorf("Parse(%q) = %v, want no lease", key, got)
		}
	}
}

func TestName(t *testing.T) {
	for _, c := range []struct{ v4, v6, want string }{
		{"10.5.72.0/24", "", "10.5.72.0-24"},
		{"10.5.72.0/24", "fd05:0:0:6::/64", "10.5.72.0-24&fd05:0:0:6::-64"},
		{"10.5.72.0/24", "fd05:0000:0000:0000:00AB::/80", "10.5.72.0-24&fd05::ab:0:0:0-80"},
		{"", "fd05:0:0:6::/64", "fd05:0:0:6::-64"},
	} {
		s := pair(c.v4, c.v6)
		if got := Name(s); got != c.want {
			t.Errorf("Name(%v) = %q, want %q", s, got, c.want)
		}
		parse := Parse
		if c.v4 == "" {
			parse = Parse6
		}
		if got, ok := parse(c.want); !ok || got != s {
			t.Errorf("reading %q: %v, %t", c.want, got, ok)
		}
	}
	for _, name := range []string{"", "10.5.72.0-24", "x/fd05::-64", "fd05::1-64", "fd05::-128", "10.5.72.0-24&fd05::-64"} {
		if got, ok := Parse6(name); ok {
			t.Errorf("Parse6(%q) = %v, want no lease", name, got)
		}
	}
}

// FuzzParse compares the parser with the grammar of the contract written as an expression.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"/net/subnets/10.5.72.0-24", "10.5.72.0-24&fd05:0:0:6::-64", "1.2.3.4.5.6-7", "&fd05::-64", "10.5.72.0-24&10.6.0.0-24", "a-1&b-2"} {
		f.Add(s)
	}
	grammar := regexp.MustCompile(`([0-9]+\.[0-9]+\.[0-9]+\.[0-9]+)-([0-9]+)(?:&([0-9a-f:]+)-([0-9]+))?\z`)
	f.Fuzz(func(t *testing.T, key string) {
		got, ok := Parse(key)
		var want family.Pair[netip.Prefix]
		wantOK := false
		if m := grammar.FindStringSubmatch(key); m != nil {
			want.V4, wantOK = part(m[1], m[2], 31)
			if m[3] != "" && wantOK {
				want.V6, wantOK = part(m[3], m[4], 127)
			}
		}
		if ok != wantOK || ok && got != want {
			t.Fatalf("Parse(%q) = %v, %t, the grammar says %v, %t", key, got, ok, want, wantOK)
		}
		if ok {
			if again, ok := Parse("/p/subnets/" + Name(got)); !ok || again != got {
				t.Fatalf("%q: %v becomes %v", key, got, again)
			}
		}
		if p, ok := Parse6(key); ok && (p.V4.IsValid() || !p.V6.IsValid()) {
			t.Fatalf("Parse6(%q) = %v", key, p)
		}
	})
}

func part(addr, length string, longest int) (netip.Prefix, bool) {
	a, err := netip.ParseAddr(addr)
	n, err2 := strconv.ParseUint(length, 10, 8)
	if err != nil || err2 != nil || int(n) > longest || a.Is4() != (longest == 31) || a.Is4In6() {
		return netip.Prefix{}, false
	}
	p := netip.PrefixFrom(a, int(n))
	return p, p == p.Masked()
}
