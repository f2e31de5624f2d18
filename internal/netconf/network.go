package netconf

import (
	"encoding/json"
	"net/netip"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/ranges"
)

// rawNetwork is one family's part of the document.
type rawNetwork struct {
	family     family.Family
	enabled    bool
	prefix     json.RawMessage
	len        uint
	min, max   json.RawMessage
	additional json.RawMessage
}

// field returns the key of this family: Network or IPv6Network.
func (r rawNetwork) field(key string) string {
	if r.family == family.V6 {
		return "IPv6" + key
	}
	return key
}

// network checks one family. Whatever does not decode is a problem even where the value has no effect.
func (p *parser) network(r rawNetwork) lease.Network {
	var prefix netip.Prefix
	ok := true
	if r.prefix != nil {
		prefix, ok = p.prefix(r, r.field("Network"), r.prefix)
	}
	first, ok1 := p.addr(r, "SubnetMin", r.min)
	last, ok2 := p.addr(r, "SubnetMax", r.max)
	more, ok3 := p.additional(r)
	given := r.prefix != nil
	switch {
	case !r.enabled:
		p.off(r, given, len(more) > 0)
		return lease.Network{}
	case !given:
		p.problem(r.field("Network"), "missing: the range of all pods, such as %s, or \"Enable%s\": false", r.example(), r.family)
	}
	ok = given && ok && ok1 && ok2 && p.usable(r, r.field("Network"), prefix)
	if apart := p.apart(r, prefix, more); !ok || !ok3 || !apart {
		return lease.Network{}
	}
	n := lease.Network{Prefix: prefix, Additional: ranges.Of(more...)}
	if p.store == Kubernetes {
		if r.len != 0 || first.IsValid() || last.IsValid() {
			p.warn(r.field("Network"), "length, first and last subnet have no effect with the Kubernetes store: "+
				"kube-controller-manager cuts the subnets (--node-cidr-mask-size)")
		}
		return n
	}
	n.Min, n.Max = first, last
	return p.cut(r, n)
}

// off warns of what is given for a family that is off.
func (p *parser) off(r rawNetwork, network, more bool) {
	const text = "has no effect: Enable%s is off"
	if network {
		p.warn(r.field("Network"), text, r.family)
	}
	if more {
		p.warn(r.field(additional), text, r.family)
	}
}

func (r rawNetwork) example() string {
	if r.family == family.V6 {
		return "fd24::/48"
	}
	return "10.244.0.0/16"
}

// prefix decodes a range, without its host bits.
func (p *parser) prefix(r rawNetwork, field string, raw json.RawMessage) (netip.Prefix, bool) {
	var text string
	if err := json.Unmarshal(raw, &text); err != nil || text == "" {
		p.problem(field, "must be an %s prefix in quotes, such as \"%s\"", r.family, r.example())
		return netip.Prefix{}, false
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil || family.Of(prefix.Addr()) != r.family || prefix.Addr().Is4In6() {
		p.problem(field, "%q is not an %s prefix such as %s", clip(text), r.family, r.example())
		return netip.Prefix{}, false
	}
	if prefix != prefix.Masked() {
		p.warn(field, "%s has host bits, taken as %s", prefix, prefix.Masked())
	}
	return prefix.Masked(), true
}

// addr decodes SubnetMin or SubnetMax. The unspecified address means unset, as does null for IPv6.
func (p *parser) addr(r rawNetwork, key string, raw json.RawMessage) (netip.Addr, bool) {
	if raw == nil || r.family == family.V6 && string(raw) == "null" {
		return netip.Addr{}, true
	}
	var text string
	err := json.Unmarshal(raw, &text)
	a, parseErr := netip.ParseAddr(text)
	if err != nil || parseErr != nil || family.Of(a) != r.family || a.Is4In6() || a.Zone() != "" {
		p.problem(r.field(key), "%s is not an %s address in quotes, such as \"%s\"", clip(string(raw)), r.family,
			netip.MustParsePrefix(r.example()).Addr())
		return netip.Addr{}, false
	}
	if a.IsUnspecified() {
		return netip.Addr{}, true
	}
	return a, true
}

// unroutable are ranges that the kernel does not route.
func unroutable() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/4"),
		netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
	}
}

// private are the ranges whose use hides nobody on the Internet: RFC 1918, 6598, 3927, 2544, 1112.
func private() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("198.18.0.0/15"),
		netip.MustParsePrefix("240.0.0.0/4"),
	}
}

func (p *parser) usable(r rawNetwork, field string, prefix netip.Prefix) bool {
	if prefix.Bits() == 0 {
		p.problem(field, "%s is every address there is: give the range of the pods, such as %s", prefix, r.example())
		return false
	}
	for _, no := range unroutable() {
		if prefix.Overlaps(no) {
			p.problem(field, "%s overlaps %s, which is not routed: choose a range such as %s", prefix, no, r.example())
			return false
		}
	}
	if r.family == family.V6 {
		return true // global addresses for pods are usual there
	}
	for _, ok := range private() {
		if within(prefix, ok) {
			return true
		}
	}
	p.warn(field, "%s is public address space: pods will not reach whoever has it on the Internet", prefix)
	return true
}

// within says whether all of a lies in b.
func within(a, b netip.Prefix) bool { return a.Bits() >= b.Bits() && b.Contains(a.Addr()) }

// cut fills in how the network is cut into subnets, and checks what was given.
func (p *parser) cut(r rawNetwork, n lease.Network) lease.Network {
	size, longest := r.family.Bits(), r.family.Bits()-2
	shortest := n.Prefix.Bits() + 2 // at least four subnets, of at least four addresses
	usual := size / 8 * 6           // /24
	if r.family == family.V6 {
		usual = 64
	}
	switch {
	case shortest > longest:
		p.problem(r.field("Network"), "%s is too small to cut: /%d or shorter is needed", n.Prefix, longest-2)
		return lease.Network{}
	case r.len == 0:
		n.SubnetLen = max(usual, shortest)
	case r.len > uint(longest) || r.len < uint(shortest):
		p.problem(r.field("SubnetLen"), "%d must be from %d (network length + 2) to %d", r.len, shortest, longest)
		return lease.Network{}
	default:
		n.SubnetLen = int(r.len)
	}
	lo, hi := lease.Bounds(n.Prefix, n.SubnetLen)
	if !n.Min.IsValid() {
		n.Min = lo
	}
	if !n.Max.IsValid() {
		n.Max = hi
	}
	ok := p.boundary(r.field("SubnetMin"), n, n.Min)
	ok = p.boundary(r.field("SubnetMax"), n, n.Max) && ok
	if ok && n.Max.Less(n.Min) {
		p.problem(r.field("SubnetMin"), "%s is above %s, %s: no subnet could be leased", n.Min, r.field("SubnetMax"), n.Max)
		ok = false
	}
	for i, more := range n.Additional.Prefixes() {
		if more.Bits()+2 > n.SubnetLen {
			p.problem(r.entry(i), "%s is too small for subnets of /%d: /%d or shorter is needed", more, n.SubnetLen, n.SubnetLen-2)
			ok = false
		}
	}
	if !ok {
		return lease.Network{}
	}
	return n
}

func (p *parser) boundary(field string, n lease.Network, a netip.Addr) bool {
	if !n.Prefix.Contains(a) {
		p.problem(field, "%s lies outside of %s", a, n.Prefix)
		return false
	}
	if start := netip.PrefixFrom(a, n.SubnetLen).Masked().Addr(); start != a {
		p.problem(field, "%s is not where a /%d begins: %s is", a, n.SubnetLen, start)
		return false
	}
	return true
}
