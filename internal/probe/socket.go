package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	icmpFilter    = 1        // ICMP_FILTER: linux/icmp.h; the filter of ICMPv6 has the same number
	receiveBuffer = 64 << 10 // bytes; the kernel takes twice that
)

// A socket sends and receives the probes of one family. It holds two of the kernel's: a request must leave by
// one device, and its answer may come in by any. (A raw IPv6 socket obeys the device in IPV6_PKTINFO only if
// the packet names no source, so the sending one is bound to the device, each time anew: devices come back
// under other numbers.)
type socket struct {
	v6    bool
	id    uint16
	out   int
	in    *os.File
	raw   syscall.RawConn // in
	calls bool            // heard too

	inFD    int  // in, for whoever also closes it
	late    head // for drain beside receive
	packet  []byte
	control [64]byte
	to4     unix.SockaddrInet4
	to6     unix.SockaddrInet6
}

// openSocket opens a socket in the calling thread's network namespace.
func openSocket(v6 bool, id uint16) (*socket, error) {
	s := &socket{v6: v6, id: id, out: -1, packet: make([]byte, maxIP)}
	if err := s.open(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) open() (err error) {
	if s.out, err = rawSocket(s.v6); err != nil {
		return err
	}
	if s.inFD, err = rawSocket(s.v6); err != nil {
		return err
	}
	s.in = os.NewFile(uintptr(s.inFD), "icmp")
	if s.raw, err = s.in.SyscallConn(); err != nil {
		return err
	}
	if err := errors.Join(s.setOut(), s.setIn(s.inFD)); err != nil {
		return fmt.Errorf("socket options: %w", err)
	}
	return nil
}

func rawSocket(v6 bool) (int, error) {
	domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if v6 {
		domain, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	return fd, os.NewSyscallError("socket", err)
}

// setOut makes the sending socket deaf, and has it send whole packets whatever the path's MTU is thought to
// be: more than the device takes is refused with EMSGSIZE.
func (s *socket) setOut() error {
	if s.v6 {
		if err := unix.SetsockoptInt(s.out, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(s.out, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1); err != nil {
			return err
		}
		return hear(s.out, true)
	}
	if err := unix.SetsockoptInt(s.out, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE); err != nil {
		return err
	}
	return hear(s.out, false)
}

// setIn has the receiving socket hear only answers with our identifier.
func (s *socket) setIn(fd int) error {
	_, reply := types(s.v6)
	if s.v6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1); err != nil {
			return err
		}
	}
	if err := hear(fd, s.v6, reply); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
		return err
	}
	return attach(fd, s.v6, s.id)
}

// hearCalls has the receiving socket hear calls too, or no more.
func (s *socket) hearCalls(on bool) {
	request, reply := types(s.v6)
	heard := []byte{reply, request}
	if !on {
		heard = heard[:1]
	}
	if s.calls != on && hear(s.inFD, s.v6, heard...) == nil {
		s.calls = on
	}
}

// hear filters what a socket receives by type.
func hear(fd int, v6 bool, icmpTypes ...byte) error {
	var f unix.ICMPv6Filter // a bit that is set blocks
	for i := range f.Data {
		f.Data[i] = ^uint32(0)
	}
	for _, t := range icmpTypes {
		f.Data[t/32] &^= 1 << (t % 32)
	}
	if v6 {
		return unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, icmpFilter, &f)
	}
	return unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, int(int32(f.Data[0]))) // has the first 32 types only
}

// attach has the kernel drop other programs' echoes, so that they do not wake us.
func attach(fd int, v6 bool, id uint16) error {
	ins := func(code uint16, jt, jf uint8, k uint32) unix.SockFilter {
		return unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k}
	}
	program := []unix.SockFilter{
		ins(unix.BPF_LDX|unix.BPF_MSH|unix.BPF_B, 0, 0, 0), // IPv4: the filter sees the packet; X = length of its header
		ins(unix.BPF_LD|unix.BPF_IND|unix.BPF_H, 0, 0, 4),
		ins(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 1, 0, callID),
		ins(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 1, uint32(id)),
		ins(unix.BPF_RET|unix.BPF_K, 0, 0, maxIP),
		ins(unix.BPF_RET|unix.BPF_K, 0, 0, 0),
	}
	if v6 {
		program[0] = ins(unix.BPF_LDX|unix.BPF_IMM, 0, 0, 0) // IPv6: it sees the ICMP message
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{
		Len: uint16(len(program)), Filter: &program[0],
	})
}

