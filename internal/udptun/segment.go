package udptun

import (
	"golang.org/x/sys/unix"
)

// A super is a packet of up to 64 KiB as it comes from the device, to be cut into segments that all have
// its headers: those of RFC 9293 for TCP, datagrams of their own for UDP.
type super struct {
	packet
	headers int // length of IP, options and TCP or UDP together
	l4      int // where TCP or UDP begins
	size    int // of the payload of all segments but the last
	count   int
	tcp     bool
	noSum   bool // UDP without a checksum

	// The sums of what all segments have in common.
	ipSum, l4Sum uint64
	id           uint16
	seq          uint32
	flags        uint8
}

// newSuper checks p against the header v that came with it. TTL and hop limit are taken as they are.
func newSuper(p packet, v vnet) (s super, ok bool) {
	s = super{packet: p, l4: int(v.start), size: int(v.gsoSize)}
	proto := uint8(unix.IPPROTO_TCP)
	switch {
	case v.gso == gsoTCPv4 && !p.v6, v.gso == gsoTCPv6 && p.v6:
		s.tcp = true
		if s.l4+minTCP > len(p.b) {
			return s, false
		}
		n := int(p.b[s.l4+tcpOff]>>4) * 4
		if n < minTCP {
			return s, false
		}
		s.headers = s.l4 + n
	case v.gso == gsoUDPL4:
		proto = unix.IPPROTO_UDP
		s.headers = s.l4 + lenUDP
	default:
		return s, false
	}
	payload := len(p.b) - s.headers
	// Without options or extension headers the checksum begins where the header says that it ends.
	if s.size == 0 || payload <= 0 || v.flags&needsCsum == 0 && s.tcp || s.l4 < p.l4 || !p.v6 && (s.l4 != p.l4 || p.proto() != proto) {
		return s, false
	}
	s.count = (payload + s.size - 1) / s.size
	s.prepare(v, proto)
	return s, true
}

// prepare sums up what all segments have in common. The fields that differ count as zero.
func (s *super) prepare(v vnet, proto uint8) {
	h := s.b[:s.headers]
	if !s.v6 {
		s.id = be.Uint16(h[v4ID:])
		native.PutUint16(h[v4Len:], 0)
		native.PutUint16(h[v4ID:], 0)
		native.PutUint16(h[v4Sum:], 0)
		s.ipSum = add(0, h[:s.l4])
	}
	if s.tcp {
		s.seq, s.flags = be.Uint32(h[s.l4+tcpSeq:]), h[s.l4+tcpFlags]
		be.PutUint32(h[s.l4+tcpSeq:], 0)
		h[s.l4+tcpFlags] = 0
		native.PutUint16(h[s.l4+tcpSum:], 0)
	} else {
		s.noSum = v.flags&needsCsum == 0 && native.Uint16(h[s.l4+udpSum:]) == 0
		native.PutUint16(h[s.l4+udpLen:], 0)
		native.PutUint16(h[s.l4+udpSum:], 0)
	}
	s.l4Sum = add(s.pseudo(proto), h[s.l4:])
}

// payload returns the part of the packet that segment i carries.
func (s *super) payload(i int) []byte {
	from := s.headers + i*s.size
	return s.b[from:min(from+s.size, len(s.b))]
}

// segment writes segment i to b, which has its size, and returns b.
func (s *super) segment(i int, b []byte) []byte {
	h, payload := b[:s.headers], b[s.headers:]
	copy(h, s.b)
	copy(payload, s.payload(i))
	if s.v6 {
		be.PutUint16(h[v6Len:], uint16(s.headers-lenIPv6+len(payload)))
	} else {
		total, id := uint16(s.headers+len(payload)), s.id+uint16(i)
		be.PutUint16(h[v4Len:], total)
		be.PutUint16(h[v4ID:], id)
		native.PutUint16(h[v4Sum:], ^fold(add16(add16(s.ipSum, total), id)))
	}
	length := uint16(s.headers - s.l4 + len(payload))
	l4 := h[s.l4:]
	if !s.tcp {
		be.PutUint16(l4[udpLen:], length)
		if s.noSum {
			return b
		}
		sum := ^fold(add(add16(add16(s.l4Sum, length), length), payload)) // in the header and the pseudo-header
		if sum == 0 {
			sum = 0xffff
		}
		native.PutUint16(l4[udpSum:], sum)
		return b
	}
	flags := s.flags
	if i > 0 {
		flags &^= tcpCWR // once per reduction (RFC 3168 6.1.2)
	}
	if i < s.count-1 {
		flags &^= tcpFIN | tcpPSH
	}
	be.PutUint32(l4[tcpSeq:], s.seq+uint32(i*s.size))
	l4[tcpFlags] = flags
	sum := add(add16(s.l4Sum, length), l4[tcpSeq:tcpSeq+4])
	native.PutUint16(l4[tcpSum:], ^fold(add(add16(sum, uint16(flags)), payload)))
	return b
}
