package udptun

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

const (
	maxPacket   = 65535
	headerArena = 1 << 16
	slack       = 16 // keeps packets aligned
)

// A sender carries packets from one queue of the device to the wire.
//
//	read ─► parse ─► who holds the destination ─► TTL ─► finish checksum, or segment ─► trains ─► send
//
// It reads until there is nothing more or the arena is full, and lets the trains leave then: a burst
// leaves in few system calls, a lone packet waits for nothing.
type sender struct {
	queue   int // descriptor of the device's queue
	sockets family.Pair[int]
	full    sleeper // for room in a socket's buffer
	path    *pathFinder
	table   *atomic.Pointer[table]
	count   *counters
	icmp    errorWriter
	batch   int // segments per train; 1: no UDP_SEGMENT
	log     func(msg string, args ...any)

	got     int // packets of the latest burst, as they were read
	arena   []byte
	headers []byte
	used    int     // of headers
	scratch []byte  // for a packet in one piece, off the fast path
	trains  []train // the first open ones are in use, the oldest first
	open    int
	hook    hook
}

// alloc takes the worker's arena and allocates what else is needed. A wait ends when stop can be read.
func (s *sender) alloc(arena []byte, stop int) {
	s.arena = arena
	s.full = newSleeper(unix.POLLOUT, stop, -1)
	s.headers = make([]byte, headerArena)
	s.scratch = make([]byte, 0, maxPacket+1)
	s.trains = make([]train, openTrains)
	for i := range s.trains {
		s.trains[i].iov = make([]unix.Iovec, 0, 2*maxSegments)
	}
}

// burst reads packets into the arena and puts them on trains. idle says that there are no more for now.
func (s *sender) burst() (idle, ok bool) {
	s.used, s.got = 0, 0
	t := s.table.Load()
	for at := slack - lenVnet; at+lenVnet+maxPacket <= len(s.arena); {
		n, e := read(s.queue, s.arena[at:])
		switch {
		case e == unix.EINTR:
			continue
		case e == unix.EAGAIN:
			return true, true
		case e != 0:
			return false, e != unix.EBADFD && e != unix.EBADF // the device was deleted
		case n < lenVnet:
			s.count.drop(outMalformed)
			continue
		}
		s.got++
		s.count.reads.Add(1)
		s.packet(t, readVnet(s.arena[at:]), s.arena[at+lenVnet:at+n])
		at += (n + slack - 1) / slack * slack
	}
	return false, true
}

// packet puts one packet, or the segments of a large one, on trains.
func (s *sender) packet(t *table, v vnet, b []byte) {
	p, ok := parse(b)
	if !ok {
		s.count.drop(outMalformed)
		return
	}
	to := t.to(p.dst)
	switch {
	case !addressed(p.dst):
		s.count.drop(outMulticast)
		return
	case to == nil:
		s.count.drop(outNoPeer)
		s.icmp.unreachable(p)
		return
	case !p.decrement():
		s.count.drop(outTTL)
		return
	case v.gso != gsoNone:
		s.segments(to, p, v)
		return
	case !v.finish(p.b):
		s.count.drop(outMalformed)
		return
	}
	s.add(to, p.b, nil)
}

// segments cuts a large packet and puts its segments on trains. Only headers are copied: the payload
// stays where it is, between the headers in the message's vector.
func (s *sender) segments(to *peer, p packet, v vnet) {
	u, ok := newSuper(p, v)
	if !ok {
		s.count.drop(outMalformed)
		return
	}
	if size := u.headers + min(u.size, len(u.b)-u.headers); size > int(to.limit.Load()) && u.fixed() {
		first := s.scratch[:u.headers]
		u.header(0, first, u.payload(0))
		s.count.dropN(outTooBig, u.count-1)
		s.tooBig(to, append(first, u.payload(0)...))
		return
	}
	for i := range u.count {
		if s.used+u.headers > len(s.headers) {
			s.flushAll()
			s.used = 0
		}
		h := s.headers[s.used : s.used+u.headers]
		s.used += u.headers
		payload := u.payload(i)
		u.header(i, h, payload)
		s.add(to, h, payload)
	}
}

