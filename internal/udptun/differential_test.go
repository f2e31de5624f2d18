package udptun

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/weftnet/weft/internal/family"
)

// A loop is a sender and a receiver with the real UDP of the kernel between them, on loopback, and a pair
// of Unix sockets in the place of each device.
type loop struct {
	send sender
	recv receiver
	in   int // packets written here come from the near device
	out  int // packets read here went to the far device
}

var (
	loopA, loopB = netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	loopNet      = netip.MustParsePrefix("10.244.1.0/24") // the sender's pods
	loopNet6     = netip.MustParsePrefix("fd24:0:0:1::/64")
	farNet       = netip.MustParsePrefix("10.244.2.0/24")
	farNet6      = netip.MustParsePrefix("fd24:0:0:2::/64")
)

// newLoop makes a loop in the calling thread's namespace. offload switches everything on or off.
func newLoop(t testing.TB, offload bool) *loop {
	t.Helper()
	l := &loop{}
	pair := func() (ours, theirs int) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			t.Cleanup(func() { unix.Close(fd) })
			for _, opt := range []int{unix.SO_SNDBUFFORCE, unix.SO_RCVBUFFORCE} {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, 64<<20); err != nil {
					t.Fatal(err)
				}
			}
		}
		return fds[0], fds[1]
	}
	socket := func(a netip.Addr, port int) (fd, bound int) {
		fd, err := openSocket(a, port, offload)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		sa, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		return fd, sa.(*unix.SockaddrInet4).Port
	}
	far, port := socket(loopB, 0)
	near, _ := socket(loopA, port)
	l.send = sender{
		sockets: family.Pair[int]{V4: near, V6: near}, path: &pathFinder{}, count: &counters{}, batch: 1, log: func(string, ...any) {},
	}
	l.recv = receiver{socket: far, count: &counters{}, tcp: offload, udp: offload}
	l.in, l.send.queue = pair()
	l.recv.queue, l.out = pair()
	l.send.icmp = errorWriter{queue: l.send.queue, count: l.send.count}
	if offload {
		l.send.batch = maxSegments
	}
	l.send.table, l.recv.table = new(atomic.Pointer[table]), new(atomic.Pointer[table])
	l.send.table.Store(newTable(map[netip.Prefix]netip.Addr{farNet: loopB, farNet6: loopB}, port, nil))
	l.recv.table.Store(newTable(map[netip.Prefix]netip.Addr{loopNet: loopA, loopNet6: loopA}, port, nil))
	arena := make([]byte, arenaSize)
	l.send.alloc(arena, -1)
	l.recv.alloc(arena)
	return l
}

// carry sends frames (virtio header and packet) through the loop and returns what comes out, cut up as the
// kernel would.
func (l *loop) carry(t failer, frames [][]byte) [][]byte {
	t.Helper()
	var out [][]byte
	for len(frames) > 0 {
		for range min(len(frames), 16) { // so that bursts differ in length from what was generated together
			if _, err := unix.Write(l.in, frames[0]); err != nil {
				t.Fatal(err)
			}
			frames = frames[1:]
		}
		for {
			idle, ok := l.send.burst()
			l.send.flushAll()
			if !ok {
				t.Fatal("sender is done")
			}
			if idle {
				break
			}
		}
		for left := l.sent(); l.received() < left; {
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(l.recv.socket), Events: unix.POLLIN}}, int(deadline.Milliseconds())); n == 0 && err == nil {
				t.Fatalf("%d datagrams were sent, and %d received", left, l.received())
			}
			if _, ok := l.recv.burst6(); !ok {
				t.Fatal("receiver is done")
			}
		}
		buf := make([]byte, 1<<17)
		for {
			n, e := read(l.out, buf)
			if e == unix.EAGAIN {
				break
			}
			if e != 0 {
				t.Fatal(e)
			}
			out = append(out, cut(t, buf[:n])...)
		}
	}
	return out
}

// sent returns how many datagrams have left. They need not be there yet: on a busy machine loopback leaves them to a
// thread of the kernel (ksoftirqd).
func (l *loop) sent() uint64 { return l.send.table.Load().peer(loopB).tx.packets.Load() }

// received returns how many datagrams have been carried or dropped.
func (l *loop) received() uint64 {
	n := l.recv.table.Load().peer(loopA).rx.packets.Load()
	for _, d := range []drop{inSpoofed, inShort, inMalformed, inTTL, inMulticast} {
		n += l.recv.count.drops[d].Load()
	}
	return n
}

// burst6 is burst with packets of either family allowed on the one socket, since loopback has only IPv4 for
// sure.
func (r *receiver) burst6() (idle, ok bool) {
	r.both = true
	idle, ok = r.burst()
	r.flushAll()
	return idle, ok
}

