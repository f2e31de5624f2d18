package udptun

import (
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

const (
	maxPacket = 65535
	slack     = 16 // keeps packets aligned

	// burstSize is how much is read before the trains have to leave: eight packets as large as they get, so that the
	// end of one shares a train with the beginning of the next.
	burstSize = 1 << 19
)

// A sender carries packets from one queue of the device to the wire.
//
//	read ─► parse ─► who holds the destination ─► TTL ─► finish checksum, or segment ─► trains ─► send
//
// It reads until there is nothing more or the burst is long enough, and lets the trains leave then: a burst
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

	got     int     // packets of the latest burst, as they were read
	in      []byte  // for one packet and its virtio header
	scratch []byte  // for a packet in one piece, off the fast path
	trains  []train // the first open ones are in use, the oldest first
	open    int
	hook    hook
}

// alloc takes of the worker's arena and allocates what else is needed. A wait ends when stop can be read.
func (s *sender) alloc(arena []byte, stop int) {
	s.in = arena[slack-lenVnet : slack+maxPacket]
	s.full = newSleeper(unix.POLLOUT, stop, -1)
	s.scratch = make([]byte, 0, maxPacket+1)
	s.trains = make([]train, openTrains)
	for i := range s.trains {
		s.trains[i].b = make([]byte, 0, maxPacket)
	}
}

// burst reads packets and puts them on trains. idle says that there are no more for now.
func (s *sender) burst() (idle, ok bool) {
	s.got = 0
	t := s.table.Load()
	for sum := 0; sum < burstSize; {
		n, e := read(s.queue, s.in)
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
		s.packet(t, readVnet(s.in), s.in[lenVnet:n])
		sum += n
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
	if size := len(p.b); size > int(to.limit.Load()) {
		s.flushPeer(to)
		s.tooBig(to, p.b)
	} else {
		copy(s.room(to, size), p.b)
	}
}

// segments cuts a large packet and puts its segments on trains, for which the payload is copied.
func (s *sender) segments(to *peer, p packet, v vnet) {
	u, ok := newSuper(p, v)
	if !ok {
		s.count.drop(outMalformed)
		return
	}
	if size := u.headers + min(u.size, len(u.b)-u.headers); size > int(to.limit.Load()) && u.fixed() {
		s.count.dropN(outTooBig, u.count-1)
		s.tooBig(to, u.segment(0, s.scratch[:size]))
		return
	}
	for i := range u.count {
		if size := u.headers + len(u.payload(i)); size > int(to.limit.Load()) {
			s.flushPeer(to)
			s.tooBig(to, u.segment(i, s.scratch[:size]))
		} else {
			u.segment(i, s.room(to, size))
		}
	}
}

// room returns the room for a packet on the train to its peer. There is one train per peer, so packets to a peer stay
// in order.
func (s *sender) room(to *peer, size int) []byte {
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
	return s.trains[i].add(size)
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
	switch e := s.send(t.to, t.b, t.size); {
	case e == 0:
		t.to.tx.add(t.count, len(t.b))
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

// send sends b in packets of the given size, and waits for room in the socket's buffer.
func (s *sender) send(to *peer, b []byte, size int) unix.Errno {
	fd := s.socket(to)
	if fd < 0 {
		return unix.EAFNOSUPPORT
	}
	for {
		s.count.sends.Add(1)
		e := s.hook.send(fd, to, b, size)
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
	for b := range slices.Chunk(t.b, t.size) {
		s.one(t.to, b)
	}
}

// one sends one packet. This is the slow path.
func (s *sender) one(to *peer, b []byte) {
	if len(b) > int(to.limit.Load()) {
		s.tooBig(to, b)
		return
	}
	switch e := s.send(to, b, len(b)); {
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
