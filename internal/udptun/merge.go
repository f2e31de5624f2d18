package udptun

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// A run is packets of one flow that follow one another, on their way to the device as one packet of up to
// 64 KiB. What the kernel makes of it when it cuts it again is exactly what came in; a packet for which
// that would not hold starts a run of its own, or travels alone.
type run struct {
	first  packet
	tcp    bool
	hdr    int // length of all headers
	size   int // payload of every packet but the last
	total  int // length of the packet that it becomes
	count  int
	closed bool // by a packet that only the last may be
	last   uint8
	next   uint32 // TCP sequence number that would follow
	vnet   *[lenVnet]byte
	iov    []unix.Iovec // of which the first element is for vnet
}

// mergeable says whether p can be part of a run, and the length of its headers if so. Checksums of TCP and
// UDP are looked at only when there is something to merge with.
func mergeable(p packet) (hdr int, ok bool) {
	proto := p.proto()
	switch {
	case p.fragment(), !p.v6 && p.l4 != minIPv4: // with options the kernel merges nothing either
		return 0, false
	case proto == unix.IPPROTO_UDP:
		if len(p.b) <= p.l4+lenUDP {
			return 0, false
		}
		u := p.b[p.l4:]
		ok := int(be.Uint16(u[udpLen:])) == len(u) && native.Uint16(u[udpSum:]) != 0
		return p.l4 + lenUDP, ok
	case proto == unix.IPPROTO_TCP:
		if len(p.b) <= p.l4+minTCP {
			return 0, false
		}
		hdr := p.l4 + int(p.b[p.l4+tcpOff]>>4)*4
		// Nothing but data: SYN, FIN, RST, URG and CWR mean one packet each.
		data := p.b[p.l4+tcpFlags]&^(tcpPSH|tcpECE) == tcpACK && p.b[p.l4+tcpOff]&15 == 0
		return hdr, data && hdr >= p.l4+minTCP && hdr < len(p.b)
	}
	return 0, false
}

// sound says whether the checksums of a mergeable packet are right. The kernel computes them anew for what
// it cuts, so a wrong one must not get there.
func sound(p packet) bool {
	if !p.v6 && fold(add(0, p.b[:p.l4])) != 0xffff {
		return false
	}
	return fold(add(add16(p.pseudo(p.proto()), uint16(len(p.b)-p.l4)), p.b[p.l4:])) == 0xffff
}

// start makes p the first packet of r.
func (r *run) start(p packet, hdr int) {
	*r = run{
		first: p, tcp: p.proto() == unix.IPPROTO_TCP, hdr: hdr, size: len(p.b) - hdr, total: len(p.b), count: 1,
		vnet: r.vnet, iov: append(r.iov[:1], iovec(p.b)),
	}
	if r.tcp {
		r.last = p.b[p.l4+tcpFlags]
		r.closed = r.last&tcpPSH != 0
		r.next = be.Uint32(p.b[p.l4+tcpSeq:]) + uint32(r.size)
	}
}

// flow says whether p is of the same flow: addresses, protocol and ports. p is mergeable.
func (r *run) flow(p packet) bool {
	f := r.first
	return p.proto() == f.proto() && r.pair(p) && native.Uint32(p.b[p.l4:]) == native.Uint32(f.b[f.l4:])
}

// pair says whether p goes between the same two addresses.
func (r *run) pair(p packet) bool {
	f := r.first
	if p.v6 != f.v6 {
		return false
	}
	if p.v6 {
		return bytes.Equal(p.b[v6Src:lenIPv6], f.b[v6Src:lenIPv6])
	}
	return native.Uint64(p.b[v4Src:]) == native.Uint64(f.b[v4Src:])
}

