package udptun

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxSegments = 64 // UDP_MAX_SEGMENTS of the first kernels that have UDP_SEGMENT; 128 since Linux 6.9

	// maxTrain keeps a whole train within one UDP datagram's length field with either IP header.
	maxTrain = 65535 - lenUDP - lenIPv6

	// openTrains is how many peers a burst may go to before the oldest train has to leave.
	openTrains = 8
)

// A train is packets to one peer that leave in one system call: all of one size but the last, which may
// be shorter (UDP_SEGMENT, udp(7)).
type train struct {
	to     *peer
	size   int
	bytes  int
	count  int
	closed bool // by a shorter packet
	iov    []unix.Iovec
}

// fits says whether a packet of size bytes may go on.
func (t *train) fits(size, segments int) bool {
	return t.count < segments && !t.closed && size <= t.size && t.bytes+size <= maxTrain
}

// append adds a packet, given as a head and a tail that may be empty.
func (t *train) append(head, tail []byte) {
	size := len(head) + len(tail)
	if t.count == 0 {
		t.size = size
	}
	t.closed = size < t.size
	t.bytes += size
	t.count++
	t.iov = append(t.iov, iovec(head))
	if len(tail) > 0 {
		t.iov = append(t.iov, iovec(tail))
	}
}

func (t *train) reset() { *t = train{iov: t.iov[:0]} }

// each calls f with every packet in one piece, put together in buf.
func (t *train) each(buf []byte, f func([]byte)) {
	b := buf[:0]
	for i, v := range t.iov {
		b = append(b, iovecBytes(v)...)
		if len(b) == t.size || i == len(t.iov)-1 {
			f(b)
			b = buf[:0]
		}
	}
}

// A hook is the message header with which a worker sends.
type hook struct {
	msg unix.Msghdr
	ctl control
}

// send sends a train through the socket.
func (h *hook) send(fd int, t *train) unix.Errno {
	h.msg.Name = (*byte)(unsafe.Pointer(&t.to.sa.raw))
	h.msg.Namelen = t.to.sa.len
	h.msg.Iov = unsafe.SliceData(t.iov)
	h.msg.SetIovlen(len(t.iov))
	h.msg.Control = nil
	h.msg.SetControllen(0)
	if t.count > 1 {
		h.msg.Control = (*byte)(unsafe.Pointer(&h.ctl))
		h.msg.SetControllen(h.ctl.segments(t.size))
	}
	return sendmsg(fd, &h.msg)
}
