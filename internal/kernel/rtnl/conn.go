// Package rtnl speaks rtnetlink (rtnetlink(7)) in bulk: hundreds of requests per system call with the
// error of each told apart, and dumps that are parsed where they lie.
//
// The kernel works through the messages of one sendto(2) in order and goes on after one that fails.
// Without NLM_F_ACK only failures are answered, so the last message of a batch asks for an answer and
// marks the end.
//
// Answers are queued when sendto(2) returns, the pieces of a dump each when the one before has been read. So
// there is nothing to wait for, and an answer that is not there has been lost.
package rtnl

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	readBuffer    = 64 << 10 // the kernel fills at most 32 KiB per read of a dump
	receiveBuffer = 4 << 20  // answers to a batch wait in it until the sendto has returned
	replyTimeout  = time.Second
)

// ErrInterrupted says that something changed under a dump (NLM_F_DUMP_INTR): objects may be missing.
var ErrInterrupted = errors.New("dump interrupted by a change")

// An Error is the kernel's refusal of one message.
type Error struct {
	Errno unix.Errno
	Text  string // the kernel's own words (extended ack), if it has any
}

func (e *Error) Error() string {
	if e.Text == "" {
		return e.Errno.Error()
	}
	return fmt.Sprintf("%s (%s)", e.Errno.Error(), e.Text)
}

func (e *Error) Unwrap() error { return e.Errno }

// A Conn is a route netlink socket. It stays in the network namespace that it was opened in. One
// goroutine at a time may use it.
type Conn struct {
	fd     int
	port   uint32
	seq    uint32
	strict bool
	buf    []byte
}

// Dial opens a socket in the calling thread's network namespace.
func Dial() (*Conn, error) {
	fd, err := open()
	if err != nil {
		return nil, err
	}
	c := &Conn{fd: fd, buf: make([]byte, readBuffer)}
	tv := unix.NsecToTimeval(int64(replyTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return nil, errors.Join(fmt.Errorf("netlink socket: SO_RCVTIMEO: %w", err), unix.Close(fd))
	}
	if c.port, err = portOf(fd); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	// Each of these is a comfort that an old kernel may lack: the reason of a failure in words, answers
	// without an echo of the request, and dumps that are filtered by the kernel.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	c.strict = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1) == nil
	return c, nil
}

func open() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("netlink socket: %w", err)
	}
	// SO_RCVBUFFORCE goes past net.core.rmem_max, but needs CAP_NET_ADMIN in the first user namespace.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return -1, errors.Join(fmt.Errorf("netlink socket: bind: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func portOf(fd int) (uint32, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("netlink socket: getsockname: %w", err)
	}
	nl, ok := sa.(*unix.SockaddrNetlink)
	if !ok {
		return 0, fmt.Errorf("netlink socket: address is a %T", sa)
	}
	return nl.Pid, nil
}

// Port is the socket's address; the kernel puts it into the notifications that our requests cause.
func (c *Conn) Port() uint32 { return c.port }

// Close closes the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// Exec sends the batch and waits until the kernel has gone through it. failed is called for each message
// that the kernel refused, with its place in the batch; reply, which may be nil, for each answer to one.
// An error of Exec itself leaves open which messages took effect.
func (c *Conn) Exec(b *Batch, failed func(i int, err error), reply func(i int, m Message)) error {
	if b.Len() == 0 {
		return nil
	}
	first := c.number(b)
	last := b.buf[b.starts[b.Len()-1]:]
	native.PutUint16(last[6:], native.Uint16(last[6:])|unix.NLM_F_ACK)
	if err := c.send(b.buf); err != nil {
		return err
	}
	for {
		n, err := c.receive()
		if err != nil {
			return err
		}
		done := false
		for m := range Messages(c.buf[:n]) {
			i := int(m.Seq - first) // unsigned, so what belongs to an earlier request is far out of range
			if m.Seq-first >= uint32(b.Len()) {
				continue
			}
			if m.Type != unix.NLMSG_ERROR {
				if reply != nil {
					reply(i, m)
				}
				continue
			}
			if err := parseError(m); err != nil {
				failed(i, err)
			}
			done = done || i == b.Len()-1
		}
		if done {
			return nil
		}
	}
}

// Dump sends the single request in b as a dump and calls f for each object. After ErrInterrupted the
// caller forgets what it has seen and lists again.
func (c *Conn) Dump(b *Batch, f func(Message)) error {
	err := c.dump(b, f)
	if c.strict && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)) {
		// This kernel checks strictly and does not know the filter: without the check it ignores it.
		c.strict = false
		_ = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 0)
		err = c.dump(b, f)
	}
	return err
}

func (c *Conn) dump(b *Batch, f func(Message)) error {
	seq := c.number(b)
	native.PutUint16(b.buf[6:], native.Uint16(b.buf[6:])|unix.NLM_F_DUMP)
	if err := c.send(b.buf); err != nil {
		return err
	}
	interrupted := false
	for {
		n, err := c.receive()
		if err != nil {
			return err
		}
		for m := range Messages(c.buf[:n]) {
			if m.Seq != seq {
				continue
			}
			interrupted = interrupted || m.Flags&unix.NLM_F_DUMP_INTR != 0
			switch m.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				err := parseError(m)
				if err == nil && interrupted {
					err = ErrInterrupted
				}
				return err
			default:
				f(m)
			}
		}
	}
}

// number gives the messages of b consecutive sequence numbers and returns the first.
func (c *Conn) number(b *Batch) uint32 {
	first := c.seq + 1
	for _, start := range b.starts {
		c.seq++
		native.PutUint32(b.buf[start+8:], c.seq)
	}
	return first
}

func (c *Conn) send(b []byte) error {
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink send: %w", err)
	}
	return nil
}

func (c *Conn) receive() (int, error) {
	for {
		n, from, err := unix.Recvfrom(c.fd, c.buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return 0, fmt.Errorf("netlink receive: no answer in %s", replyTimeout)
		case err != nil:
			return 0, fmt.Errorf("netlink receive: %w", err)
		}
		if nl, ok := from.(*unix.SockaddrNetlink); ok && nl.Pid != 0 {
			continue // not from the kernel
		}
		return n, nil
	}
}

// parseError reads NLMSG_ERROR and NLMSG_DONE, which begin with a negative errno or 0.
func parseError(m Message) error {
	if len(m.Body) < 4 {
		return nil
	}
	code := int32(native.Uint32(m.Body))
	if code == 0 {
		return nil
	}
	e := &Error{Errno: unix.Errno(-code)}
	rest := m.Body[4:]
	if m.Type == unix.NLMSG_ERROR {
		skip := headerLen
		if m.Flags&unix.NLM_F_CAPPED == 0 && len(rest) >= 4 { // the whole request is echoed
			skip = align(int(native.Uint32(rest)))
		}
		rest = rest[min(skip, len(rest)):]
	}
	if m.Flags&unix.NLM_F_ACK_TLVS != 0 {
		for typ, v := range Attrs(rest) {
			if typ == unix.NLMSGERR_ATTR_MSG {
				e.Text = String(v)
			}
		}
	}
	return e
}
