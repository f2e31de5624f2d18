package uplink

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/internal/family"
)

// scopeHost is RT_SCOPE_HOST: the address means something on this host only.
const scopeHost = 254

// unusable says why a cannot be the address that peers send to, or "".
func (a Address) unusable() string {
	ip := a.Prefix.Addr()
	switch {
	case !ip.IsGlobalUnicast() && !ip.IsLinkLocalUnicast() || a.Scope == scopeHost:
		return "not an address that another host can send to"
	case a.Duplicate:
		return "another host has the same address (duplicate address detection failed)"
	case a.Tentative:
		return "duplicate address detection is still running"
	case a.Deprecated:
		return "deprecated"
	}
	return ""
}

// comparePreference puts the address to prefer first: global, then permanent, then not temporary.
func comparePreference(a, b Address) int {
	return cmp.Or(
		firstTrue(!a.linkLocal(), !b.linkLocal()),
		firstTrue(a.Permanent, b.Permanent),
		firstTrue(!a.Temporary, !b.Temporary),
	)
}

func (a Address) linkLocal() bool { return a.Prefix.Addr().IsLinkLocalUnicast() }

func firstTrue(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// usable returns the addresses of family f that could be chosen, the preferred one first.
func (l Link) usable(f family.Family) []Address {
	var out []Address
	for _, a := range l.Addrs {
		if family.Of(a.Prefix.Addr()) == f && a.unusable() == "" {
			out = append(out, a)
		}
	}
	slices.SortStableFunc(out, comparePreference)
	return out
}

// choose returns the address of family f to use among those that match, nil for any. The current one is
// kept as long as it is there, so that an address which merely sorts before it, such as a floating one,
// does not renumber the node. It is kept through a new duplicate address detection (every link flap causes
// one), and when deprecated if there is no other; but a link-local one gives way to a global one.
func (l Link) choose(f family.Family, current netip.Addr, match func(netip.Addr) bool) (netip.Addr, bool) {
	fits := func(a Address) bool { return match == nil || match(a.Prefix.Addr()) }
	var best Address
	usable := l.usable(f)
	if i := slices.IndexFunc(usable, fits); i >= 0 && !(usable[i].linkLocal() && l.awaitsGlobal(f, fits)) {
		best = usable[i]
	}
	i := slices.IndexFunc(l.Addrs, func(a Address) bool {
		return a.Prefix.Addr() == current && family.Of(current) == f && fits(a)
	})
	switch found := best.Prefix.IsValid(); {
	case i < 0 || l.Addrs[i].Duplicate || l.Addrs[i].Scope == scopeHost:
		return best.Prefix.Addr(), found
	case found && (l.Addrs[i].Deprecated || l.Addrs[i].linkLocal() && !best.linkLocal()):
		return best.Prefix.Addr(), true
	}
	return current, true
}

// awaitsGlobal says whether a global address of family f is about to become usable. A link-local one, which
// is there first whenever a link comes up, would be published for a second and then given up again.
func (l Link) awaitsGlobal(f family.Family, fits func(Address) bool) bool {
	return slices.ContainsFunc(l.Addrs, func(a Address) bool {
		return family.Of(a.Prefix.Addr()) == f && a.Tentative && !a.linkLocal() && fits(a)
	})
}
