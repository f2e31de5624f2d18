package udptun

import (
	"net/netip"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openRuns is how many flows of a burst are merged side by side.
const openRuns = 8

// A receiver carries packets from one socket to the device.
//
//	receive ─► split ─► is the sender a peer ─► is the source its own ─► TTL ─► runs of a flow ─► write
//
// Like the sender it takes what is there, up to the size of the arena, and lets it go then.
type receiver struct {
	socket int
	queue  int  // descriptor of the device's queue
	v6     bool // the family of the socket,
	both   bool // and of packets, unless a test has one socket for both
	table  *atomic.Pointer[table]
	count  *counters
	tcp    bool // TCP may be merged,
	udp    bool // and UDP
	any    bool // peers may send from any source

	got   int // receives of the latest burst
	arena []byte
	name  sockaddr
	ctl   control
	vec   [1]unix.Iovec
	msg   unix.Msghdr
	runs  []run // the first open ones are in use
	last  *run  // what the receive's latest packet went on; nil: on none
	plain [lenVnet]byte
	alone [2]unix.Iovec
	open  int
}

// alloc takes the worker's arena and allocates what else is needed.
func (r *receiver) alloc(arena []byte) {
	r.arena = arena
	r.runs = make([]run, openRuns)
	for i := range r.runs {
		r.runs[i].iov = make([]unix.Iovec, 1, 1+maxSegments)
		r.runs[i].vnet = new([lenVnet]byte)
		r.runs[i].iov[0] = iovec(r.runs[i].vnet[:])
	}
	r.alone[0] = iovec(r.plain[:])
}

// burst receives datagrams into the arena and puts the packets in them on runs.
func (r *receiver) burst() (idle, ok bool) {
	r.got = 0
	t := r.table.Load()
	for at := 0; at+maxPacket <= len(r.arena); {
		n, e := r.receive(r.arena[at : at+maxPacket])
		switch {
		case e == unix.EINTR:
			continue
		case e == unix.EAGAIN:
			return true, true
		case e == unix.EBADF, e == unix.ENOTSOCK:
			return false, false
		case e != 0:
			continue // an error of an earlier send, which is cleared by telling it
		}
		r.got++
		r.count.receives.Add(1)
		r.datagrams(t, r.arena[at:at+n])
		at += (n + slack - 1) / slack * slack
	}
	return false, true
}

func (r *receiver) receive(b []byte) (int, unix.Errno) {
	r.vec[0] = iovec(b)
	r.msg = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&r.name.raw)), Namelen: uint32(unsafe.Sizeof(r.name.raw)), Iov: &r.vec[0]}
	r.msg.SetIovlen(1)
	r.msg.Control = (*byte)(unsafe.Pointer(&r.ctl))
	r.msg.SetControllen(int(unsafe.Sizeof(r.ctl)))
	return recvmsg(r.socket, &r.msg)
}

// datagrams takes apart what one receive brought: datagrams of one sender and one size, of which the last
// may be shorter (UDP_GRO).
func (r *receiver) datagrams(t *table, b []byte) {
	size := r.ctl.segmentSize(int(r.msg.Controllen))
	if size <= 0 || size > len(b) {
		size = len(b)
	}
	n := 1
	if size > 0 {
		n = (len(b) + size - 1) / size
	}
	from := t.peer(r.name.addr())
	if from == nil {
		r.count.dropN(inUnknown, n)
		return
	}
	packets, octets := 0, 0
	r.last = nil // of another sender
	for len(b) > 0 || n > 0 {
		d := b[:min(size, len(b))]
		b, n = b[len(d):], 0
		p, ok := r.last.like(d)
		switch {
		case ok:
			r.join(r.last, p, r.last.hdr)
		default:
			if p, ok = r.check(t, from, d); !ok {
				continue
			}
			r.packet(p)
		}
		packets++
		octets += len(p.b)
	}
	from.rx.add(packets, octets)
}

// check decides whether a datagram is a packet to carry, and counts it if not.
func (r *receiver) check(t *table, from *peer, d []byte) (packet, bool) {
	if len(d) < minIPv4 {
		r.count.drop(inShort)
		return packet{}, false
	}
	p, ok := parse(d)
	switch {
	case !ok || p.v6 != r.v6 && !r.both:
		r.count.drop(inMalformed)
	case !r.any && !r.owns(t, from, p.src):
		r.count.drop(inSpoofed)
		from.spoof.Add(1)
	case !addressed(p.dst):
		r.count.drop(inMulticast)
	case !p.decrement():
		r.count.drop(inTTL)
	default:
		return p, true
	}
	return packet{}, false
}

// owns says whether the source of a packet is in a subnet of the peer that sent it.
func (r *receiver) owns(t *table, from *peer, src netip.Addr) bool { return t.to(src) == from }

// packet puts p on the run that it continues, or begins one. A packet never overtakes another one of its
// flow.
func (r *receiver) packet(p packet) {
	hdr, ok := mergeable(p)
	if p.proto() == unix.IPPROTO_UDP {
		ok = ok && r.udp
	} else {
		ok = ok && r.tcp
	}
	if !ok {
		for i := range r.open {
			if r.runs[i].pair(p) { // perhaps of the same flow: a fragment does not tell
				r.flush(&r.runs[i])
			}
		}
		r.write(p)
		return
	}
	for i := range r.open {
		if run := &r.runs[i]; run.flow(p) {
			r.join(run, p, hdr)
			return
		}
	}
	if r.open == len(r.runs) {
		r.flushAll()
	}
	r.last = &r.runs[r.open]
	r.last.start(p, hdr)
	r.open++
}

// join puts p, which is of run's flow, on it, or begins it anew.
func (r *receiver) join(run *run, p packet, hdr int) {
	r.last = run
	if !run.take(p, hdr) {
		r.flush(run)
		run.start(p, hdr)
	}
}

func (r *receiver) flushAll() {
	for i := range r.open {
		r.flush(&r.runs[i])
	}
	r.open = 0
}

// flush writes a run. It stays open, empty.
func (r *receiver) flush(run *run) {
	if run.count == 0 {
		return
	}
	run.finish().put(run.vnet[:])
	r.vector(run.iov, run.count)
	run.count, run.closed = 0, true
}

// write writes a packet as it is.
func (r *receiver) write(p packet) {
	r.alone[1] = iovec(p.b)
	r.vector(r.alone[:], 1)
}

func (r *receiver) vector(iov []unix.Iovec, packets int) {
	for {
		r.count.writes.Add(1)
		_, e := writev(r.queue, iov)
		switch e {
		case 0:
			return
		case unix.EINTR:
			continue
		}
		r.count.dropN(inRefused, packets)
		return
	}
}
