package udptun

import (
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// limitLife is how long a smaller path MTU is believed before a large packet is tried again. The kernel
// forgets after ten minutes (net.ipv4.route.mtu_expires); until then it refuses the packet at once.
const limitLife = time.Minute

// A pathFinder asks the kernel how large a packet may be on the way to a peer. The sockets that carry
// packets cannot be asked, since they are not connected to one peer.
type pathFinder struct {
	mu      sync.Mutex // guards what follows
	sockets family.Pair[int]
}

// learn sets what one packet to the peer may have, and says whether that is less than size.
func (f *pathFinder) learn(to *peer, size int) bool {
	mtu, e := f.mtu(&to.sa)
	if e != 0 {
		return false
	}
	limit := mtu - minIPv4 - lenUDP
	if to.addr.Is6() {
		limit = mtu - lenIPv6 - lenUDP
	}
	if limit >= size {
		return false
	}
	if to.limit.Swap(int32(limit)) == noLimit {
		time.AfterFunc(limitLife, func() { to.limit.Store(noLimit) })
	}
	return true
}

func (f *pathFinder) mtu(to *sockaddr) (int, unix.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fd, level, opt := f.sockets.V4, unix.IPPROTO_IP, unix.IP_MTU
	if to.raw.Family == unix.AF_INET6 {
		fd, level, opt = f.sockets.V6, unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&to.raw)), uintptr(to.len))
	if e != 0 {
		return 0, e
	}
	mtu, err := unix.GetsockoptInt(fd, level, opt)
	if err != nil {
		return 0, unix.EINVAL
	}
	return mtu, 0
}

// fragment cuts an IPv4 packet into fragments of at most limit bytes (RFC 791 3.2) and calls f with each.
func fragment(p packet, limit int, f func([]byte)) {
	first := p.b[:p.l4]
	later := laterHeader(first)
	buf := make([]byte, 0, limit)
	flags := be.Uint16(first[v4Frag:])
	header, at := first, 0
	payload := p.b[p.l4:]
	for at < len(payload) {
		n := (limit - len(header)) &^ 7 // offsets count in eights
		if n <= 0 {
			return
		}
		n = min(n, len(payload)-at)
		b := append(append(buf[:0], header...), payload[at:at+n]...)
		word := flags + uint16(at/8)
		if at+n < len(payload) {
			word |= moreFragments
		}
		be.PutUint16(b[v4Len:], uint16(len(b)))
		be.PutUint16(b[v4Frag:], word)
		sumIPv4(b[:len(header)])
		f(b)
		header, at = later, at+n
	}
}

// laterHeader returns the header of all fragments but the first, which has only the options that are
// marked for it (RFC 791 3.1).
func laterHeader(first []byte) []byte {
	h := append([]byte(nil), first[:minIPv4]...)
	for o := first[minIPv4:]; len(o) > 0 && o[0] != 0; {
		n := 1 // a no-operation
		if o[0] != 1 {
			if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
				break
			}
			n = int(o[1])
		}
		if o[0]&0x80 != 0 {
			h = append(h, o[:n]...)
		}
		o = o[n:]
	}
	for len(h)%4 != 0 {
		h = append(h, 0)
	}
	h[0] = 4<<4 | byte(len(h)/4)
	return h
}
