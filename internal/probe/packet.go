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

// encode writes an echo request to b. What follows the cookie is zero, so it changes no checksum.
func encode(b []byte, v6 bool, id, seq uint16, cookie uint64) {
	clear(b)
	b[0] = echoRequest4
	if v6 {
		b[0] = echoRequest6
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

// decode reads the head of an ICMP message and says whether it is an answer to a probe with our identifier.
func decode(b []byte, v6 bool, id uint16) (seq uint16, cookie uint64, ok bool) {
	want := byte(echoReply4)
	if v6 {
		want = echoReply6
	}
	if len(b) < lenICMP+lenCookie || b[0] != want || b[1] != 0 || binary.BigEndian.Uint16(b[4:]) != id {
		return 0, 0, false
	}
	return binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint64(b[lenICMP:]), true
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
