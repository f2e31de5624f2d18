package lease

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/weftnet/weft/internal/family"
)

// Name returns the name under which etcd knows the lease of subnets: "10.5.72.0-24" or
// "10.5.72.0-24&fd05:0:0:6::-64". Subnets without IPv4 have a form of our own, "fd05:0:0:6::-64", which
// the original does not know and must never see.
func Name(subnet family.Pair[netip.Prefix]) string {
	var parts []string
	for _, f := range family.All() {
		if p := subnet.Of(f); p.IsValid() {
			parts = append(parts, p.Addr().String()+"-"+strconv.Itoa(p.Bits()))
		}
	}
	return strings.Join(parts, "&")
}

// Parse reads the lease name at the end of key, whatever comes before it, as the original does:
// "/coreos.com/network/subnets/10.5.72.0-24" and "x10.5.72.0-24" both name 10.5.72.0/24. Unlike the
// original it takes a name with host bits set for no lease, since no route could lead there.
func Parse(key string) (family.Pair[netip.Prefix], bool) {
	var s family.Pair[netip.Prefix]
	var ok bool
	v4 := key
	if head, tail, found := cutLast(key, '&'); found && isName6(tail) {
		if s.V6, ok = parsePart(tail, 127); !ok {
			return family.Pair[netip.Prefix]{}, false
		}
		v4 = head
	}
	if s.V4, ok = parsePart(lastQuad(v4), 31); !ok {
		return family.Pair[netip.Prefix]{}, false
	}
	return s, true
}

// Parse6 reads a whole name of our own form for subnets without IPv4.
func Parse6(name string) (family.Pair[netip.Prefix], bool) {
	if !isName6(name) {
		return family.Pair[netip.Prefix]{}, false
	}
	p, ok := parsePart(name, 127)
	return family.Pair[netip.Prefix]{V6: p}, ok
}

func cutLast(s string, sep byte) (before, after string, found bool) {
	i := strings.LastIndexByte(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// isName6 says whether s has the shape "hex digits and colons, dash, digits"; upper case has not.
func isName6(s string) bool {
	addr, bits, found := cutLast(s, '-')
	return found && addr != "" && bits != "" &&
		strings.Trim(addr, "0123456789abcdef:") == "" && strings.Trim(bits, "0123456789") == ""
}

// lastQuad returns the "n.n.n.n-n" at the end of s, or "". Of more than four numbers it takes the last
// four, as the original's expression does.
func lastQuad(s string) string {
	i := strings.LastIndexByte(s, '-')
	if i < 0 {
		return ""
	}
	for start, dots := i, 0; ; start-- {
		if start == 0 {
			return s
		}
		switch c := s[start-1]; {
		case c == '.' && dots < 3:
			dots++
		case c < '0' || c > '9':
			return s[start:]
		}
	}
}

// parsePart reads "address-length" of one family.
func parsePart(s string, maxBits int) (netip.Prefix, bool) {
	text, length, _ := cutLast(s, '-')
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Is4() != (maxBits < 32) || addr.Is4In6() {
		return netip.Prefix{}, false
	}
	bits, err := strconv.ParseUint(length, 10, 8)
	if err != nil || int(bits) > maxBits {
		return netip.Prefix{}, false
	}
	p := netip.PrefixFrom(addr, int(bits))
	return p, p == p.Masked()
}
