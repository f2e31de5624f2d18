package udptun

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// devNull takes all that is written to it.
func devNull(t testing.TB) int {
	t.Helper()
	fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// deafReceiver writes to nowhere; peers are loopA with loopNet and loopNet6.
func deafReceiver(t testing.TB) *receiver {
	t.Helper()
	r := &receiver{socket: -1, queue: devNull(t), table: new(atomic.Pointer[table]), count: &counters{}, tcp: true, udp: true, both: true}
	r.table.Store(newTable(map[netip.Prefix]netip.Addr{loopNet: loopA, loopNet6: loopA}, 8285, nil))
	r.alloc(make([]byte, arenaSize))
	return r
}

// dumbSender sends into a socket that nobody reads.
func dumbSender(t testing.TB) *sender {
	t.Helper()
	fd, err := datagram(loopA)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	null := devNull(t)
	s := &sender{
		queue: null, sockets: family.Pair[int]{V4: fd, V6: fd}, path: &pathFinder{sockets: family.Pair[int]{V4: -1, V6: -1}},
		table: new(atomic.Pointer[table]), count: &counters{}, batch: maxSegments, log: func(string, ...any) {},
	}
	s.icmp = errorWriter{queue: null, from: subnetAddrs(), count: s.count}
	s.table.Store(newTable(map[netip.Prefix]netip.Addr{farNet: loopB, farNet6: loopB}, 9, nil))
	s.alloc(make([]byte, arenaSize), -1)
	return s
}

func subnetAddrs() family.Pair[netip.Addr] {
	return family.Pair[netip.Addr]{V4: loopNet.Addr(), V6: loopNet6.Addr()}
}

// seeds are packets between loopNet and farNet.
func seeds() [][]byte {
	v4 := []byte{0x45, 0, 0, 44, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 244, 1, 2, 10, 244, 2, 2}
	sumIPv4(v4)
	tcp := []byte{1, 2, 3, 4, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0, 'd', 'a', 't', 'a'}
	udp := []byte{1, 2, 3, 4, 0, 24, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0, 'd', 'a', 't', 'a'}
	v6 := append([]byte{0x60, 0, 0, 0, 0, 24, 6, 64}, loopNet6.Addr().AsSlice()...)
	v6 = append(v6, farNet6.Addr().AsSlice()...)
	a, b := append(v4[:20:20], tcp...), append(v4[:20:20], udp...)
	b[9] = 17
	return [][]byte{withSums(a, 20), withSums(b, 20), withSums(append(v6, tcp...), 40), {}, {0x45}}
}

// Whatever a peer sends: what is written to the device was written whole, and nothing else happens.
func FuzzDatagrams(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, 0, false)
		f.Add(append(s, s...), len(s), true)
	}
	r := deafReceiver(f)
	f.Fuzz(func(t *testing.T, b []byte, size int, stranger bool) {
		if len(b) > maxPacket {
			return
		}
		r.name = newSockaddr(loopA, 8285)
		if stranger {
			r.name = newSockaddr(loopB, 8285)
		}
		r.ctl.hdr.Level, r.ctl.hdr.Type = unix.SOL_UDP, unix.UDP_GRO
		r.ctl.hdr.SetLen(unix.CmsgLen(4))
		native.PutUint32(r.ctl.data[:], uint32(size))
		r.msg.SetControllen(unix.CmsgSpace(4))
		before := r.count.writes.Load()
		in := copy(r.arena, b)
		r.datagrams(r.table.Load(), r.arena[:in])
		for i := range r.open {
			if run := &r.runs[i]; run.count > 1 {
				checkRun(t, run)
			}
		}
		r.flushAll()
		if stranger && r.count.writes.Load() != before {
			t.Fatal("a stranger's packet was written")
		}
	})
}