// cut is what the kernel does with a packet from the device, written without a look at how ours does it.
func cut(t failer, frame []byte) [][]byte {
	t.Helper()
	v, b := readVnet(frame), bytes.Clone(frame[lenVnet:])
	l4 := int(v.start)
	switch {
	case v.gso == gsoNone && v.flags == 0:
		return [][]byte{b}
	case v.flags != needsCsum:
		t.Fatalf("virtio header %+v", v)
	case v.gso == gsoNone:
		return [][]byte{withSums(b, l4)}
	}
	hdr := int(v.hdrLen)
	payload := b[hdr:]
	if n := len(payload); n > int(v.gsoSize)*64 {
		t.Fatalf("%d bytes in segments of %d: the kernel refuses that", n, v.gsoSize)
	}
	var out [][]byte
	for i := 0; len(payload) > 0; i++ {
		n := min(int(v.gsoSize), len(payload))
		p := append(bytes.Clone(b[:hdr]), payload[:n]...)
		payload = payload[n:]
		if b[0]>>4 == 4 {
			be.PutUint16(p[2:], uint16(len(p)))
			be.PutUint16(p[4:], be.Uint16(b[4:])+uint16(i))
		} else {
			be.PutUint16(p[4:], uint16(len(p)-40))
		}
		if v.gso == gsoUDPL4 {
			be.PutUint16(p[l4+4:], uint16(len(p)-l4))
		} else {
			be.PutUint32(p[l4+4:], be.Uint32(b[l4+4:])+uint32(i)*uint32(v.gsoSize))
			if len(payload) > 0 {
				p[l4+13] &^= 0x09 // FIN, PSH
			}
			if i > 0 {
				p[l4+13] &^= 0x80 // CWR
			}
		}
		out = append(out, withSums(p, l4))
	}
	return out
}

// withSums writes all checksums of a TCP or UDP packet.
func withSums(p []byte, l4 int) []byte {
	var pseudo []byte
	proto := p[6]
	if p[0]>>4 == 4 {
		proto = p[9]
		p[10], p[11] = 0, 0
		be.PutUint16(p[10:], ^slowSum(p[:int(p[0]&15)*4]))
		pseudo = append(pseudo, p[12:20]...)
	} else {
		pseudo = append(pseudo, p[8:40]...)
	}
	at := l4 + 16
	if proto == unix.IPPROTO_UDP {
		at = l4 + 6
	}
	p[at], p[at+1] = 0, 0
	pseudo = append(pseudo, 0, proto, byte((len(p)-l4)>>8), byte(len(p)-l4))
	sum := ^slowSum(append(pseudo, p[l4:]...))
	if sum == 0 && proto == unix.IPPROTO_UDP {
		sum = 0xffff
	}
	be.PutUint16(p[at:], sum)
	return p
}

// A stream is the same packets in two forms: one by one and complete, and as the kernel hands them over
// when it may leave work to others.
type stream struct {
	plain   [][]byte // frames
	offload [][]byte
	want    [][]byte // packets at the far device
}

// add adds a whole packet, whose TTL is ttl.
func (s *stream) add(b []byte, inOffload bool) {
	frame := append(make([]byte, lenVnet), b...)
	s.plain = append(s.plain, frame)
	if inOffload {
		s.offload = append(s.offload, frame)
	}
	w := bytes.Clone(b)
	at := 8
	if b[0]>>4 == 6 {
		at = 7
	}
	if w[at] <= 2 {
		return
	}
	w[at] -= 2
	if b[0]>>4 == 4 { // RFC 1624 keeps a wrong checksum as wrong as it was
		right := ^slowSum(zeroed(b[:int(b[0]&15)*4]))
		was := be.Uint16(b[10:])
		be.PutUint16(w[10:], ^slowSum(zeroed(w[:int(w[0]&15)*4])))
		if was != right {
			be.PutUint16(w[10:], ^ones(^was, 0xfdff))
		}
	}
	s.want = append(s.want, w)
}

func ones(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s + s>>16)
}

func zeroed(h []byte) []byte {
	h = bytes.Clone(h)
	h[10], h[11] = 0, 0
	return h
}

