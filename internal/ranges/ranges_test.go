package ranges

import (
	"net/netip"
	"slices"
	"testing"
)

func prefixes(texts ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, t := range texts {
		ps = append(ps, netip.MustParsePrefix(t))
	}
	return ps
}

func TestList(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   []netip.Prefix
		want string
	}{
		{"nothing", nil, ""},
		{"nothing valid", []netip.Prefix{{}}, ""},
		{"one", prefixes("10.244.0.0/16"), "10.244.0.0/16"},
		{"host bits go, the order stays", prefixes("10.248.1.2/16", "10.244.0.0/16"), "10.248.0.0/16,10.244.0.0/16"},
		{"IPv6", prefixes("fd24::/48", "fd42:0:1::/48"), "fd24::/48,fd42:0:1::/48"},
	} {
		l := Of(tc.in...)
		if l.String() != tc.want || l.Empty() != (tc.want == "") {
			t.Errorf("%s: got %q, empty %v", tc.name, l, l.Empty())
		}
		if again := Of(l.Prefixes()...); again != l || !again.Equal(l) {
			t.Errorf("%s: became %q", tc.name, again)
		}
	}
	if got := Of().Prefixes(); got != nil {
		t.Errorf("nothing has %v", got)
	}
}

func TestContains(t *testing.T) {
	l := Of(prefixes("10.244.0.0/16", "10.248.0.0/16", "fd24::/48")...)
	for addr, want := range map[string]bool{
		"10.244.0.0": true, "10.248.255.255": true, "10.245.0.1": false, "fd24::1": true, "fd25::1": false, "::ffff:10.244.0.1": false,
	} {
		if got := l.Contains(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: got %v", addr, got)
		}
	}
	if (List{}).Contains(netip.MustParseAddr("10.244.0.1")) {
		t.Error("the empty list contains something")
	}
}

func TestAllEndsWhereItIsLeft(t *testing.T) {
	l := Of(prefixes("10.244.0.0/16", "10.248.0.0/16")...)
	for p := range l.All() {
		if !slices.Contains(prefixes("10.244.0.0/16"), p) {
			t.Errorf("went on to %s", p)
		}
		break
	}
}
