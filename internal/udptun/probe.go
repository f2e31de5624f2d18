package udptun

import (
	"bytes"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Kernels have had UDP segmentation that corrupts packets (Linux 7.0 to 7.1.4: when all are of equal
// length). Having the option is therefore not enough: what it does is looked at, on loopback, where a
// receiver without UDP_GRO makes the kernel do all of the work itself.

// segmentWorks says whether a train of datagrams arrives as it was sent. Where loopback is down the option
// alone decides.
func segmentWorks() bool { return offloadWorks(false) }

// groWorks says whether datagrams that arrive together arrive as they were sent.
func groWorks() bool { return offloadWorks(true) }

func offloadWorks(gro bool) bool {
	lo := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	out, err := datagram(lo)
	if err != nil {
		return false
	}
	defer unix.Close(out)
	in, err := datagram(lo)
	if err != nil {
		return false
	}
	defer unix.Close(in)
	option, fd := unix.UDP_SEGMENT, out
	if gro {
		option, fd = unix.UDP_GRO, in
	}
	if unix.SetsockoptInt(fd, unix.SOL_UDP, option, 1) != nil {
		return false
	}
	if !gro { // only the probe; trains say it with each send
		_ = unix.SetsockoptInt(fd, unix.SOL_UDP, option, 0)
	}
	if bind(in, lo, 0) != nil {
		return true
	}
	sa, err := unix.Getsockname(in)
	if err != nil {
		return true
	}
	to := newPeer(lo, sa.(*unix.SockaddrInet4).Port)
	for _, sizes := range [][]int{{1200, 1200, 1200, 1200}, {1200, 1200, 1200, 7}, {64, 64, 64}} {
		if arrived, known := crosses(out, in, to, sizes); known && !arrived {
			return false
		}
	}
	return true
}

// crosses sends one train and says whether the same bytes arrive. known is false when nothing can be said,
// because nothing gets through loopback at all.
func crosses(out, in int, to *peer, sizes []int) (arrived, known bool) {
	var sent []byte
	for i, n := range sizes {
		b := make([]byte, n)
		for j := range b {
			b[j] = byte(i*31 + j)
		}
		sent = append(sent, b...)
	}
	var h hook
	if h.send(out, to, sent, sizes[0]) != 0 {
		return false, false
	}
	r := receiver{socket: in}
	buf := make([]byte, maxPacket)
	var got []byte
	for len(got) < len(sent) {
		fds := []unix.PollFd{{Fd: int32(in), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 100); n == 0 && err == nil {
			return false, len(got) > 0
		}
		n, e := r.receive(buf)
		if e == unix.EINTR || e == unix.EAGAIN {
			continue
		}
		size := r.ctl.segmentSize(int(r.msg.Controllen))
		if e != 0 || size != 0 && size != sizes[0] || size == 0 && n > sizes[0] {
			return false, true
		}
		got = append(got, buf[:n]...)
	}
	return bytes.Equal(got, sent), true
}
