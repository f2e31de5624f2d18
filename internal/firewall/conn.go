package firewall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// A conn talks to nf_tables on one netlink socket. It writes messages of its own rather than through
// google/nftables' Conn, which can neither tie a transaction to a generation of the ruleset nor carry
// comments of tables and chains; the expressions inside rules are that library's.
type conn struct {
	*netlink.Conn
	raw    syscall.RawConn
	portID uint32 // marks the events that our own transactions cause
	buffer []byte
}

// A request is one message of a transaction.
type request struct {
	what  string // for errors: "add chain ip nat FLANNEL-POSTRTG"
	needs string // kernel modules without which it is refused
	typ   uint16 // NFT_MSG_*
	flags netlink.HeaderFlags
	attrs []byte

	clamps bool // it is a rule that clamps, which nothing else depends on
}

// answerTimeout bounds the wait for the kernel, which answers while the request is being sent: what is not there
// then has been lost.
const answerTimeout = time.Second

// errInterrupted means that the ruleset changed during a listing.
var errInterrupted = errors.New("listing interrupted by a change")

func dial() (*conn, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket (kernel module nfnetlink): %w", err)
	}
	c := &conn{Conn: nl, buffer: make([]byte, 1<<17)} // dumps come in pieces of at most 32 KiB
	if err := c.prepare(); err != nil {
		return nil, errors.Join(err, nl.Close())
	}
	return c, nil
}

func (c *conn) prepare() error {
	var err error
	if c.raw, err = c.SyscallConn(); err != nil {
		return err
	}
	if c.portID, err = portID(c.raw); err != nil {
		return err
	}
	if _, err := c.generation(); err != nil {
		return fmt.Errorf("ask nf_tables (kernel modules nf_tables, nfnetlink; CONFIG_NF_TABLES): %w", err)
	}
	return nil
}

// portID returns the netlink address of a socket.
func portID(raw syscall.RawConn) (uint32, error) {
	var id uint32
	var failed error
	err := raw.Control(func(fd uintptr) {
		sa, err := unix.Getsockname(int(fd))
		if nl, ok := sa.(*unix.SockaddrNetlink); ok {
			id = nl.Pid
		}
		failed = err
	})
	return id, errors.Join(err, failed)
}

// nfgenmsg is struct nfgenmsg { u8 family, version; be16 resource }.
func nfgenmsg(family byte, resource uint16) []byte {
	return []byte{family, unix.NFNETLINK_V0, byte(resource >> 8), byte(resource)}
}

func tablesMessage(f byte, typ uint16, flags netlink.HeaderFlags, attrs []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | typ),
			Flags: netlink.Request | flags,
		},
		Data: append(nfgenmsg(f, 0), attrs...),
	}
}

// ask sends one query and returns the attributes of each answer. Something that is not there is no answer.
func (c *conn) ask(f byte, typ uint16, flags netlink.HeaderFlags, attrs []byte) ([][]byte, error) {
	if flags&netlink.Dump == 0 {
		flags |= netlink.Acknowledge
	}
	sent, err := c.SendMessages([]netlink.Message{tablesMessage(f, typ, flags, attrs)})
	if err != nil {
		return nil, err
	}
	var answers [][]byte
	err = c.receive(func(m netlink.Message) (bool, error) {
		if m.Header.Sequence != sent[0].Header.Sequence {
			return false, nil // left over from a request that was given up
		}
		if m.Header.Flags&netlink.DumpInterrupted != 0 {
			err = errInterrupted // keep reading, up to the end of the dump
		}
		switch {
		case m.Header.Type == netlink.Done:
			return true, err
		case m.Header.Type == netlink.Error:
			errno := errnoOf(m)
			if errno == unix.ENOENT || errno == 0 {
				return true, nil
			}
			return true, errno
		case len(m.Data) >= 4:
			answers = append(answers, m.Data[4:])
		}
		return false, nil
	})
	return answers, err
}

// generation returns the number that every transaction in the namespace increases.
func (c *conn) generation() (uint32, error) {
	answers, err := c.ask(unix.AF_UNSPEC, unix.NFT_MSG_GETGEN, 0, nil)
	if err != nil {
		return 0, err
	}
	if len(answers) == 0 {
		return 0, unix.ENOENT
	}
	for typ, data := range attributes(answers[0]) {
		if typ == unix.NFTA_GEN_ID {
			return number(data), nil
		}
	}
	return 0, unix.EBADMSG
}

