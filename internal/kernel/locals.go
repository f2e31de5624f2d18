package kernel

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel/rtnl"
	"github.com/weftnet/weft/internal/state"
)

// loopback is the index of lo in every namespace (LOOPBACK_IFINDEX in include/net/flow.h).
const loopback = 1

// A local is what the local table has for one address.
type local struct {
	Ours   bool // a route of ours
	Device bool // a route of the kernel's own: some device has the address
}

// listLocals lists the routes of the local table that are ours, and the kernel's own of pods' networks.
func (k *Kernel) listLocals(h *have, family uint8, sc Scope) error {
	four := family == unix.AF_INET
	return k.dump("local routes", func(b *rtnl.Batch) {
		header := make([]byte, unix.SizeofRtMsg)
		header[0], header[offTable], header[offType] = family, unix.RT_TABLE_LOCAL, unix.RTN_LOCAL
		b.Begin(unix.RTM_GETROUTE, 0, header)
	}, func() {
		for a := range h.locals {
			if a.Is4() == four {
				delete(h.locals, a)
			}
		}
	}, func(m rtnl.Message) {
		a, protocol := parseLocal(m)
		l := h.locals[a]
		switch {
		case !a.IsValid() || a.Is4() != four:
			return
		case protocol == state.Protocol:
			l.Ours = true
		case protocol == unix.RTPROT_KERNEL && inside(netip.PrefixFrom(a, a.BitLen()), sc.Networks):
			l.Device = true
		default:
			return
		}
		h.locals[a] = l
	})
}

// parseLocal reads RTM_NEWROUTE and RTM_DELROUTE of a single address in the local table; others give none.
func parseLocal(m rtnl.Message) (a netip.Addr, protocol int) {
	if len(m.Body) < unix.SizeofRtMsg {
		return a, 0
	}
	h := m.Body[:unix.SizeofRtMsg]
	table := uint32(h[offTable])
	for typ, v := range rtnl.Attrs(m.Body[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_TABLE:
			table = rtnl.Uint32(v)
		case unix.RTA_DST:
			a = rtnl.Addr(v)
		}
	}
	if table != unix.RT_TABLE_LOCAL || h[offType] != unix.RTN_LOCAL || int(h[1]) != a.BitLen() {
		return netip.Addr{}, 0
	}
	return a, int(h[offProtocol])
}

// A localStep makes an address this host's own although no device has it, or takes that back.
//
// A route of the local table does that, and not the address on lo: it carries the same mark in both families and on
// every kernel (an address of IPv6 has had room for one since Linux 5.18); and no list of the host's addresses shows
// it, nor does the kernel choose it as the source of anything new. What stands goes on: packets to it are delivered,
// and the kernel takes it as the source of a socket that has it (__ip_dev_find looks there for what no device has;
// IPv6 asks when a socket is bound, and then no more).
type localStep struct {
	op   state.Op
	addr netip.Addr
}

func (s *localStep) kind() string { return "route" }

func (s *localStep) operation() state.Op { return s.op }

func (s *localStep) change() state.Change {
	c := state.Change{Op: s.op, Kind: s.kind(), Object: "local " + s.addr.String()}
	if s.op == state.Add {
		c.Want = "dev lo table local"
	} else {
		c.Have = "dev lo table local"
	}
	return c
}

func (s *localStep) encode(b *rtnl.Batch, _ have) {
	h := make([]byte, unix.SizeofRtMsg)
	h[0], h[1] = familyOf(s.addr), uint8(s.addr.BitLen())
	h[offTable], h[offProtocol], h[offType] = unix.RT_TABLE_LOCAL, state.Protocol, unix.RTN_LOCAL
	if s.op == state.Remove {
		h[offScope] = unix.RT_SCOPE_NOWHERE // any
		b.Begin(unix.RTM_DELROUTE, 0, h)
		b.Addr(unix.RTA_DST, s.addr)
		return
	}
	h[offScope] = unix.RT_SCOPE_HOST
	// Before all others: until Linux 5.14 the first address of a bridge's subnet is a broadcast address there.
	b.Begin(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, h)
	b.Addr(unix.RTA_DST, s.addr)
	b.Uint32(unix.RTA_OIF, loopback)
}

// locals adds what is missing and returns the steps that remove what is not wanted: an address that a device has, or
// that is another node's by now. IPv6 routes a new address a moment after the device has it; until then ours stays.
func (r *rest) locals() (del []step) {
	onDevice := map[netip.Addr]bool{}
	for a := range r.want.Addresses {
		onDevice[a.Prefix.Addr()] = true
	}
	for _, a := range sortedAddrs(r.want.Locals) {
		if !r.h.locals[a].Ours {
			r.add(&localStep{op: state.Add, addr: a})
		}
	}
	for _, a := range sortedAddrs(r.h.locals) {
		l := r.h.locals[a]
		stays := r.want.Locals[a] || onDevice[a] && !l.Device
		if l.Ours && !stays && inside(netip.PrefixFrom(a, a.BitLen()), r.sc.Networks) {
			del = append(del, &localStep{op: state.Remove, addr: a})
		}
	}
	return del
}
