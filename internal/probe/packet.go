package probe

import (
	"encoding/binary"
	"net/netip"
)

const (
	echoReply4, echoRequest4 = 0, 8     // RFC 792
	echoRequest6, echoReply6 = 128, 129 // RFC 4443

	lenICMP   = 8 // type, code, checksum, identifier, sequence number
	lenCookie = 8
	lenIPv4   = 20
	lenIPv6   = 40
	maxIP     = 1<<16 - 1

	callID = 0xca11 // the ICMP identifier of calls; those of our ordinary probes are below 0x8000
)

// A kind says what a packet is.
type kind uint8

const (
	ordinary kind = iota // a probe that the peer's kernel answers, or an answer
	call                 // a probe that the peer's agent answers too, if it calls us itself
	called               // an agent's answer: by the cookie, which has all bits turned, as conntrack drops other identifiers
)

// bytes returns the length of the IP packets of a target's probes.
func (t *Target) bytes(full bool) int {
	small := lenIPv4 + lenICMP + lenCookie
	if t.Dst.Is6() {
		small = lenIPv6 + lenICMP + lenCookie
	}
	if !full {
		return small
	}
	return min(max(small, t.Size), maxIP)
}

// types returns the ICMP types of echoes.
func types(v6 bool) (request, reply byte) {
	if v6 {
		return echoRequest6, echoReply6
	}
	return echoRequest4, echoReply4
}

// encode writes an echo to b. What follows the cookie is zero, so it changes no checksum.
func encode(b []byte, v6 bool, k kind, id, seq uint16, cookie uint64) {
	clear(b)
	request, reply := types(v6)
	b[0] = request
	if k == called {
		b[0] = reply
	}
	if k != ordinary {
		id = callID
	}
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	binary.BigEndian.PutUint64(b[lenICMP:], cookie)
	if v6 {
		return // the kernel writes the checksum, RFC 3542, 3.1
	}
	binary.BigEndian.PutUint16(b[2:], checksum(b[:lenICMP+lenCookie]))
}

// checksum is that of RFC 1071, for an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum + sum>>16)
}

// decode reads the head of an ICMP message and says whether it is a call, or an answer to one or to a probe with our
// identifier.
func decode(b []byte, v6 bool, id uint16) (k kind, seq uint16, cookie uint64, ok bool) {
	if len(b) < lenICMP+lenCookie || b[1] != 0 {
		return 0, 0, 0, false
	}
	request, reply := types(v6)
	switch got := binary.BigEndian.Uint16(b[4:]); {
	case b[0] == reply && (got == id || got == callID):
	case b[0] == request && got == callID:
		k = call
	default:
		return 0, 0, 0, false
	}
	return k, binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint64(b[lenICMP:]), true
}

// decodeIPv4 reads the header that a raw IPv4 socket hands over with the packet, of which b is the head.
func decodeIPv4(b []byte) (from, to netip.Addr, payload []byte, ok bool) {
	if len(b) < lenIPv4 || b[0]>>4 != 4 {
		return from, to, nil, false
	}
	n := int(b[0]&15) * 4
	if n < lenIPv4 || len(b) < n {
		return from, to, nil, false
	}
	return netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[n:], true
}
