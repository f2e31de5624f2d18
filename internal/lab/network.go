package lab

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// Uplink is the name of every machine's external device.
const Uplink = "eth0"

// buildRouter makes one bridge per segment in the router's namespaces. The bridge is both the segment's
// switch and the router's address on it.
func (l *Lab) buildRouter(ports map[string]port) error {
	return l.router.inside(func() error {
		if err := loopbackUp(); err != nil {
			return err
		}
		errs := []error{
			sysctl("net/ipv4/ip_forward", "1"),
			sysctl("net/ipv6/conf/all/forwarding", "1"),
			sysctl("net/ipv4/conf/all/rp_filter", "0"),
			sysctl("net/ipv4/conf/default/rp_filter", "0"),
			// The router forwards nothing to a neighbour before its link-local address is usable.
			sysctl("net/ipv6/conf/all/accept_dad", "0"),
			sysctl("net/ipv6/conf/default/accept_dad", "0"),
			// A switch shows its frames to no firewall. Absent unless br_netfilter is loaded.
			sysctlIfPresent("net/bridge/bridge-nf-call-iptables", "0"),
			sysctlIfPresent("net/bridge/bridge-nf-call-ip6tables", "0"),
		}
		made := map[string]bool{}
		for _, p := range ports {
			if !made[p.Segment] {
				made[p.Segment] = true
				errs = append(errs, l.addSegment(p))
			}
		}
		return errors.Join(errs...)
	})
}

func (l *Lab) addSegment(p port) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = p.Segment, l.Options.MTU
	// Without an address of its own a bridge changes its MAC with its ports.
	gw := cmpAddr(p.Gateway.V4, p.Gateway.V6).AsSlice()
	attrs.HardwareAddr = net.HardwareAddr{0x02, 0x1a, 0xb0, 0, gw[len(gw)-2], byte(len(gw))}
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add bridge %s: %w", p.Segment, err)
	}
	return configure(p.Segment, l.Options.MTU, gateways(p))
}

// gateways returns the router's own addresses on the segment of p.
func gateways(p port) []netip.Prefix {
	var out []netip.Prefix
	for _, f := range family.All() {
		if gw := p.Gateway.Of(f); gw.IsValid() {
			out = append(out, netip.PrefixFrom(gw, p.Addr.Of(f).Bits()))
		}
	}
	return out
}

// cardMAC is the MAC of a machine's card, locally administered. It stays: an IPv6 neighbour in use would go on with
// another one for half a minute (RFC 4861 7.3).
func cardMAC(machine string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(machine))
	return append(net.HardwareAddr{0x02, 0x00}, sum[:4]...)
}

// plug connects a machine to its segment: a veth whose one end is a port of the router's bridge, named
// after the machine, and whose other end is the machine's uplink.
func (l *Lab) plug(name string, machine process, p port) error {
	err := l.router.inside(func() error {
		bridge, err := netlink.LinkByName(p.Segment)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", p.Segment, err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.MasterIndex = name, l.Options.MTU, bridge.Attrs().Index
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: Uplink, PeerNamespace: netlink.NsPid(machine.PID), PeerHardwareAddr: cardMAC(name)}
		// A machine that was switched off lives on for a moment, and its cable with it.
		if old, err := netlink.LinkByName(name); err == nil {
			if err := netlink.LinkDel(old); err != nil {
				return fmt.Errorf("unplug %s: %w", name, err)
			}
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth: %w", err)
		}
		return setUp(name)
	})
	if err != nil {
		return err
	}
	err = machine.inside(func() error {
		var addrs []netip.Prefix
		for _, f := range family.All() {
			if a := p.Addr.Of(f); a.IsValid() {
				addrs = append(addrs, a)
			}
		}
		if err := errors.Join(loopbackUp(), sysctl("net/ipv6/conf/"+Uplink+"/accept_dad", "0"), configure(Uplink, l.Options.MTU, addrs)); err != nil {
			return err
		}
		return defaultRoutes(p)
	})
	if err != nil {
		return err
	}
	if err := l.awaitLink(name, machine, p.Segment); err != nil {
		return err
	}
	return errors.Join(
		machine.inside(func() error { return awaitLocal(p.Addr.V4.Addr(), p.Addr.V6.Addr()) }),
		l.router.inside(func() error { return awaitLocal(p.Gateway.V4, p.Gateway.V6) }))
}

// awaitLink waits until a machine's uplink, the router's end of its cable and the bridge there let packets
// through. The kernel acts on a new carrier up to a second late (net/core/link_watch.c); until then it
// drops what is sent, and an ARP request that is dropped costs another second.
func (l *Lab) awaitLink(name string, machine process, bridge string) error {
	return errors.Join(
		machine.inside(func() error { return awaitOperUp(Uplink) }),
		l.router.inside(func() error { return errors.Join(awaitOperUp(name), awaitOperUp(bridge)) }))
}

// awaitLocal waits until the kernel knows a machine's own addresses as such, which for IPv6 a work queue
// sees to (net/ipv6/addrconf.c).
func awaitLocal(addrs ...netip.Addr) error {
	for _, a := range addrs {
		for deadline := time.Now().Add(busyWait); a.IsValid(); time.Sleep(pollEvery) {
			routes, err := netlink.RouteGet(a.AsSlice())
			if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			if time.Now().After(deadline) {
				return errors.Join(fmt.Errorf("address %s is not in use", a), err)
			}
		}
	}
	return nil
}

// awaitOperUp waits until the kernel considers a device operational (RFC 2863).
func awaitOperUp(dev string) error {
	for deadline := time.Now().Add(busyWait); ; time.Sleep(pollEvery) {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return fmt.Errorf("device %s: %w", dev, err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("device %s is still %s", dev, link.Attrs().OperState)
		}
	}
}

func defaultRoutes(p port) error {
	link, err := netlink.LinkByName(Uplink)
	if err != nil {
		return err
	}
	for _, f := range family.All() {
		gw := p.Gateway.Of(f)
		if !gw.IsValid() {
			continue
		}
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice(), Dst: prefixNet(netip.PrefixFrom(gw, 0))}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("default route via %s: %w", gw, err)
		}
	}
	return nil
}

// configure gives the device dev of the calling thread's namespace its MTU and addresses, and sets it up.
func configure(dev string, mtu int, addrs []netip.Prefix) error {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("device %s: %w", dev, err)
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set MTU of %s: %w", dev, err)
	}
	if err := setUp(dev); err != nil {
		return err
	}
	for _, a := range addrs {
		if err := addAddress(link, a); err != nil {
			return err
		}
	}
	return nil
}

func addAddress(link netlink.Link, a netip.Prefix) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
	if a.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD // usable at once
	}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("add %s to %s: %w", a, link.Attrs().Name, err)
	}
	return nil
}

func setUp(dev string) error {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("device %s: %w", dev, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", dev, err)
	}
	return nil
}

func loopbackUp() error { return setUp("lo") }

// sysctl sets a value below /proc/sys in the calling thread's namespaces.
func sysctl(path, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s: %w", path, err)
	}
	return nil
}

func sysctlIfPresent(path, value string) error {
	if err := sysctl(path, value); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func prefixNet(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// cmpAddr returns the first valid address.
func cmpAddr(addrs ...netip.Addr) netip.Addr {
	i := slices.IndexFunc(addrs, netip.Addr.IsValid)
	return addrs[max(0, i)]
}
