package udptun

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/state"
)

// bufferSize is that of a socket's buffers: the packets that may wait while the worker has no CPU.
const bufferSize = 7 << 20

// sockets are this process's side of the wire: per queue one socket per family, all of a family on one
// address and port. The kernel gives all packets of one peer to the same one (SO_REUSEPORT goes by
// addresses and ports), so they stay in order.
type sockets struct {
	all     []family.Pair[int] // -1: family off
	finder  family.Pair[int]   // for asking about paths
	cuts    bool               // the kernel cuts large UDP packets rightly
	segment bool               // UDP_SEGMENT can be used
	gro     bool
}

func openSockets(local family.Pair[netip.Addr], port, queues int, off state.TunnelOff) (*sockets, error) {
	s := &sockets{finder: family.Pair[int]{V4: -1, V6: -1}}
	for _, f := range family.All() {
		if err := alone(local.Of(f), port); err != nil {
			return nil, fmt.Errorf("UDP %s: %w", netip.AddrPortFrom(local.Of(f), uint16(port)), err)
		}
	}
	s.cuts = segmentWorks()
	s.segment, s.gro = !off.Segment && s.cuts, !off.GRO && groWorks()
	for range queues {
		s.all = append(s.all, family.Pair[int]{V4: -1, V6: -1}) // first, so that close finds what is opened
		p := &s.all[len(s.all)-1]
		for _, f := range family.All() {
			if a := local.Of(f); a.IsValid() {
				fd, err := openSocket(a, port, s.gro)
				if err != nil {
					s.close()
					return nil, fmt.Errorf("UDP %s: %w", netip.AddrPortFrom(a, uint16(port)), err)
				}
				*p.Ref(f) = fd
			}
		}
	}
	for _, f := range family.All() {
		if a := local.Of(f); a.IsValid() {
			fd, err := datagram(a)
			if err != nil {
				s.close()
				return nil, err
			}
			*s.finder.Ref(f) = fd
		}
	}
	return s, nil
}

// alone fails if somebody has the port already: another agent's sockets would share the packets with ours
// (SO_REUSEPORT).
func alone(a netip.Addr, port int) error {
	if !a.IsValid() {
		return nil
	}
	fd, err := datagram(a)
	if err != nil {
		return err
	}
	return errors.Join(bind(fd, a, port), unix.Close(fd))
}

func datagram(a netip.Addr) (int, error) {
	domain := unix.AF_INET
	if a.Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return fd, os.NewSyscallError("socket", err)
}

func openSocket(a netip.Addr, port int, gro bool) (int, error) {
	fd, err := datagram(a)
	if err != nil {
		return -1, err
	}
	err = set(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	// A packet that is larger than the path is refused, not fragmented: its sender will be told.
	if a.Is4() {
		err = errors.Join(err, set(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO))
	} else {
		err = errors.Join(err, set(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
			set(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO))
	}
	if gro {
		err = errors.Join(err, set(fd, unix.SOL_UDP, unix.UDP_GRO, 1))
	}
	buffers(fd)
	if err == nil {
		err = bind(fd, a, port)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func set(fd, level, opt, value int) error {
	if err := unix.SetsockoptInt(fd, level, opt, value); err != nil {
		return fmt.Errorf("socket option %d of level %d: %w", opt, level, err)
	}
	return nil
}

// buffers makes a socket's buffers as large as it may. What the kernel gives is good enough.
func buffers(fd int) {
	for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], bufferSize) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], bufferSize)
		}
	}
}

func bind(fd int, a netip.Addr, port int) error {
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: port, Addr: a.As16()}
	if a.Is4() {
		sa = &unix.SockaddrInet4{Port: port, Addr: a.As4()}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sa))
}

func (s *sockets) close() {
	fds := []int{s.finder.V4, s.finder.V6}
	for _, p := range s.all {
		fds = append(fds, p.V4, p.V6)
	}
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}
