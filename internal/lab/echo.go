package lab

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A Place is where a probe or a capture can be: a node, a pod, or the lab itself, which is its router.
type Place interface {
	// Do calls f on a thread inside the place's namespaces.
	Do(f func() error) error
}

// Do calls f on a thread inside the router's namespaces.
func (l *Lab) Do(f func() error) error { return l.router.inside(f) }

// An echoSocket sends ICMP echo requests to one address and reads the replies (RFC 792, RFC 4443).
type echoSocket struct {
	file  *os.File
	to    netip.Addr
	nonce [8]byte // tells our replies from those to other sockets
}

const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129

	echoHeader = 8
	echoLen    = echoHeader + 8 + 8 // header, nonce, number
)

// openEcho opens the socket in the given place, where it stays.
func openEcho(at Place, to netip.Addr) (*echoSocket, error) {
	s := &echoSocket{to: to}
	_, _ = rand.Read(s.nonce[:]) // never fails
	err := at.Do(func() error {
		domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
		if to.Is6() {
			domain, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
		}
		fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			return fmt.Errorf("echo socket: %w", err)
		}
		s.file = os.NewFile(uintptr(fd), "echo")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20); err != nil {
			return fmt.Errorf("receive buffer: %w", err)
		}
		return nil
	})
	if err != nil && s.file != nil {
		err = errors.Join(err, s.file.Close())
	}
	return s, err
}

// send sends the request with the given number.
func (s *echoSocket) send(number uint64) error {
	b := make([]byte, echoLen)
	b[0] = echoRequest4
	if s.to.Is6() {
		b[0] = echoRequest6 // the kernel fills in the checksum
	}
	copy(b[4:6], s.nonce[:2]) // identifier
	binary.BigEndian.PutUint16(b[6:], uint16(number))
	copy(b[echoHeader:], s.nonce[:])
	binary.BigEndian.PutUint64(b[echoHeader+8:], number)
	if s.to.Is4() {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	raw, err := s.file.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Control(func(fd uintptr) { sendErr = unix.Sendto(int(fd), b, 0, sockaddr(s.to)) })
	return errors.Join(err, sendErr)
}

// receive waits for the next reply to this socket and returns its number. One that is there counts also where the deadline
// has passed, in which this process may have had no CPU.
func (s *echoSocket) receive(deadline time.Time) (uint64, error) {
	if err := s.file.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	buf := make([]byte, 2048)
	for {
		n, err := s.file.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if n = s.waiting(buf); n > 0 {
				err = nil
			}
		}
		if err != nil {
			return 0, err
		}
		if number, ok := s.parse(buf[:n]); ok {
			return number, nil
		}
	}
}

// waiting reads what is there without waiting, and returns 0 if nothing is.
func (s *echoSocket) waiting(buf []byte) (n int) {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) }) // the socket does not block
	return max(n, 0)
}

// parse reads what the raw socket saw: for IPv4 with the IP header, for IPv6 without.
func (s *echoSocket) parse(b []byte) (number uint64, ok bool) {
	want := byte(echoReply6)
	if s.to.Is4() {
		want = echoReply4
		if len(b) < 20 || len(b) < int(b[0]&15)*4 {
			return 0, false
		}
		b = b[int(b[0]&15)*4:]
	}
	if len(b) < echoLen || b[0] != want || !bytes.Equal(b[echoHeader:echoHeader+8], s.nonce[:]) {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[echoHeader+8:]), true
}

func (s *echoSocket) close() error { return s.file.Close() }

// Ping sends one echo request and waits for the reply.
func Ping(at Place, to netip.Addr, timeout time.Duration) (time.Duration, error) {
	s, err := openEcho(at, to)
	if err != nil {
		return 0, err
	}
	defer s.close()
	began := time.Now()
	if err := s.send(1); err != nil {
		return 0, fmt.Errorf("ping %s: %w", to, err)
	}
	if _, err := s.receive(began.Add(timeout)); err != nil {
		return 0, fmt.Errorf("ping %s: no reply within %v", to, timeout)
	}
	return time.Since(began), nil
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// checksum is the internet checksum (RFC 1071) of b, whose checksum field is zero.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
