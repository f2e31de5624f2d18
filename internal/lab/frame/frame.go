// Package frame reads Ethernet frames as they pass an underlay device and tells what is inside: a bare
// packet, or a VXLAN tunnel's datagram with a packet of its own (RFC 7348).
package frame

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// A Packet is an IP packet. With VXLAN inside, it is the outer one.
type Packet struct {
	Src, Dst netip.Addr
	Proto    uint8  // IPv4 protocol or IPv6 next header; extension headers are not followed
	Type     uint8  // ICMP and ICMPv6 type
	DstPort  uint16 // UDP and TCP
	Len      int    // IP header included
	VXLAN    *VXLAN // nil: none
}

// VXLAN is what a VXLAN datagram carries.
type VXLAN struct {
	VNI            uint32
	SrcMAC, DstMAC [6]byte
	Inner          Packet
}

// Protocols (RFC 1700 and successors).
const (
	ICMP   = 1
	TCP    = 6
	UDP    = 17
	ICMPv6 = 58
)

const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd

	etherLen = 14
	vxlanLen = 8
	udpLen   = 8
)

// Parse reads an Ethernet frame. UDP datagrams to vxlanPort are taken for VXLAN. It returns false for
// anything that is not a whole IP header, and leaves out what is cut off behind that.
func Parse(b []byte, vxlanPort uint16) (Packet, bool) {
	return parseEther(b, vxlanPort)
}

// parseEther reads a frame; vxlanPort is 0 inside a tunnel, where no further one is looked for.
func parseEther(b []byte, vxlanPort uint16) (Packet, bool) {
	if len(b) < etherLen {
		return Packet{}, false
	}
	var p Packet
	var payload []byte
	var ok bool
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherIPv4:
		p, payload, ok = parseIPv4(b[etherLen:])
	case etherIPv6:
		p, payload, ok = parseIPv6(b[etherLen:])
	}
	if !ok {
		return Packet{}, false
	}
	p.parseTransport(payload, vxlanPort)
	return p, true
}

func parseIPv4(b []byte) (p Packet, payload []byte, ok bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return p, nil, false
	}
	head := int(b[0]&15) * 4
	if head < 20 || len(b) < head {
		return p, nil, false
	}
	p.Src, p.Dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p.Proto, p.Len = b[9], int(binary.BigEndian.Uint16(b[2:]))
	if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 { // a later fragment has no transport header
		return p, nil, true
	}
	return p, b[head:], true
}

func parseIPv6(b []byte) (p Packet, payload []byte, ok bool) {
	if len(b) < 40 || b[0]>>4 != 6 {
		return p, nil, false
	}
	p.Src, p.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	p.Proto, p.Len = b[6], 40+int(binary.BigEndian.Uint16(b[4:]))
	return p, b[40:], true
}

func (p *Packet) parseTransport(b []byte, vxlanPort uint16) {
	switch p.Proto {
	case ICMP, ICMPv6:
		if len(b) > 0 {
			p.Type = b[0]
		}
	case UDP, TCP:
		if len(b) >= 4 {
			p.DstPort = binary.BigEndian.Uint16(b[2:])
		}
	}
	if p.Proto == UDP && vxlanPort != 0 && p.DstPort == vxlanPort && len(b) > udpLen {
		p.VXLAN = parseVXLAN(b[udpLen:])
	}
}

func parseVXLAN(b []byte) *VXLAN {
	const validVNI = 0x08 // flag I
	if len(b) < vxlanLen+etherLen || b[0]&validVNI == 0 {
		return nil
	}
	v := &VXLAN{VNI: binary.BigEndian.Uint32(b[4:]) >> 8}
	copy(v.DstMAC[:], b[vxlanLen:])
	copy(v.SrcMAC[:], b[vxlanLen+6:])
	inner, ok := parseEther(b[vxlanLen:], 0)
	if !ok {
		return nil
	}
	v.Inner = inner
	return v
}

// Echo says whether the packet is an ICMP echo request or reply.
func (p Packet) Echo() bool {
	return p.Proto == ICMP && (p.Type == 0 || p.Type == 8) || p.Proto == ICMPv6 && (p.Type == 128 || p.Type == 129)
}

// String shows the packet on one line, as tcpdump would.
func (p Packet) String() string {
	if p.VXLAN != nil {
		return fmt.Sprintf("%s > %s: UDP port %d, VXLAN, vni %d: [ %s ]", p.Src, p.Dst, p.DstPort, p.VXLAN.VNI, p.VXLAN.Inner)
	}
	return fmt.Sprintf("%s > %s: %s", p.Src, p.Dst, p.what())
}

func (p Packet) what() string {
	switch {
	case p.Proto == ICMP && p.Type == 8, p.Proto == ICMPv6 && p.Type == 128:
		return "ICMP echo request"
	case p.Proto == ICMP && p.Type == 0, p.Proto == ICMPv6 && p.Type == 129:
		return "ICMP echo reply"
	case p.Proto == ICMP || p.Proto == ICMPv6:
		return fmt.Sprintf("ICMP type %d", p.Type)
	case p.Proto == UDP:
		return fmt.Sprintf("UDP port %d", p.DstPort)
	case p.Proto == TCP:
		return fmt.Sprintf("TCP port %d", p.DstPort)
	}
	return fmt.Sprintf("protocol %d", p.Proto)
}
