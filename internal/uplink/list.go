package uplink

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// A Conn reads a network namespace. It is for one goroutine at a time.
type Conn struct {
	nl *netlink.Handle
}

// Open returns a Conn to the network namespace of the calling thread; it stays there.
func Open() (*Conn, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	// The kernel answers while it is being asked: an answer that is not there has been lost.
	if err := nl.SetSocketTimeout(time.Second); err != nil {
		nl.Close()
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	return &Conn{nl}, nil
}

// Close releases the socket.
func (c *Conn) Close() { c.nl.Close() }

// maxListings bounds how often a listing starts again because the kernel's tables changed meanwhile.
const maxListings = 10

// List returns what a choice depends on now, with the kernel's routes to the given addresses.
func (c *Conn) List(reach ...netip.Addr) (Host, error) {
	for try := 1; ; try++ {
		h, err := c.list()
		if err != nil && !(errors.Is(err, netlink.ErrDumpInterrupted) && try < maxListings) {
			return Host{}, err
		}
		if err != nil {
			continue
		}
		h.Reach = map[netip.Addr]Reachability{}
		for _, a := range reach {
			if a.IsValid() {
				h.Reach[a] = c.routeTo(a)
			}
		}
		return h, nil
	}
}

func (c *Conn) list() (Host, error) {
	links, err := c.nl.LinkList()
	if err != nil {
		return Host{}, fmt.Errorf("list links: %w", err)
	}
	var h Host
	at := map[int]int{} // link index to position in h.Links
	for i, l := range links {
		at[l.Attrs().Index] = i
		h.Links = append(h.Links, link(l))
	}
	addrs, err := c.nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return Host{}, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if i, ok := at[a.LinkIndex]; ok && a.IPNet != nil { // else the link is newer than the listing
			h.Links[i].Addrs = append(h.Links[i].Addrs, address(a))
		}
	}
	for _, f := range family.All() {
		if *h.Defaults.Ref(f), err = c.defaults(f); err != nil {
			return Host{}, err
		}
	}
	return h, nil
}

func link(l netlink.Link) Link {
	a := l.Attrs()
	kind := l.Type()
	if kind == "device" { // the library's word for hardware, which has no IFLA_INFO_KIND
		kind = ""
	}
	return Link{
		Index: a.Index, Name: a.Name, Kind: kind, Master: a.MasterIndex, MTU: a.MTU,
		Up: a.Flags&net.FlagUp != 0, Loopback: a.Flags&net.FlagLoopback != 0,
	}
}

func address(a netlink.Addr) Address {
	ip, _ := netip.AddrFromSlice(a.IP)
	bits, _ := a.Mask.Size()
	return Address{
		Prefix:     netip.PrefixFrom(ip, bits),
		Scope:      a.Scope,
		Permanent:  a.Flags&unix.IFA_F_PERMANENT != 0,
		Deprecated: a.Flags&unix.IFA_F_DEPRECATED != 0,
		Temporary:  a.Flags&unix.IFA_F_TEMPORARY != 0,
		// An optimistic address (RFC 4429) may send while it is still tentative.
		Tentative: a.Flags&unix.IFA_F_TENTATIVE != 0 && a.Flags&(unix.IFA_F_OPTIMISTIC|unix.IFA_F_DADFAILED) == 0,
		Duplicate: a.Flags&unix.IFA_F_DADFAILED != 0,
	}
}

// defaults returns the devices of the default routes of the main table. The kernel lists them by metric.
func (c *Conn) defaults(f family.Family) ([]int, error) {
	nlFamily := netlink.FAMILY_V4
	if f == family.V6 {
		nlFamily = netlink.FAMILY_V6
	}
	var out []int
	err := c.nl.RouteListFilteredIter(nlFamily, &netlink.Route{}, 0, func(r netlink.Route) bool {
		if !isDefault(r) {
			return true
		}
		if r.LinkIndex > 0 {
			out = append(out, r.LinkIndex)
		}
		for _, hop := range r.MultiPath {
			out = append(out, hop.LinkIndex)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list %s routes: %w", f, err)
	}
	return out, nil
}

// isDefault leaves out unreachable and blackhole routes, which the kernel says lead to lo.
func isDefault(r netlink.Route) bool {
	if r.Type != unix.RTN_UNICAST {
		return false
	}
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0 && r.Dst.IP.IsUnspecified()
}

func (c *Conn) routeTo(a netip.Addr) Reachability {
	routes, err := c.nl.RouteGet(a.AsSlice())
	if err != nil {
		return Reachability{Err: err}
	}
	if len(routes) == 0 {
		return Reachability{Err: unix.ENETUNREACH}
	}
	r := routes[0]
	src, _ := netip.AddrFromSlice(r.Src)
	return Reachability{Index: r.LinkIndex, Src: src.Unmap(), Local: r.Type == unix.RTN_LOCAL}
}