// checkRun cuts a run again, which fails if it makes no sense.
func checkRun(t *testing.T, r *run) {
	var frame []byte
	head := make([]byte, lenVnet)
	for i, v := range r.iov[1:] {
		b := unsafe.Slice(v.Base, int(v.Len))
		if i == 0 {
			frame = append(frame, b...)
			continue
		}
		frame = append(frame, b...)
	}
	if len(frame) != r.total {
		t.Fatalf("%d bytes, want %d", len(frame), r.total)
	}
	v := vnet{flags: needsCsum, gso: gsoTCPv4, hdrLen: uint16(r.hdr), gsoSize: uint16(r.size), start: uint16(r.first.l4), offset: 16}
	if r.first.v6 {
		v.gso = gsoTCPv6
	}
	if !r.tcp {
		v.gso, v.offset = gsoUDPL4, 6
	}
	v.put(head)
	if n := len(cut(t, append(head, frame...))); n != r.count {
		t.Fatalf("%d packets, want %d", n, r.count)
	}
}

// Whatever the device gives: no header makes the sender read or write outside of the packet.
func FuzzFrames(f *testing.F) {
	for _, s := range seeds() {
		f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, s)
		f.Add([]byte{1, 1, 40, 0, 2, 0, 20, 0, 16, 0}, s)
		f.Add([]byte{1, 5, 28, 0, 3, 0, 20, 0, 6, 0}, s)
		f.Add([]byte{1, 4, 60, 0, 1, 0, 40, 0, 16, 0}, s)
	}
	s := dumbSender(f)
	f.Fuzz(func(t *testing.T, head, b []byte) {
		if len(head) != lenVnet || len(b) > maxPacket {
			return
		}
		in := copy(s.in[lenVnet:], b)
		s.packet(s.table.Load(), readVnet(head), s.in[lenVnet:lenVnet+in])
		for i := range s.open {
			if tr := &s.trains[i]; tr.count > s.batch || tr.count > 1 && len(tr.b) > maxTrain {
				t.Fatalf("train of %d packets, %d bytes", tr.count, len(tr.b))
			}
		}
		s.flushAll()
	})
}

// Nothing is allocated for a packet, in either direction, however large.
func TestNothingIsAllocatedPerPacket(t *testing.T) {
	s, r := dumbSender(t), deafReceiver(t)
	packet := seeds()[0]
	large := append(packet[:40:40], make([]byte, 20000)...)
	setLength(large, 1)
	frames := []struct {
		v vnet
		b []byte
	}{
		{vnet{}, packet},
		{vnet{flags: needsCsum, start: 20, offset: 16}, packet},
		{vnet{flags: needsCsum, gso: gsoTCPv4, gsoSize: 1400, start: 20, offset: 16}, large},
	}
	var burst []byte
	for i := range 20 {
		p := append(packet[:40:40], make([]byte, 1000)...)
		setLength(p, uint16(i))
		be.PutUint32(p[24:], uint32(i*1000))
		burst = append(burst, withSums(p, 20)...)
	}
	r.name = newSockaddr(loopA, 8285)
	n := testing.AllocsPerRun(100, func() {
		for _, f := range frames {
			in := copy(s.in[lenVnet:], f.b)
			s.packet(s.table.Load(), f.v, s.in[lenVnet:lenVnet+in])
			s.flushAll()
		}
		r.ctl.hdr.Level, r.ctl.hdr.Type = unix.SOL_UDP, unix.UDP_GRO
		r.ctl.hdr.SetLen(unix.CmsgLen(4))
		native.PutUint32(r.ctl.data[:], 1040)
		r.msg.SetControllen(unix.CmsgSpace(4))
		in := copy(r.arena, burst)
		r.datagrams(r.table.Load(), r.arena[:in])
		r.flushAll()
	})
	if n != 0 {
		t.Errorf("%v allocations per round", n)
	}
	if c := s.count; c.drops[outMalformed].Load()+c.drops[outNoPeer].Load()+c.drops[outTTL].Load() > 0 {
		t.Error("something was dropped")
	}
	if got := r.table.Load().peer(loopA).rx.packets.Load(); got != 20*101 {
		t.Errorf("%d packets received", got)
	}
	if got := r.count.writes.Load(); got != 101 {
		t.Errorf("%d writes for 101 bursts of 20 packets", got)
	}
}