// like says whether d is a packet with the headers of r's, as far as they tell who may send it and where it goes,
// and one that is mergeable. It returns the packet as if it had been checked. R, which may be nil, has been
// started with a packet of the same receive.
func (r *run) like(d []byte) (packet, bool) {
	if r == nil || len(d) <= r.hdr {
		return packet{}, false
	}
	p, f := r.first, r.first.b
	p.b = d
	if f[0] != d[0] || p.proto() != r.first.proto() || !r.pair(p) || native.Uint32(d[p.l4:]) != native.Uint32(f[p.l4:]) {
		return packet{}, false
	}
	whole, hops := int(be.Uint16(d[v4Len:])) == len(d), v4TTL
	if p.v6 {
		whole, hops = int(be.Uint16(d[v6Len:])) == len(d)-lenIPv6, v6Hops
	}
	if !whole || d[hops] != f[hops]+1 {
		return packet{}, false
	}
	if hdr, ok := mergeable(p); !ok || hdr != r.hdr {
		return packet{}, false
	}
	p.decrement()
	return p, true
}

// take adds p to r if it follows, and says whether it did. p is of r's flow and has hdr bytes of headers.
func (r *run) take(p packet, hdr int) bool {
	n := len(p.b) - hdr
	if r.closed || hdr != r.hdr || n > r.size || r.total+n > maxPacket || r.count == maxSegments || !r.sameIP(p) || !r.sameL4(p) {
		return false
	}
	if r.count == 1 && !sound(r.first) {
		r.closed = true
		return false
	}
	if !sound(p) {
		return false
	}
	r.count++
	r.total += n
	r.iov = append(r.iov, iovec(p.b[hdr:]))
	r.closed = n < r.size
	if r.tcp {
		r.last = p.b[p.l4+tcpFlags]
		r.closed = r.closed || r.last&tcpPSH != 0
		r.next += uint32(n)
	}
	return true
}

// sameIP says whether the IP headers differ only as those of segments do.
func (r *run) sameIP(p packet) bool {
	f := r.first
	if p.v6 {
		return native.Uint32(p.b) == native.Uint32(f.b) && p.b[v6Hops] == f.b[v6Hops]
	}
	return p.b[v4TOS] == f.b[v4TOS] && p.b[v4TTL] == f.b[v4TTL] && native.Uint16(p.b[v4Frag:]) == native.Uint16(f.b[v4Frag:]) &&
		be.Uint16(p.b[v4ID:]) == be.Uint16(f.b[v4ID:])+uint16(r.count)
}

// sameL4 is sameIP for TCP. UDP headers have nothing to differ in.
func (r *run) sameL4(p packet) bool {
	if !r.tcp {
		return true
	}
	a, b := p.b[p.l4:], r.first.b[p.l4:]
	return be.Uint32(a[tcpSeq:]) == r.next && native.Uint32(a[tcpAck:]) == native.Uint32(b[tcpAck:]) &&
		(a[tcpFlags]^b[tcpFlags])&^tcpPSH == 0 && native.Uint16(a[tcpWindow:]) == native.Uint16(b[tcpWindow:]) &&
		native.Uint16(a[tcpUrgent:]) == native.Uint16(b[tcpUrgent:]) &&
		bytes.Equal(a[minTCP:r.hdr-p.l4], b[minTCP:r.hdr-p.l4])
}

// finish makes the first packet's headers those of the whole, and returns the virtio header that goes
// before it.
func (r *run) finish() vnet {
	if r.count == 1 {
		return vnet{} // as it came, checksum and all
	}
	p := r.first
	h := p.b[:r.hdr]
	v := vnet{flags: needsCsum, gso: gsoTCPv4, hdrLen: uint16(r.hdr), gsoSize: uint16(r.size), start: uint16(p.l4), offset: tcpSum}
	if p.v6 {
		v.gso = gsoTCPv6
		be.PutUint16(h[v6Len:], uint16(r.total-lenIPv6))
	} else {
		be.PutUint16(h[v4Len:], uint16(r.total))
		sumIPv4(h[:p.l4])
	}
	length := uint16(r.total - p.l4)
	if r.tcp {
		h[p.l4+tcpFlags] = r.last
	} else {
		v.gso, v.offset = gsoUDPL4, udpSum
		be.PutUint16(h[p.l4+udpLen:], length)
	}
	native.PutUint16(h[p.l4+int(v.offset):], fold(add16(p.pseudo(p.proto()), length)))
	return v
}