// header returns an IP header without checksum and length.
func header(t *rapid.T, v6 bool, proto byte, flow byte) []byte {
	ttl := rapid.SampledFrom([]byte{64, 64, 64, 64, 255, 3, 2, 1}).Draw(t, "ttl")
	tos := rapid.SampledFrom([]byte{0, 0, 0, 1, 2, 3, 0xb8}).Draw(t, "tos")
	if v6 {
		h := make([]byte, 40)
		h[0], h[1], h[6], h[7] = 0x60|tos>>4, tos<<4, proto, ttl
		copy(h[8:], loopNet6.Addr().AsSlice())
		copy(h[24:], farNet6.Addr().AsSlice())
		h[23], h[39] = 2, flow
		return h
	}
	h := make([]byte, 20)
	h[0], h[1], h[8], h[9] = 0x45, tos, ttl, proto
	if rapid.Bool().Draw(t, "df") {
		h[6] = 0x40
	}
	copy(h[12:], []byte{10, 244, 1, 2, 10, 244, 2, flow})
	if rapid.IntRange(0, 9).Draw(t, "options") == 0 {
		h[0] = 0x47
		h = append(h, 0x94, 4, 0, 0, 1, 1, 1, 0) // router alert, padding
	}
	return h
}

func setLength(b []byte, id uint16) {
	if b[0]>>4 == 6 {
		be.PutUint16(b[4:], uint16(len(b)-40))
		return
	}
	be.PutUint16(b[2:], uint16(len(b)))
	be.PutUint16(b[4:], id)
	b[10], b[11] = 0, 0
	be.PutUint16(b[10:], ^slowSum(b[:int(b[0]&15)*4]))
}

func payload(t *rapid.T, n int) []byte {
	seed := rapid.Byte().Draw(t, "seed")
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i*7) | byte(i>>8)
	}
	return b
}

// tcpRun adds n segments of one flow, in the offloaded form as one packet where the kernel could have had
// them so.
func (s *stream) tcpRun(t *rapid.T) {
	v6, flow := rapid.Bool().Draw(t, "v6"), rapid.Byte().Draw(t, "flow")%3
	h := header(t, v6, unix.IPPROTO_TCP, flow)
	l4 := len(h)
	tcp := make([]byte, 20)
	be.PutUint16(tcp, 1000)
	be.PutUint16(tcp[2:], 2000)
	be.PutUint32(tcp[4:], rapid.SampledFrom([]uint32{1, 0xffffff00}).Draw(t, "seq"))
	be.PutUint32(tcp[8:], rapid.Uint32Range(0, 1).Draw(t, "ack"))
	tcp[12], tcp[13] = 5<<4, rapid.SampledFrom([]byte{0x10, 0x18, 0x10, 0x50, 0x90, 0x11, 0x02, 0x30}).Draw(t, "flags")
	tcp[14] = rapid.ByteRange(0, 1).Draw(t, "window")
	if rapid.Bool().Draw(t, "timestamps") {
		tcp = append(tcp, 1, 1, 8, 10, 0, 0, 0, rapid.ByteRange(0, 1).Draw(t, "timestamp"), 0, 0, 0, 1)
		tcp[12] = 8 << 4
	}
	h = append(h, tcp...)
	size := rapid.SampledFrom([]int{1, 100, 536, 1400, 1448, 8948}).Draw(t, "size")
	total := rapid.IntRange(1, min(60*size, 65535-len(h))).Draw(t, "total")
	whole := append(h, payload(t, total)...)
	v := vnet{flags: needsCsum, gso: gsoTCPv4, hdrLen: uint16(len(h)), gsoSize: uint16(size), start: uint16(l4), offset: 16}
	if v6 {
		v.gso = gsoTCPv6
	}
	s.super(t, v, whole, uint16(rapid.IntRange(0, 65535).Draw(t, "id")))
}

// udpRun is tcpRun for UDP.
func (s *stream) udpRun(t *rapid.T) {
	v6, flow := rapid.Bool().Draw(t, "v6"), rapid.Byte().Draw(t, "flow")%3
	h := header(t, v6, unix.IPPROTO_UDP, flow)
	l4 := len(h)
	h = append(h, 4, 0, 5, 0, 0, 0, 0, 0)
	size := rapid.SampledFrom([]int{1, 18, 100, 1400, 8948}).Draw(t, "size")
	total := rapid.IntRange(1, min(60*size, 65535-len(h))).Draw(t, "total")
	whole := append(h, payload(t, total)...)
	s.super(t, vnet{flags: needsCsum, gso: gsoUDPL4, hdrLen: uint16(len(h)), gsoSize: uint16(size), start: uint16(l4), offset: 6},
		whole, uint16(rapid.IntRange(0, 65535).Draw(t, "id")))
}

