// Package state holds the desired and the actual state of one node as a value: what the plan returns,
// what the kernel is read into, and what the two are compared by. Objects are indexed as the kernel
// indexes them, except that links go by name, since an index does not outlive its link.
package state

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/ranges"
)

// Protocol is the protocol number (rtm_protocol) of every route that weft installs; it is how a later
// process recognises them. It is free in /etc/iproute2/rt_protos and in the kernel's rtnetlink.h.
const Protocol = 119

// ProtocolBoot is RTPROT_BOOT, the protocol of the original's routes.
const ProtocolBoot = 3

// Metric6 is the metric that the kernel gives an IPv6 route without one (IP6_RT_PRIO_USER).
const Metric6 = 1024

// A State is everything in the kernel that weft owns on one node, firewall rules excepted.
type State struct {
	Links      map[string]Link
	Addresses  map[Address]bool // only true occurs; addresses on our links
	Routes     map[RouteKey]Route
	Neighbours map[NeighbourKey]MAC
	FDB        map[FDBKey]netip.Addr
	Sysctls    map[string]string   // path below /proc/sys, with slashes, to value
	Locals     map[netip.Addr]bool // only true occurs; addresses that are this host's own although no device has them

	// What this process itself carries; internal/kernel does not look at it.
	Tunnels     map[string]Tunnel // by the name of the TUN device, which is among Links
	TunnelPeers map[TunnelKey]netip.Addr
}

// New returns a State with empty maps.
func New() State {
	return State{
		Links:      map[string]Link{},
		Addresses:  map[Address]bool{},
		Routes:     map[RouteKey]Route{},
		Neighbours: map[NeighbourKey]MAC{},
		FDB:        map[FDBKey]netip.Addr{},
		Sysctls:    map[string]string{},
		Locals:     map[netip.Addr]bool{},

		Tunnels:     map[string]Tunnel{},
		TunnelPeers: map[TunnelKey]netip.Addr{},
	}
}

// A MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string {
	var b strings.Builder
	for i := range m {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(hex.EncodeToString(m[i : i+1]))
	}
	return b.String()
}

// A Link is a network device that weft makes. It is always up.
type Link struct {
	Kind  string // as IFLA_INFO_KIND: "vxlan"
	MTU   int
	MAC   MAC
	VXLAN VXLAN // for Kind vxlan

	// Owner is the link's alias: it tells the links of one agent from those of another on the same host,
	// and from those of the original, which sets none.
	Owner string

	// Prune holds the ranges whose addresses on this link are ours alone: those that are not wanted are
	// removed. Link-local IPv6 addresses and anything outside the ranges are left.
	Prune family.Pair[ranges.List]
}

// VXLAN holds the attributes of a VXLAN device (RFC 7348, include/uapi/linux/if_link.h).
type VXLAN struct {
	VNI      int
	Port     int        // UDP destination port
	Parent   string     // lower device
	Local    netip.Addr // source address of the outer header
	GBP      bool
	Learning bool
}

// An Address is an address on a link.
type Address struct {
	Dev    string
	Prefix netip.Prefix // not masked: address and length
}

// A RouteKey identifies a unicast route of the main table.
type RouteKey struct {
	Dst    netip.Prefix // masked
	Metric int
}

// A RouteType is the type of a route (rtm_type).
type RouteType uint8

// The route types in use; the values are the kernel's.
const (
	Unicast   RouteType = 1
	Blackhole RouteType = 6
)

// A Route is what a RouteKey leads to.
type Route struct {
	Type     RouteType
	Via      netip.Addr // zero: none
	Dev      string     // empty for Blackhole
	OnLink   bool
	Protocol int // Protocol in everything the plan returns
}

// A NeighbourKey identifies a permanent ARP or NDP entry.
type NeighbourKey struct {
	Dev  string
	Addr netip.Addr
}

// An FDBKey identifies a permanent forwarding entry of a VXLAN device.
type FDBKey struct {
	Dev string
	MAC MAC
}

// Compare orders addresses by device, then address.
func (a Address) Compare(b Address) int {
	return cmp.Or(strings.Compare(a.Dev, b.Dev), a.Prefix.Compare(b.Prefix))
}

// Compare orders routes by destination, then metric.
func (a RouteKey) Compare(b RouteKey) int {
	return cmp.Or(a.Dst.Compare(b.Dst), cmp.Compare(a.Metric, b.Metric))
}

// Compare orders neighbours by device, then address.
func (a NeighbourKey) Compare(b NeighbourKey) int {
	return cmp.Or(strings.Compare(a.Dev, b.Dev), a.Addr.Compare(b.Addr))
}

// Compare orders FDB entries by device, then MAC.
func (a FDBKey) Compare(b FDBKey) int {
	return cmp.Or(strings.Compare(a.Dev, b.Dev), strings.Compare(string(a.MAC[:]), string(b.MAC[:])))
}

func (a Address) String() string { return fmt.Sprintf("%s dev %s", a.Prefix, a.Dev) }

func (a RouteKey) String() string {
	if a.Metric == 0 {
		return a.Dst.String()
	}
	return fmt.Sprintf("%s metric %d", a.Dst, a.Metric)
}

// String prints the route's target as ip route does.
func (r Route) String() string {
	if r.Type == Blackhole {
		return "blackhole"
	}
	var b strings.Builder
	if r.Via.IsValid() {
		fmt.Fprintf(&b, "via %s ", r.Via)
	}
	fmt.Fprintf(&b, "dev %s", r.Dev)
	if r.OnLink {
		b.WriteString(" onlink")
	}
	if r.Protocol != Protocol {
		fmt.Fprintf(&b, " proto %d", r.Protocol)
	}
	return b.String()
}

func (a NeighbourKey) String() string { return fmt.Sprintf("%s dev %s", a.Addr, a.Dev) }

func (a FDBKey) String() string { return fmt.Sprintf("%s dev %s", a.MAC, a.Dev) }
