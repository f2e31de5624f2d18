package udptun

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the packet path. All descriptors in it are non-blocking, so none of these calls
// waits, and they are made without telling the scheduler, which would cost as much as a small packet. A
// worker waits in poll, of which the scheduler knows.

func read(fd int, b []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), e
}

func writev(fd int, iov []unix.Iovec) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)))
	return int(n), e
}

func sendmsg(fd int, m *unix.Msghdr) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(m)), 0)
	return e
}

func recvmsg(fd int, m *unix.Msghdr) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(m)), 0)
	return int(n), e
}

// yield lets other threads that wait for this CPU go first.
func yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// iovec returns the vector element for b, which must not be empty.
func iovec(b []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return v
}

// A sockaddr is a struct sockaddr_in or sockaddr_in6.
type sockaddr struct {
	raw unix.RawSockaddrInet6 // the larger of both
	len uint32
}

func newSockaddr(a netip.Addr, port int) sockaddr {
	var s sockaddr
	if a.Is4() {
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw))
		four.Family, four.Port, four.Addr = unix.AF_INET, wire(uint16(port)), a.As4()
		s.len = unix.SizeofSockaddrInet4
		return s
	}
	s.raw.Family, s.raw.Port, s.raw.Addr = unix.AF_INET6, wire(uint16(port)), a.As16()
	s.len = unix.SizeofSockaddrInet6
	return s
}

// addr returns the address; zero if it is of neither family.
func (s *sockaddr) addr() netip.Addr {
	switch s.raw.Family {
	case unix.AF_INET:
		return netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw)).Addr)
	case unix.AF_INET6:
		return netip.AddrFrom16(s.raw.Addr)
	}
	return netip.Addr{}
}

// segmentControl is the control message that asks for segments of a size: UDP_SEGMENT, udp(7).
type control struct {
	hdr  unix.Cmsghdr
	data [8]byte // aligned as the header is
}

// segments makes c say that the datagrams of a send have size bytes each.
func (c *control) segments(size int) int {
	c.hdr.Level, c.hdr.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	c.hdr.SetLen(unix.CmsgLen(2))
	native.PutUint16(c.data[:], uint16(size))
	return unix.CmsgSpace(2)
}

// segmentSize returns what UDP_GRO says about a receive with n bytes of control messages: the size of the
// datagrams in it, or 0 when there is one only.
func (c *control) segmentSize(n int) int {
	if n < unix.CmsgLen(4) || c.hdr.Level != unix.SOL_UDP || c.hdr.Type != unix.UDP_GRO || int(c.hdr.Len) < unix.CmsgLen(4) {
		return 0
	}
	return int(int32(native.Uint32(c.data[:])))
}
