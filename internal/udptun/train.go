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
// be shorter (UDP_SEGMENT, udp(7)). They are put together here, since for the kernel to gather headers and payload
// by a vector costs more than a copy within the CPU's second cache.
type train struct {
	to     *peer
	size   int
	count  int
	closed bool   // by a shorter packet
	b      []byte // has room for a packet of any size
}

// fits says whether a packet of size bytes may go on.
func (t *train) fits(size, segments int) bool {
	return t.count < segments && !t.closed && size <= t.size && len(t.b)+size <= maxTrain
}

// add returns the room for one more packet, which is to be filled.
func (t *train) add(size int) []byte {
	if t.count == 0 {
		t.size = size
	}
	t.closed = size < t.size
	t.count++
	t.b = t.b[:len(t.b)+size]
	return t.b[len(t.b)-size:]
}

func (t *train) reset() { *t = train{b: t.b[:0]} }

// A hook is the message header with which a worker sends.
type hook struct {
	msg unix.Msghdr
	vec [1]unix.Iovec
	ctl control
}

// send sends b through the socket, in packets of the given size.
func (h *hook) send(fd int, to *peer, b []byte, size int) unix.Errno {
	h.vec[0] = iovec(b)
	h.msg.Name = (*byte)(unsafe.Pointer(&to.sa.raw))
	h.msg.Namelen = to.sa.len
	h.msg.Iov = &h.vec[0]
	h.msg.SetIovlen(1)
	h.msg.Control = nil
	h.msg.SetControllen(0)
	if len(b) > size {
		h.msg.Control = (*byte)(unsafe.Pointer(&h.ctl))
		h.msg.SetControllen(h.ctl.segments(size))
	}
	return sendmsg(fd, &h.msg)
}