// add puts a packet, given in two parts, on the train to its peer. There is one train per peer, so packets to
// a peer stay in order.
func (s *sender) add(to *peer, head, tail []byte) {
	size := len(head) + len(tail)
	if size > int(to.limit.Load()) {
		s.flushPeer(to)
		s.tooBig(to, append(append(s.scratch[:0], head...), tail...))
		return
	}
	i := s.find(to)
	if i >= 0 && !s.trains[i].fits(size, s.batch) {
		s.flush(&s.trains[i])
		s.trains[i].to = to
	}
	if i < 0 {
		if s.open == len(s.trains) {
			s.flushAll()
		}
		i = s.open
		s.trains[i].to = to
		s.open++
	}
	s.trains[i].append(head, tail)
}

func (s *sender) find(to *peer) int {
	for i := range s.open {
		if s.trains[i].to == to {
			return i
		}
	}
	return -1
}

func (s *sender) flushPeer(to *peer) {
	if i := s.find(to); i >= 0 {
		s.flush(&s.trains[i])
		s.trains[i].to = to
	}
}

func (s *sender) flushAll() {
	for i := range s.open {
		s.flush(&s.trains[i])
	}
	s.open = 0
}

func (s *sender) socket(to *peer) int { return s.sockets.Of(family.Of(to.addr)) }

// flush sends a train and empties it.
func (s *sender) flush(t *train) {
	if t.count == 0 {
		return
	}
	switch e := s.send(t); {
	case e == 0:
		t.to.tx.add(t.count, t.bytes)
	case e == unix.EIO && t.count > 1:
		// No checksum offload on the way out, without which the kernel does not segment.
		s.log("UDP_SEGMENT does not work on the way to a peer: off for this queue", "peer", t.to.addr, "err", e)
		s.batch = 1
		s.singly(t)
	case e == unix.EMSGSIZE, e == unix.EINVAL && t.count > 1: // older kernels say EINVAL for a train
		// Larger than the path takes, which the kernel knows from ICMP or from a route.
		s.path.learn(t.to, t.size)
		s.singly(t)
	default:
		s.count.dropN(outRefused, t.count)
	}
	t.reset()
}

// send sends a train as it is, and waits for room in the socket's buffer.
func (s *sender) send(t *train) unix.Errno {
	fd := s.socket(t.to)
	if fd < 0 {
		return unix.EAFNOSUPPORT
	}
	for {
		s.count.sends.Add(1)
		e := s.hook.send(fd, t)
		switch e {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			s.full[1].Fd = int32(fd)
			if stop, ok := s.full.wait(-1); stop || !ok {
				return unix.ECANCELED
			}
			continue
		}
		return e
	}
}

// singly sends the packets of a train one by one, as far as they fit.
func (s *sender) singly(t *train) {
	t.each(s.scratch, func(b []byte) { s.one(t.to, b) })
}

// one sends one packet. This is the slow path.
func (s *sender) one(to *peer, b []byte) {
	if len(b) > int(to.limit.Load()) {
		s.tooBig(to, b)
		return
	}
	t := train{to: to, iov: make([]unix.Iovec, 0, 1)}
	t.append(b, nil)
	switch e := s.send(&t); {
	case e == 0:
		to.tx.add(1, len(b))
	case e == unix.EMSGSIZE && s.path.learn(to, len(b)):
		s.tooBig(to, b)
	default:
		s.count.drop(outRefused)
	}
}

// tooBig deals with a packet that is larger than the path takes, as a router does (RFC 1812 4.2.2.7, RFC
// 8201): the sender is told, or the packet is fragmented where that is allowed.
func (s *sender) tooBig(to *peer, b []byte) {
	limit := int(to.limit.Load())
	p, ok := parse(b)
	if !ok || limit < minIPv4 {
		s.count.drop(outTooBig)
		return
	}
	if p.fixed() {
		s.count.drop(outTooBig)
		s.icmp.tooBig(p, limit)
		return
	}
	fragment(p, limit, func(f []byte) {
		if len(f) <= int(to.limit.Load()) { // else it got smaller just now: lost
			s.one(to, f)
		}
	})
}
