package uplink

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/ranges"
)

// A Host is what the choice depends on, as listed at one moment.
type Host struct {
	Links    []Link                      // in the order of the kernel's listing
	Defaults family.Pair[[]int]          // devices (link indexes) of the default routes of the main table, as listed
	Reach    map[netip.Addr]Reachability // answers for the addresses that List was asked about
}

// A Link is a network device with its addresses, both families, in the order of the kernel's listing.
type Link struct {
	Index    int
	Name     string
	Kind     string // IFLA_INFO_KIND, such as "bridge"; empty for hardware
	Master   int    // index of the bridge or bond that it is a port of; 0: none
	MTU      int
	Up       bool // IFF_UP
	Loopback bool
	Addrs    []Address
}

// An Address is an address on a link.
type Address struct {
	Prefix netip.Prefix // not masked: address and length
	Scope  int          // RT_SCOPE_*: 0 universe, 253 link, 254 host

	Permanent  bool // without it the address has a lifetime: DHCP, router advertisements
	Deprecated bool // past its preferred lifetime
	Temporary  bool // IPv6: a privacy address (RFC 8981); IPv4: secondary, for which the kernel uses the same bit
	Tentative  bool // duplicate address detection is not done, so nothing can be sent from it yet
	Duplicate  bool // another host has it (IFA_F_DADFAILED)
}

// A Reachability says how the kernel would send to an address. Err is why it would not.
type Reachability struct {
	Index int        // of the device
	Src   netip.Addr // source address
	Local bool       // the address is one of this host's own
	Err   error
}

// RouteTo returns how the kernel would send to a. It knows only the addresses that List was asked about.
func (h Host) RouteTo(a netip.Addr) (Reachability, bool) {
	r, ok := h.Reach[a]
	return r, ok
}

func (h Host) linkNamed(name string) (Link, bool) {
	return h.link(func(l Link) bool { return l.Name == name })
}

func (h Host) linkAt(index int) (Link, bool) {
	return h.link(func(l Link) bool { return l.Index == index })
}

// carrying returns the device that a is on. Of several it is the first that is not a loopback: an
// address that is also on lo, as with unnumbered routing, leaves through the other one.
func (h Host) carrying(a netip.Addr) (Link, bool) {
	if l, ok := h.link(func(l Link) bool { return !l.Loopback && l.has(a) }); ok {
		return l, true
	}
	return h.link(func(l Link) bool { return l.has(a) })
}

func (h Host) link(match func(Link) bool) (Link, bool) {
	if i := slices.IndexFunc(h.Links, match); i >= 0 {
		return h.Links[i], true
	}
	return Link{}, false
}

func (l Link) has(a netip.Addr) bool {
	return slices.ContainsFunc(l.Addrs, func(x Address) bool { return x.Prefix.Addr() == a })
}

// overlay says whether l belongs to the pod network, which is no way to reach a peer: a tunnel of ours or
// of the original's, the pods' bridge under any name, or a pod's end on that bridge.
func (h Host) overlay(l Link, networks family.Pair[ranges.List]) bool {
	if l.Kind == "veth" && l.Master != 0 {
		bridge, ok := h.linkAt(l.Master)
		return ok && h.overlay(bridge, networks)
	}
	if l.Name == "cni0" || tunnelName(l.Name) {
		return true
	}
	return l.Kind == "bridge" && slices.ContainsFunc(l.Addrs, func(a Address) bool {
		return networks.Of(family.Of(a.Prefix.Addr())).Contains(a.Prefix.Addr())
	})
}

// tunnelName knows the names of interop 18.2: flannel.1, flannel-v6.1, flannel.ipip, flannel-wg,
// flannel-wg-v6, and flannel0 of the udp backend.
func tunnelName(name string) bool {
	rest, ok := strings.CutPrefix(name, "flannel")
	if !ok || rest == "" {
		return false
	}
	return rest[0] == '.' || rest[0] == '-' || rest[0] >= '0' && rest[0] <= '9'
}
