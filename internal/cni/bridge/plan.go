// Package bridge attaches a pod to a bridge of this node.
//
//   - A veth pair joins the pod's namespace to the bridge; its inner end is made there directly.
//   - The bridge holds the gateway's address, so the pod's neighbours are reached over the bridge and
//     everything else through the host, which forwards.
//   - With hairpin a pod reaches itself through a service or a hostPort: the bridge sends a frame back
//     out of the port that it came in on.
//
// The outer end's name follows from the attachment, so that whoever deletes it needs no notes.
package bridge

import (
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/internal/cni/conf"
	"github.com/weftnet/weft/internal/family"
)

// An Attachment names one interface of one pod.
type Attachment struct {
	ContainerID, IfName string
}

// PortName returns the name of the outer end. 44 bits: among a thousand pods two collide once in
// thirty million nodes.
func (a Attachment) PortName() string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s", a.ContainerID, a.IfName)
	return fmt.Sprintf("veth%011x", h.Sum64()&(1<<44-1))
}

// Alias returns what the outer ends of a network carry as alias; it is how they are found again.
func Alias(network string) string { return "weft:" + network }

// Addressing is what IPAM gave.
type Addressing struct {
	IPs    []IP
	Routes []*types.Route
	DNS    types.DNS
}

// An IP is one address and the gateway of its subnet, which is zero if there is none.
type IP struct {
	Addr    netip.Prefix // address with the subnet's length
	Gateway netip.Addr
}

// A Plan is everything that an attachment needs in the kernel.
type Plan struct {
	Bridge Device
	Port   Port
	Pod    Interface
}

// A Device is the bridge.
type Device struct {
	Name         string
	MTU          int              // when it is made; afterwards the kernel takes the lowest of its ports
	MAC          net.HardwareAddr // when it is made; nil: a random one
	Promisc      bool
	Addrs        []netip.Prefix // gateway addresses
	ForceAddress bool
	Forward      []family.Family // families to forward
}

// A Port is the outer end of the veth pair.
type Port struct {
	Name, Alias       string
	MTU               int
	Hairpin, Isolated bool
}

// An Interface is the inner end.
type Interface struct {
	Name   string
	MTU    int
	MAC    net.HardwareAddr // nil: the kernel's choice
	Addrs  []netip.Prefix
	Routes []Route
	DAD    bool
}

// A Route is a route of the pod.
type Route struct {
	Dst      netip.Prefix
	Via      netip.Addr // zero: on the link
	MTU      int
	AdvMSS   int
	Priority int
	Table    int // 0: main
	Scope    int // as RT_SCOPE_*
}

// New plans an attachment.
func New(c conf.Bridge, a Attachment, given Addressing) (Plan, error) {
	p := Plan{
		Bridge: Device{Name: c.Device, MTU: c.MTU, Promisc: c.Promisc, ForceAddress: c.ForceAddress},
		Port:   Port{Name: a.PortName(), Alias: Alias(c.Network), MTU: c.MTU, Hairpin: c.Hairpin, Isolated: c.Isolated},
		Pod:    Interface{Name: a.IfName, MTU: c.MTU, MAC: c.MAC, DAD: c.DAD},
	}
	for _, ip := range given.IPs {
		p.Pod.Addrs = append(p.Pod.Addrs, ip.Addr)
		if !c.Gateway {
			continue
		}
		if gw := gateway(ip); gw == ip.Addr.Addr() {
			return p, fmt.Errorf("address %s is the gateway's: IPAM must not give it to a pod", gw)
		}
		p.Bridge.Addrs = append(p.Bridge.Addrs, netip.PrefixFrom(gateway(ip), ip.Addr.Bits()))
		p.Bridge.Forward = append(p.Bridge.Forward, family.Of(ip.Addr.Addr()))
	}
	p.Bridge.MAC = bridgeMAC(p.Bridge.Addrs)
	var err error
	p.Pod.Routes, err = podRoutes(Routes(c, given), given.IPs)
	return p, err
}

// gateway is the gateway that IPAM named, else the first address of the subnet.
func gateway(ip IP) netip.Addr {
	if ip.Gateway.IsValid() {
		return ip.Gateway
	}
	return ip.Addr.Masked().Addr().Next()
}

// bridgeMAC derives the bridge's MAC from its address, in the locally administered range that container
// runtimes use. Without a fixed one the kernel takes the lowest of the ports', and pods lose their
// gateway for as long as they remember the former.
func bridgeMAC(addrs []netip.Prefix) net.HardwareAddr {
	for _, a := range addrs {
		if family.Of(a.Addr()) == family.V4 {
			return append(net.HardwareAddr{0x0a, 0x58}, a.Addr().AsSlice()...)
		}
	}
	if len(addrs) == 0 {
		return nil
	}
	h := fnv.New32a()
	h.Write(addrs[0].Addr().AsSlice())
	return h.Sum(net.HardwareAddr{0x0a, 0x58})
}

// Routes returns the routes of the result: those of IPAM, and with a default gateway one default route
// per family, unless IPAM has one.
func Routes(c conf.Bridge, given Addressing) []*types.Route {
	routes := given.Routes
	if !c.DefaultRoute {
		return routes
	}
	for _, ip := range given.IPs {
		f := family.Of(ip.Addr.Addr())
		if !hasDefault(routes, f) {
			routes = append(routes[:len(routes):len(routes)], &types.Route{Dst: defaultDst(f), GW: gateway(ip).AsSlice()})
		}
	}
	return routes
}

func defaultDst(f family.Family) net.IPNet {
	return net.IPNet{IP: make(net.IP, f.Bits()/8), Mask: net.CIDRMask(0, f.Bits())}
}

func hasDefault(routes []*types.Route, f family.Family) bool {
	for _, r := range routes {
		if dst, ok := prefix(r.Dst); ok && dst.Bits() == 0 && family.Of(dst.Addr()) == f {
			return true
		}
	}
	return false
}

// podRoutes turns the result's routes into the kernel's: one without a gateway goes through that of the
// address of its family.
func podRoutes(routes []*types.Route, ips []IP) ([]Route, error) {
	var all []Route
	for _, r := range routes {
		dst, ok := prefix(r.Dst)
		if !ok {
			return nil, fmt.Errorf("route to %s: not a prefix", r.Dst.String())
		}
		k := Route{Dst: dst, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority}
		if via, ok := netip.AddrFromSlice(r.GW); ok {
			k.Via = via.Unmap()
		} else {
			for _, ip := range ips {
				if ip.Gateway.IsValid() && family.Of(ip.Gateway) == family.Of(dst.Addr()) {
					k.Via = ip.Gateway
					break
				}
			}
		}
		if r.Table != nil {
			k.Table = *r.Table
		}
		if r.Scope != nil {
			k.Scope = *r.Scope
		}
		all = append(all, k)
	}
	return all, nil
}

func prefix(n net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	a = a.Unmap()
	if a.Is4() && bits == 128 {
		ones -= 96
	}
	p := netip.PrefixFrom(a, ones)
	return p, p.IsValid()
}