// super adds a large packet, with the pseudo-header's sum in it, and its segments.
func (s *stream) super(t *rapid.T, v vnet, whole []byte, id uint16) {
	setLength(whole, id)
	frame := make([]byte, lenVnet)
	v.put(frame)
	segments := cut(t, append(frame, whole...))
	if len(segments) == 1 { // not larger than it looks: the kernel gives no segment size then
		v.gso, v.gsoSize = gsoNone, 0
		v.put(frame)
	}
	var pseudo []byte
	proto := whole[6]
	if whole[0]>>4 == 4 {
		proto = whole[9]
		pseudo = append(pseudo, whole[12:20]...)
	} else {
		pseudo = append(pseudo, whole[8:40]...)
	}
	n := len(whole) - int(v.start)
	pseudo = append(pseudo, 0, proto, byte(n>>8), byte(n))
	be.PutUint16(whole[int(v.start)+int(v.offset):], slowSum(pseudo))
	if proto == unix.IPPROTO_UDP {
		be.PutUint16(whole[int(v.start)+4:], uint16(n))
	}
	partial := rapid.IntRange(0, 3).Draw(t, "complete") > 0
	if partial {
		s.offload = append(s.offload, append(frame, whole...))
	}
	for i, b := range segments {
		if !partial && i > 0 && rapid.IntRange(0, 15).Draw(t, "spoil") == 0 {
			b = bytes.Clone(b)
			b[len(b)-1] ^= 0x55 // a wrong checksum arrives as wrong as it was
		}
		s.add(b, !partial)
	}
}

// A failer is a *testing.T or a *rapid.T.
type failer interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// odd adds a packet that is no part of anything.
func (s *stream) odd(t *rapid.T) {
	v6, flow := rapid.Bool().Draw(t, "v6"), rapid.Byte().Draw(t, "flow")%3
	proto := rapid.SampledFrom([]byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP, unix.IPPROTO_ICMP, 99}).Draw(t, "proto")
	b := append(header(t, v6, proto, flow), payload(t, rapid.IntRange(0, 2000).Draw(t, "length"))...)
	setLength(b, 7)
	if !v6 && rapid.Bool().Draw(t, "fragment") {
		be.PutUint16(b[6:], rapid.SampledFrom([]uint16{0x2000, 0x2001, 0x0003}).Draw(t, "offset"))
		setLength(b, 7)
	}
	if !v6 && rapid.IntRange(0, 9).Draw(t, "bad header") == 0 {
		b[11] ^= 1
	}
	s.add(b, true)
}

// perFlow groups packets: only those of one flow have an order.
func perFlow(ps [][]byte) map[string][][]byte {
	m := map[string][][]byte{}
	for _, p := range ps {
		key := ""
		switch {
		case p[0]>>4 == 6:
			key = fmt.Sprintf("%x %d", p[8:40], p[6])
		default:
			key = fmt.Sprintf("%x %d", p[12:20], p[9])
		}
		m[key] = append(m[key], p)
	}
	return m
}

func compareStreams(t failer, name string, want, got [][]byte) {
	w, g := perFlow(want), perFlow(got)
	for key := range w {
		for i := range min(len(w[key]), len(g[key])) {
			if !bytes.Equal(w[key][i], g[key][i]) {
				a, b := w[key][i], g[key][i]
				t.Fatalf("%s: flow %s packet %d of %d:\nwant %d %s\ngot  %d %s", name, key, i, len(w[key]),
					len(a), hex.EncodeToString(a[:min(len(a), 60)]), len(b), hex.EncodeToString(b[:min(len(b), 60)]))
			}
		}
		if len(w[key]) != len(g[key]) {
			t.Fatalf("%s: flow %s: %d packets, want %d", name, key, len(g[key]), len(w[key]))
		}
	}
	if len(want) != len(got) {
		t.Fatalf("%s: %d packets, want %d", name, len(got), len(want))
	}
}

// Random streams through the offloaded and the plain path are the same bytes at the far device.
func TestOffloadChangesNothing(t *testing.T) {
	s := newSpace(t)
	s.run(func() {
		fast, slow := newLoop(t, true), newLoop(t, false)
		rapid.Check(t, func(t *rapid.T) {
			var s stream
			for range rapid.IntRange(1, 12).Draw(t, "runs") {
				rapid.SampledFrom([]func(*rapid.T){s.tcpRun, s.tcpRun, s.udpRun, s.odd}).Draw(t, "kind")(t)
			}
			compareStreams(t, "plain", s.want, slow.carry(t, slices.Clone(s.plain)))
			compareStreams(t, "offloaded", s.want, fast.carry(t, slices.Clone(s.offload)))
			compareStreams(t, "complete, joined at the far end", s.want, fast.carry(t, slices.Clone(s.plain)))
		})
		t.Logf("plain: %s", slow.counts())
		t.Logf("offloaded: %s", fast.counts())
	})
}

func (l *loop) counts() string {
	return fmt.Sprintf("%d reads, %d sends, %d receives, %d writes, %d packets", l.send.count.reads.Load(), l.send.count.sends.Load(),
		l.recv.count.receives.Load(), l.recv.count.writes.Load(), l.recv.table.Load().peer(loopA).rx.packets.Load())
}
