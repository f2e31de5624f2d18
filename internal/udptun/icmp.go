package udptun

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

const (
	icmpTTL   = 8    // as the original's
	icmpRate  = 1000 // errors per second and queue: a pod that floods is told, not served
	maxICMPv6 = 1280 // RFC 4443 2.4(c)
)

// An errorWriter tells pods why their packets are not carried, as the router that the device stands for.
type errorWriter struct {
	queue int
	from  family.Pair[netip.Addr]
	count *counters

	buf    [lenVnet + maxICMPv6]byte
	iov    [1]unix.Iovec
	tokens float64
	last   time.Time
}

// unreachable answers a packet for which there is no peer: network unreachable, or no route (RFC 792,
// RFC 4443 3.1).
func (w *errorWriter) unreachable(p packet) {
	if p.v6 {
		w.v6(p, 1, 0, 0)
	} else if p.proto() != unix.IPPROTO_ICMP { // the original answers no ICMP at all
		w.v4(p, 3, 0, 0)
	}
}

// tooBig answers a packet that is larger than limit (RFC 1191, RFC 8201).
func (w *errorWriter) tooBig(p packet, limit int) {
	if p.v6 {
		w.v6(p, 2, 0, uint32(max(limit, maxICMPv6)))
	} else {
		w.v4(p, 3, 4, uint32(limit))
	}
}

// v4 quotes the header and eight bytes (RFC 792).
func (w *errorWriter) v4(p packet, kind, code uint8, info uint32) {
	errors := p.proto() == unix.IPPROTO_ICMP && len(p.b) > p.l4 && !query4(p.b[p.l4])
	later := be.Uint16(p.b[v4Frag:])&offsetMask != 0
	if errors || later || !addressed(p.src) || !w.from.V4.IsValid() || !w.allowed() {
		return
	}
	quote := p.b[:min(len(p.b), p.l4+8)]
	b := w.buf[lenVnet : lenVnet+minIPv4+8+len(quote)]
	clear(b[:minIPv4+8])
	b[0], b[v4TTL], b[v4Proto] = 0x45, icmpTTL, unix.IPPROTO_ICMP
	be.PutUint16(b[v4Len:], uint16(len(b)))
	src, dst := w.from.V4.As4(), p.src.As4()
	copy(b[v4Src:], src[:])
	copy(b[v4Dst:], dst[:])
	sumIPv4(b[:minIPv4])
	m := b[minIPv4:]
	m[0], m[1] = kind, code
	be.PutUint32(m[4:], info)
	copy(m[8:], quote)
	native.PutUint16(m[2:], ^fold(add(0, m)))
	w.write(len(b))
}

// query4 says whether an ICMP message is no error (RFC 1122 3.2.2).
func query4(kind uint8) bool { return kind == 0 || kind == 8 || kind >= 13 }

// v6 quotes as much as fits (RFC 4443 2.4).
func (w *errorWriter) v6(p packet, kind, code uint8, info uint32) {
	errors := p.proto() == unix.IPPROTO_ICMPV6 && len(p.b) > lenIPv6 && p.b[lenIPv6] < 128
	if errors || !addressed(p.src) || !w.from.V6.IsValid() || !w.allowed() {
		return
	}
	quote := p.b[:min(len(p.b), maxICMPv6-lenIPv6-8)]
	b := w.buf[lenVnet : lenVnet+lenIPv6+8+len(quote)]
	clear(b[:lenIPv6+8])
	b[0], b[v6Next], b[v6Hops] = 0x60, unix.IPPROTO_ICMPV6, 64
	be.PutUint16(b[v6Len:], uint16(8+len(quote)))
	src, dst := w.from.V6.As16(), p.src.As16()
	copy(b[v6Src:], src[:])
	copy(b[v6Dst:], dst[:])
	m := b[lenIPv6:]
	m[0], m[1] = kind, code
	be.PutUint32(m[4:], info)
	copy(m[8:], quote)
	whole := packet{b: b, v6: true}
	native.PutUint16(m[2:], ^fold(add(add16(whole.pseudo(unix.IPPROTO_ICMPV6), uint16(len(m))), m)))
	w.write(len(b))
}

// allowed takes a token, of which there are icmpRate per second.
func (w *errorWriter) allowed() bool {
	now := time.Now()
	w.tokens = min(icmpRate/10, w.tokens+now.Sub(w.last).Seconds()*icmpRate)
	w.last = now
	if w.tokens < 1 {
		return false
	}
	w.tokens--
	return true
}

func (w *errorWriter) write(n int) {
	clear(w.buf[:lenVnet])
	w.iov[0] = iovec(w.buf[:lenVnet+n])
	if _, e := writev(w.queue, w.iov[:]); e == 0 {
		w.count.icmp.Add(1)
	}
}