// close ends receive too.
func (s *socket) close() {
	if s.out >= 0 {
		_ = unix.Close(s.out)
	}
	if s.in != nil {
		_ = s.in.Close()
	}
}

// send sends one echo of size bytes with the IP header.
func (s *socket) send(t *Target, k kind, size int, seq uint16, cookie uint64) error {
	if !t.Src.IsValid() || t.Src.Is6() != s.v6 || t.Dst.Is6() != s.v6 {
		return unix.EAFNOSUPPORT
	}
	if t.Dev == "" {
		return unix.ENODEV // to bind to it would mean any
	}
	if err := unix.BindToDevice(s.out, t.Dev); err != nil {
		return err
	}
	header := lenIPv4
	var to unix.Sockaddr
	if s.v6 {
		header = lenIPv6
		s.to6.Addr = t.Dst.As16()
		to = &s.to6
	} else {
		s.to4.Addr = t.Dst.As4()
		to = &s.to4
	}
	b := s.packet[:size-header]
	encode(b, s.v6, k, s.id, seq, cookie)
	_, err := unix.SendmsgN(s.out, b, s.source(t.Src), to, 0)
	if err == unix.ENOBUFS {
		return nil // the device dropped it, which IPv6 tells and IPv4 does not: a loss like any other
	}
	return err
}

// source returns the control message that names a packet's source.
func (s *socket) source(src netip.Addr) []byte {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&s.control[0]))
	data := s.control[unix.CmsgLen(0):]
	if s.v6 {
		h.Level, h.Type = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO
		h.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
		a := src.As16()
		copy(data, a[:]) // ipi6_addr
		return s.control[:unix.CmsgSpace(unix.SizeofInet6Pktinfo)]
	}
	h.Level, h.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
	a := src.As4()
	copy(data[4:], a[:]) // ipi_spec_dst
	return s.control[:unix.CmsgSpace(unix.SizeofInet4Pktinfo)]
}

// A head is room for the beginning of an answer and what the kernel says about it.
type head struct {
	data    [128]byte // IP header with options, ICMP header, cookie
	control [64]byte
}

// receive calls f with each answer until the socket is closed or fails.
func (s *socket) receive(f func(answer)) error {
	var failure error
	var room head
	err := s.raw.Read(func(fd uintptr) bool {
		failure = s.drain(&room, f)
		return failure != nil
	})
	return errors.Join(err, failure)
}

// drain calls f with each answer that is waiting.
func (s *socket) drain(room *head, f func(answer)) error {
	for {
		// With MSG_TRUNC n is the whole length, however much of it there is room for.
		n, oobn, _, from, err := unix.Recvmsg(s.inFD, room.data[:], room.control[:], unix.MSG_TRUNC)
		switch err {
		case nil:
			if a, ok := s.answer(room.data[:min(n, len(room.data))], n, room.control[:oobn], from); ok {
				f(a)
			}
		case unix.EINTR:
		case unix.EAGAIN:
			return nil
		default:
			return os.NewSyscallError("recvmsg", err)
		}
	}
}

// answer takes apart what was received: size bytes, of which head is the beginning.
func (s *socket) answer(head []byte, size int, control []byte, from unix.Sockaddr) (a answer, ok bool) {
	if s.v6 {
		sa, isV6 := from.(*unix.SockaddrInet6)
		h, data, _, err := unix.ParseOneSocketControlMessage(control)
		if !isV6 || err != nil || h.Level != unix.IPPROTO_IPV6 || h.Type != unix.IPV6_PKTINFO || len(data) < 16 {
			return a, false
		}
		a.from, a.to, a.size = netip.AddrFrom16(sa.Addr), netip.AddrFrom16([16]byte(data)), size+lenIPv6
	} else {
		if a.from, a.to, head, ok = decodeIPv4(head); !ok {
			return a, false
		}
		a.size = size
	}
	a.kind, a.seq, a.cookie, ok = decode(head, s.v6, s.id)
	return a, ok
}
