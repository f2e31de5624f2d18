package kernel

import (
	"context"
	"errors"
	"net/netip"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel/rtnl"
	"github.com/weftnet/weft/internal/state"
)

// What Watcher.Run says has changed.
const (
	ChangedLink      = "link"
	ChangedAddress   = "address"
	ChangedRoute     = "route"
	ChangedNeighbour = "neighbour"
	ChangedFDB       = "fdb"
	ChangedSysctl    = "sysctl"
	ChangedUnknown   = "unknown" // notifications were lost: anything
)

// A Watcher tells when something changed that could concern us. It has subscribed when NewWatcher returns,
// so what is listed after that misses nothing.
type Watcher struct {
	k        *Kernel
	listener *rtnl.Listener
}

// NewWatcher subscribes in the calling thread's network namespace, which must be that of k. Run must be
// called, even with a context that has ended, to free what it holds.
func (k *Kernel) NewWatcher() (*Watcher, error) {
	l, err := rtnl.Listen(unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return nil, err
	}
	return &Watcher{k: k, listener: l}, nil
}

// Run calls wake with one of the Changed words, often many times for one cause, until ctx ends. wake must
// not block. Before the first Apply everything wakes; after it what concerns neither its State nor its
// Scope does not, nor do most of our own writes.
func (w *Watcher) Run(ctx context.Context, wake func(kind string)) error {
	defer w.listener.Close()
	for {
		err := w.listener.Receive(ctx, func(m rtnl.Message) {
			if kind := w.k.interest.Load().concerned(m, w.k.port); kind != "" {
				wake(kind)
			}
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, rtnl.ErrOverrun):
			wake(ChangedUnknown)
		default:
			return err
		}
	}
}

// An interest is what notifications are sifted by: a value that every pass makes anew. Nil is interested
// in everything.
type interest struct {
	ours     map[int32]bool // devices of ours
	indexes  map[int32]bool // those, the uplink, lower devices, and devices that have wanted sysctls
	names    map[string]bool
	networks []netip.Prefix
	locals   map[netip.Addr]bool // wanted
	underlay []netip.Addr        // of peers, and what else is asked of the routing table, in order
	asked    []netip.Addr        // likewise
}

func newInterest(h have, want state.State, sc Scope, asked []netip.Addr) *interest {
	n := &interest{
		ours:     map[int32]bool{},
		indexes:  map[int32]bool{},
		names:    map[string]bool{sc.Uplink: sc.Uplink != ""},
		networks: sc.Networks,
		locals:   want.Locals,
		asked:    asked,
	}
	if sc.Reach.IsValid() {
		n.underlay = append(n.underlay, sc.Reach)
	}
	for name, l := range want.Links {
		n.names[name] = true
		n.names[l.VXLAN.Parent] = l.VXLAN.Parent != ""
	}
	for key := range want.Sysctls {
		n.names[path.Base(path.Dir(key))] = true
	}
	for name, d := range h.links {
		n.ours[d.Index] = sc.owns(name, d, want)
		n.indexes[d.Index] = n.names[name] || n.ours[d.Index]
	}
	for _, dst := range want.FDB {
		n.underlay = append(n.underlay, dst)
	}
	for _, r := range want.Routes {
		if r.Via.IsValid() && !r.OnLink {
			n.underlay = append(n.underlay, r.Via)
		}
	}
	slices.SortFunc(n.underlay, netip.Addr.Compare)
	return n
}

// concerned returns what a notification is about, or nothing if it is of no interest. port is that of the
// socket we write through.
func (n *interest) concerned(m rtnl.Message, port uint32) string {
	switch m.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if n.link(m, port) {
			return ChangedLink
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if m.Port != port && n.address(m) {
			return ChangedAddress
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if m.Port != port && n.route(m) {
			return ChangedRoute
		}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		e := parseNeighbour(m)
		if m.Port == port || n != nil && !n.ours[e.index] {
			return ""
		}
		if e.family == unix.AF_BRIDGE {
			return ChangedFDB
		}
		return ChangedNeighbour
	case unix.RTM_NEWNETCONF, unix.RTM_DELNETCONF:
		if n.netconf(m) {
			return ChangedSysctl
		}
	}
	return ""
}

// address leaves out the link-local addresses that every device gets, those of pods above all. On the uplink such a one
// may be the one to use.
func (n *interest) address(m rtnl.Message) bool {
	index, p, _ := parseAddress(m)
	return n == nil || !p.Addr().IsLinkLocalUnicast() || n.indexes[index] && !n.ours[index]
}

// link leaves out the ports of bridges, which come and go with pods.
func (n *interest) link(m rtnl.Message, port uint32) bool {
	name, d, _ := parseLink(m)
	if name == "" || m.Port == port || m.Body[0] == unix.AF_BRIDGE {
		return false
	}
	return n == nil || !d.Port || n.names[name] || n.indexes[d.Index]
}

// route is interested in the pods' part of the main table, in whatever decides how peers are reached, and in the
// addresses that are local without a device.
func (n *interest) route(m rtnl.Message) bool {
	key, _, ok := parseRoute(m, nil)
	if !ok {
		a, _ := parseLocal(m)
		return n != nil && n.locals[a]
	}
	if n == nil || key.Dst.Bits() == 0 {
		return true
	}
	for _, p := range n.networks {
		if p.Overlaps(key.Dst) {
			return true
		}
	}
	return anyIn(n.underlay, key.Dst) || anyIn(n.asked, key.Dst)
}

// anyIn says whether one of the addresses, which are in order, is in p.
func anyIn(addrs []netip.Addr, p netip.Prefix) bool {
	i, _ := slices.BinarySearchFunc(addrs, p.Addr(), netip.Addr.Compare)
	return i < len(addrs) && p.Contains(addrs[i])
}

// netconf reads forwarding, rp_filter and the like. Indexes below 0 stand for "all" and "default".
func (n *interest) netconf(m rtnl.Message) bool {
	if n == nil {
		return true
	}
	const header, netconfIndex = 4, 1 // struct netconfmsg, padded; NETCONFA_IFINDEX
	if len(m.Body) < header {
		return false
	}
	for typ, v := range rtnl.Attrs(m.Body[header:]) {
		if typ == netconfIndex {
			index := int32(rtnl.Uint32(v))
			return index < 0 || n.indexes[index]
		}
	}
	return false
}
