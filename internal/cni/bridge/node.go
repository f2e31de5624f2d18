package bridge

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// RouteLocalnet lets packets that came from 127.0.0.1 leave towards a pod, after their source was
// replaced (route_localnet of the kernel's ip-sysctl).
func (k *Kernel) RouteLocalnet(pod netip.Addr) error {
	routes, err := k.nl.RouteGet(pod.AsSlice())
	if err != nil || len(routes) == 0 {
		return fmt.Errorf("route to %s: %w", pod, err)
	}
	link, err := k.nl.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return fmt.Errorf("device towards %s: %w", pod, err)
	}
	return setSysctl("ipv4/conf/"+link.Attrs().Name+"/route_localnet", "1")
}

// ForgetUDP deletes the conntrack entries of UDP flows to a port of this node, so that their next packet
// goes where the rules say now. With a pod, only of those that lead to it.
func ForgetUDP(f family.Family, port uint16, pod netip.Addr) error {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	defer h.Close()
	filter := &netlink.ConntrackFilter{}
	if err := filter.AddProtocol(unix.IPPROTO_UDP); err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	if err := filter.AddPort(netlink.ConntrackOrigDstPort, port); err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	if pod.IsValid() {
		if err := filter.AddIP(netlink.ConntrackReplySrcIP, pod.AsSlice()); err != nil {
			return fmt.Errorf("conntrack: %w", err)
		}
	}
	inet := netlink.InetFamily(unix.AF_INET)
	if f == family.V6 {
		inet = unix.AF_INET6
	}
	if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, inet, filter); err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	return nil
}
