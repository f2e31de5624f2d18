package dockeropts

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RoutedAway returns the gateway to which the main table sends subnet, the value of FLANNEL_SUBNET, if
// there is such a route: Docker's bridge would get none of the subnet's packets. A value that is no IPv4
// prefix is routed nowhere.
func RoutedAway(h *netlink.Handle, subnet string) (via netip.Addr, found bool, err error) {
	own, err := netip.ParsePrefix(subnet)
	if err != nil || !own.Addr().Is4() {
		return netip.Addr{}, false, nil
	}
	mainTable := &netlink.Route{Table: unix.RT_TABLE_MAIN}
	routes, err := h.RouteListFiltered(netlink.FAMILY_V4, mainTable, netlink.RT_FILTER_TABLE)
	if err != nil {
		return netip.Addr{}, false, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Gw == nil || r.Dst.String() != own.Masked().String() {
			continue
		}
		via, _ := netip.AddrFromSlice(r.Gw.To4())
		return via, true, nil
	}
	return netip.Addr{}, false, nil
}
