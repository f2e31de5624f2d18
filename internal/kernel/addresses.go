package kernel

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel/rtnl"
	"github.com/weftnet/weft/internal/state"
)

const ifaFlags = 8 // IFA_FLAGS: the header has room for eight of the flags only

func put32(b []byte, v uint32) { binary.NativeEndian.PutUint32(b, v) }

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (k *Kernel) listAddresses(h *have) error {
	names := h.names()
	return k.dump("addresses", func(b *rtnl.Batch) {
		b.Begin(unix.RTM_GETADDR, 0, make([]byte, unix.SizeofIfAddrmsg))
	}, func() { clear(h.addresses) }, func(m rtnl.Message) {
		index, prefix, a := parseAddress(m)
		if name, ok := names[index]; ok && prefix.IsValid() {
			h.addresses[state.Address{Dev: name, Prefix: prefix}] = a
		}
	})
}

// parseAddress reads RTM_NEWADDR and RTM_DELADDR.
func parseAddress(m rtnl.Message) (index int32, p netip.Prefix, a address) {
	if len(m.Body) < unix.SizeofIfAddrmsg {
		return 0, p, a
	}
	var own, local netip.Addr
	for typ, v := range rtnl.Attrs(m.Body[unix.SizeofIfAddrmsg:]) {
		switch typ {
		case unix.IFA_ADDRESS: // the peer's on a point-to-point link, else the same as IFA_LOCAL
			own = rtnl.Addr(v)
		case unix.IFA_LOCAL:
			local = rtnl.Addr(v)
		}
	}
	if local.IsValid() && local != own {
		own, a.Peer = local, own
	}
	return int32(rtnl.Uint32(m.Body[4:])), netip.PrefixFrom(own, int(m.Body[1])), a
}

// An addressStep adds or deletes an address.
type addressStep struct {
	op   state.Op
	key  state.Address
	have address // when it is to be deleted
}

func (s *addressStep) kind() string { return "address" }

func (s *addressStep) change() state.Change {
	return state.Change{Op: s.op, Kind: s.kind(), Object: s.key.String()}
}

func (s *addressStep) encode(b *rtnl.Batch, h have) {
	a := s.key.Prefix.Addr()
	header := make([]byte, unix.SizeofIfAddrmsg)
	header[0], header[1] = familyOf(a), uint8(s.key.Prefix.Bits())
	put32(header[4:], uint32(h.links[s.key.Dev].Index))
	if s.op == state.Remove {
		b.Begin(unix.RTM_DELADDR, 0, header)
	} else {
		b.Begin(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, header)
	}
	b.Addr(unix.IFA_LOCAL, a)
	if s.have.Peer.IsValid() {
		b.Addr(unix.IFA_ADDRESS, s.have.Peer)
	} else {
		b.Addr(unix.IFA_ADDRESS, a)
	}
	if s.op != state.Remove && a.Is6() {
		// Nobody else can hold the address, and until it is no longer tentative nothing can use it.
		b.Uint32(ifaFlags, unix.IFA_F_NODAD)
	}
}