// batchGenID is NFNL_BATCH_GENID: the transaction holds for this generation only.
const batchGenID = 1

// commit implements ruleset.
func (c *conn) commit(f family.Family, generation uint32, tx []request) error {
	begin := nfgenmsg(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	if generation != 0 {
		begin = append(begin, encode(func(ae *netlink.AttributeEncoder) { ae.Uint32(batchGenID, generation) })...)
	}
	messages := []netlink.Message{
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request}, Data: begin},
	}
	for _, r := range tx {
		messages = append(messages, tablesMessage(protocolFamily(f), r.typ, r.flags|netlink.Acknowledge, r.attrs))
	}
	messages = append(messages, netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: netlink.Request},
		Data:   nfgenmsg(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES),
	})
	sent, err := c.SendMessages(messages)
	if err != nil {
		return fmt.Errorf("send transaction: %w", err)
	}
	return c.verdict(f, tx, sent)
}

// verdict reads the acknowledgements of a transaction. The first error is the cause of all that follow. One
// for the batch itself ends the answers or stands before them.
func (c *conn) verdict(f family.Family, tx []request, sent []netlink.Message) error {
	first, last := sent[0].Header.Sequence, sent[len(sent)-2].Header.Sequence
	var failed error
	err := c.receive(func(m netlink.Message) (bool, error) {
		at := m.Header.Sequence - first // in unsigned arithmetic: what is older is far away
		if m.Header.Type != netlink.Error || at >= uint32(len(sent)) {
			return false, nil
		}
		errno := errnoOf(m)
		if errno != 0 && failed == nil {
			failed = fmt.Errorf("firewall transaction: %w", errno)
			if at >= 1 && at <= uint32(len(tx)) {
				failed = tx[at-1].failure(f, errno)
			}
		}
		return m.Header.Sequence == last || at == 0 && errno != 0, nil
	})
	return errors.Join(failed, err)
}

// errNoClamp means that the kernel does not understand a rule that clamps.
var errNoClamp = errors.New("no clamping")

// failure puts an errno into words. These are what the kernel answers for want of a module.
func (r request) failure(f family.Family, errno unix.Errno) error {
	switch errno {
	case unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT:
		if r.clamps {
			return fmt.Errorf("%s: %w: %w (does the kernel have %s for %s?)", r.what, errNoClamp, errno, r.needs, f)
		}
		return fmt.Errorf("%s: %w (does the kernel have %s for %s?)", r.what, errno, r.needs, f)
	}
	return fmt.Errorf("%s: %w", r.what, errno)
}

func errnoOf(m netlink.Message) unix.Errno {
	if len(m.Data) < 4 {
		return unix.EBADMSG
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
}

// receive hands messages to f until it says that it is done. It reads the socket itself because
// netlink.Conn, on an error, does not tell which of several requests failed.
//
// A deadline that has passed says nothing: this process may have had no CPU since. What is there then still counts.
func (c *conn) receive(f func(netlink.Message) (done bool, err error)) error {
	if err := c.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	for {
		var n int
		var failed error
		read := func(fd uintptr) bool {
			n, _, failed = unix.Recvfrom(int(fd), c.buffer, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			return failed != unix.EAGAIN && failed != unix.EINTR
		}
		err := c.raw.Read(read)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			there := false
			if controlled := c.raw.Control(func(fd uintptr) { there = read(fd) }); controlled == nil && there {
				err = nil
			}
		}
		if err = errors.Join(err, failed); err != nil {
			return os.NewSyscallError("receive from nf_tables", err)
		}
		if n > len(c.buffer) {
			return fmt.Errorf("receive from nf_tables: %d bytes in one piece", n)
		}
		messages, err := syscall.ParseNetlinkMessage(bytes.Clone(c.buffer[:n]))
		if err != nil {
			return err
		}
		for _, m := range messages {
			h := netlink.Header{
				Length: m.Header.Len, Type: netlink.HeaderType(m.Header.Type),
				Flags: netlink.HeaderFlags(m.Header.Flags), Sequence: m.Header.Seq, PID: m.Header.Pid,
			}
			if done, err := f(netlink.Message{Header: h, Data: m.Data}); done || err != nil {
				return err
			}
		}
	}
}
