package netconf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/state"
)

// HostPrefixes returns what the host of h has addresses in or routes to, default routes and loopback
// excepted, and without what a pod network of c leaves there itself, ours or the original's: its devices
// and routes, and whatever serves own, this node's subnet, such as the bridge of its pods.
func HostPrefixes(h *netlink.Handle, c Config, own family.Pair[netip.Prefix]) ([]HostPrefix, error) {
	links, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	l := lister{config: c, own: own, names: map[int]string{}}
	for _, link := range links {
		a := link.Attrs()
		if a.Flags&net.FlagLoopback == 0 {
			l.names[a.Index] = a.Name
		}
	}
	for _, number := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, number) })
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range addrs {
			l.add(a.IPNet, a.LinkIndex, HostAddress)
		}
		mainTable := &netlink.Route{Table: unix.RT_TABLE_MAIN}
		routes, err := dump(func() ([]netlink.Route, error) {
			return h.RouteListFiltered(number, mainTable, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if !l.ours(r) {
				l.add(r.Dst, device(r), HostRoute)
			}
		}
	}
	return l.found, nil
}

// dump lists again what changed while it was listed (NLM_F_DUMP_INTR).
func dump[T any](list func() ([]T, error)) (all []T, err error) {
	for range 5 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, nil // a host that never rests: what was seen is worth comparing
}

type lister struct {
	config Config
	own    family.Pair[netip.Prefix]
	names  map[int]string // of devices, loopback excepted
	found  []HostPrefix
}

func (l *lister) add(dst *net.IPNet, index int, what string) {
	name, ok := l.names[index]
	if !ok || name == "cni0" || strings.HasPrefix(name, "flannel") || dst == nil {
		return
	}
	p, ok := prefixOf(dst)
	if !ok || p.Bits() == 0 || p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast() {
		return
	}
	if own := l.own.Of(family.Of(p.Addr())); own.IsValid() && within(p.Masked(), own) {
		return
	}
	l.found = append(l.found, HostPrefix{Prefix: p, Dev: name, What: what})
}

// ours says whether a pod network made the route. The original's have no mark but protocol boot, and go
// by a gateway to a subnet inside the network.
func (l *lister) ours(r netlink.Route) bool {
	if r.Type != unix.RTN_UNICAST || r.Protocol == state.Protocol {
		return true
	}
	p, ok := prefixOf(r.Dst)
	if !ok || r.Protocol != state.ProtocolBoot || r.Gw == nil {
		return false
	}
	return l.config.Network.Of(family.Of(p.Addr())).Around(p).IsValid()
}

// device returns the index of the route's device, the first one's of a multipath route.
func device(r netlink.Route) int {
	if r.LinkIndex == 0 && len(r.MultiPath) > 0 {
		return r.MultiPath[0].LinkIndex
	}
	return r.LinkIndex
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones), ok && a.BitLen() == bits
}
