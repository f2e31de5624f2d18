package udptun

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	minIPv4 = 20
	lenIPv6 = 40
	lenUDP  = 8
	minTCP  = 20

	// Offsets in an IPv4 header (RFC 791).
	v4TOS, v4Len, v4ID, v4Frag, v4TTL, v4Proto, v4Sum, v4Src, v4Dst = 1, 2, 4, 6, 8, 9, 10, 12, 16
	// Offsets in an IPv6 header (RFC 8200).
	v6Len, v6Next, v6Hops, v6Src, v6Dst = 4, 6, 7, 8, 24
	// Offsets in a TCP header (RFC 9293).
	tcpSeq, tcpAck, tcpOff, tcpFlags, tcpWindow, tcpSum, tcpUrgent = 4, 8, 12, 13, 14, 16, 18
	// Offsets in a UDP header (RFC 768).
	udpLen, udpSum = 4, 6

	dontFragment  = 0x4000
	moreFragments = 0x2000
	offsetMask    = 0x1fff

	tcpFIN, tcpPSH, tcpACK, tcpECE, tcpCWR = 0x01, 0x08, 0x10, 0x40, 0x80
)

var be = binary.BigEndian

// A packet is an IP packet whose header has been checked by parse; its slice ends where the packet ends.
type packet struct {
	b   []byte
	src netip.Addr
	dst netip.Addr
	l4  int // length of the IP header, without IPv6 extension headers
	v6  bool
}

// parse checks that b starts with a whole IP packet, and cuts off what follows it. It checks no checksum.
func parse(b []byte) (packet, bool) {
	if len(b) < minIPv4 {
		return packet{}, false
	}
	switch b[0] >> 4 {
	case 4:
		l4, total := int(b[0]&15)*4, int(be.Uint16(b[v4Len:]))
		if l4 < minIPv4 || total < l4 || total > len(b) {
			return packet{}, false
		}
		return packet{
			b: b[:total], l4: l4,
			src: netip.AddrFrom4([4]byte(b[v4Src:])), dst: netip.AddrFrom4([4]byte(b[v4Dst:])),
		}, true
	case 6:
		if len(b) < lenIPv6 {
			return packet{}, false
		}
		total := lenIPv6 + int(be.Uint16(b[v6Len:]))
		if total > len(b) {
			return packet{}, false
		}
		return packet{
			b: b[:total], l4: lenIPv6, v6: true,
			src: netip.AddrFrom16([16]byte(b[v6Src:])), dst: netip.AddrFrom16([16]byte(b[v6Dst:])),
		}, true
	}
	return packet{}, false
}

// proto is the IPv4 protocol or the first IPv6 next header.
func (p packet) proto() uint8 {
	if p.v6 {
		return p.b[v6Next]
	}
	return p.b[v4Proto]
}

// fragment says whether the packet is a part of another one.
func (p packet) fragment() bool {
	if p.v6 {
		return p.b[v6Next] == unix.IPPROTO_FRAGMENT
	}
	return be.Uint16(p.b[v4Frag:])&(moreFragments|offsetMask) != 0
}

// fixed says whether routers must not fragment the packet.
func (p packet) fixed() bool { return p.v6 || be.Uint16(p.b[v4Frag:])&dontFragment != 0 }

// decrement takes one off the TTL or hop limit, as every end of the tunnel does. It returns false, and
// leaves the packet, when nothing would be left.
func (p packet) decrement() bool {
	if p.v6 {
		if p.b[v6Hops] <= 1 {
			return false
		}
		p.b[v6Hops]--
		return true
	}
	if p.b[v4TTL] <= 1 {
		return false
	}
	p.b[v4TTL]--
	// RFC 1624, equation 3, for a word that gets 0x0100 smaller.
	s := uint32(^be.Uint16(p.b[v4Sum:])) + 0xfeff
	be.PutUint16(p.b[v4Sum:], ^uint16(s+s>>16))
	return true
}

// addressed says whether a packet to a may travel between nodes: multicast and broadcast may not.
func addressed(a netip.Addr) bool {
	return !a.IsMulticast() && !a.IsUnspecified() && !a.IsLoopback() && a != broadcast
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// sumIPv4 puts the right checksum into an IPv4 header.
func sumIPv4(h []byte) {
	native.PutUint16(h[v4Sum:], 0)
	native.PutUint16(h[v4Sum:], ^fold(add(0, h)))
}

// pseudo returns the sum of the pseudo-header (RFC 9293 3.1, RFC 8200 8.1) without the length.
func (p packet) pseudo(proto uint8) uint64 {
	if p.v6 {
		return add16(add(0, p.b[v6Src:lenIPv6]), uint16(proto))
	}
	return add16(add(0, p.b[v4Src:minIPv4]), uint16(proto))
}
