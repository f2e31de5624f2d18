package kernel

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel/rtnl"
	"github.com/weftnet/weft/internal/state"
)

const ndaNexthopID = 13 // NDA_NH_ID

// listNeighbours lists the permanent ARP and NDP entries of one device.
func (k *Kernel) listNeighbours(h *have, dev string, index int32) error {
	return k.dump("neighbours of "+dev, func(b *rtnl.Batch) {
		b.Begin(unix.RTM_GETNEIGH, 0, make([]byte, unix.SizeofNdMsg))
		b.Uint32(unix.NDA_IFINDEX, uint32(index))
	}, func() {
		for key := range h.neighbour {
			if key.Dev == dev {
				delete(h.neighbour, key)
			}
		}
	}, func(m rtnl.Message) {
		n := parseNeighbour(m)
		if n.index == index && n.permanent && n.dst.IsValid() && n.family != unix.AF_BRIDGE {
			h.neighbour[state.NeighbourKey{Dev: dev, Addr: n.dst}] = n.mac
		}
	})
}

// listFDB lists the permanent forwarding entries of one VXLAN device.
func (k *Kernel) listFDB(h *have, dev string, index int32) error {
	return k.dump("fdb of "+dev, func(b *rtnl.Batch) {
		b.Begin(unix.RTM_GETNEIGH, 0, neighbourHeader(unix.AF_BRIDGE, index, 0, 0))
	}, func() {
		for key := range h.fdb {
			if key.Dev == dev {
				delete(h.fdb, key)
			}
		}
	}, func(m rtnl.Message) {
		n := parseNeighbour(m)
		if n.index != index || !n.permanent || n.family != unix.AF_BRIDGE || n.master {
			return
		}
		key := state.FDBKey{Dev: dev, MAC: n.mac}
		_, several := h.fdb[key]
		h.fdb[key] = fdbEntry{Dst: n.dst, Odd: n.odd || several}
	})
}

// A neighbour is an ARP, NDP or FDB entry as the kernel tells it.
type neighbour struct {
	family    uint8
	index     int32
	permanent bool
	master    bool // belongs to the bridge above the device
	dst       netip.Addr
	mac       state.MAC
	odd       bool
}

// parseNeighbour reads RTM_NEWNEIGH and RTM_DELNEIGH.
func parseNeighbour(m rtnl.Message) neighbour {
	if len(m.Body) < unix.SizeofNdMsg {
		return neighbour{}
	}
	n := neighbour{
		family:    m.Body[0],
		index:     int32(rtnl.Uint32(m.Body[4:])),
		permanent: m.Body[8]&unix.NUD_PERMANENT != 0,
	}
	for typ, v := range rtnl.Attrs(m.Body[unix.SizeofNdMsg:]) {
		switch typ {
		case unix.NDA_DST:
			n.dst = rtnl.Addr(v)
		case unix.NDA_LLADDR:
			if len(v) == len(n.mac) {
				n.mac = state.MAC(v)
			}
		case unix.NDA_MASTER:
			n.master = true
		case unix.NDA_PORT, unix.NDA_VNI, unix.NDA_IFINDEX, unix.NDA_SRC_VNI, ndaNexthopID:
			n.odd = true
		}
	}
	return n
}

// neighbourHeader is struct ndmsg.
func neighbourHeader(family uint8, index int32, nud uint8, flags uint8) []byte {
	h := make([]byte, unix.SizeofNdMsg)
	h[0], h[8], h[10] = family, nud, flags
	put32(h[4:], uint32(index))
	return h
}

// A neighbourStep sets or deletes an ARP or NDP entry.
type neighbourStep struct {
	op         state.Op
	key        state.NeighbourKey
	have, want state.MAC
}

func (s *neighbourStep) kind() string { return "neighbour" }

func (s *neighbourStep) change() state.Change {
	c := state.Change{Op: s.op, Kind: s.kind(), Object: s.key.String()}
	if s.op != state.Add {
		c.Have = "lladdr " + s.have.String()
	}
	if s.op != state.Remove {
		c.Want = "lladdr " + s.want.String()
	}
	return c
}

func (s *neighbourStep) encode(b *rtnl.Batch, h have) {
	family, index := familyOf(s.key.Addr), h.links[s.key.Dev].Index
	if s.op == state.Remove {
		b.Begin(unix.RTM_DELNEIGH, 0, neighbourHeader(family, index, 0, 0))
		b.Addr(unix.NDA_DST, s.key.Addr)
		return
	}
	b.Begin(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, neighbourHeader(family, index, unix.NUD_PERMANENT, 0))
	b.Addr(unix.NDA_DST, s.key.Addr)
	b.Bytes(unix.NDA_LLADDR, s.want[:])
}

// An fdbStep sets or deletes a forwarding entry.
type fdbStep struct {
	op   state.Op
	key  state.FDBKey
	have fdbEntry
	want netip.Addr
}

func (s *fdbStep) kind() string { return "fdb" }

func (s *fdbStep) change() state.Change {
	c := state.Change{Op: s.op, Kind: s.kind(), Object: s.key.String()}
	if s.op != state.Add {
		c.Have = "dst " + s.have.Dst.String()
		if s.have.Odd {
			c.Have += " with attributes of its own"
		}
	}
	if s.op != state.Remove {
		c.Want = "dst " + s.want.String()
	}
	return c
}

func (s *fdbStep) encode(b *rtnl.Batch, h have) {
	index := h.links[s.key.Dev].Index
	if s.op == state.Remove { // without a destination: all of them
		b.Begin(unix.RTM_DELNEIGH, 0, neighbourHeader(unix.AF_BRIDGE, index, unix.NUD_PERMANENT, unix.NTF_SELF))
		b.Bytes(unix.NDA_LLADDR, s.key.MAC[:])
		return
	}
	header := neighbourHeader(unix.AF_BRIDGE, index, unix.NUD_PERMANENT, unix.NTF_SELF)
	b.Begin(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, header)
	b.Bytes(unix.NDA_LLADDR, s.key.MAC[:])
	b.Addr(unix.NDA_DST, s.want)
}
