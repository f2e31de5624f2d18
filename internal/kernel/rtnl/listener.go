package rtnl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A Listener receives notifications. What happens after Listen returned is not missed, unless Receive
// says so.
type Listener struct {
	file    *os.File
	buf     []byte
	overrun bool // and not drained since
}

// ErrOverrun says that notifications were lost because they came faster than they were read.
var ErrOverrun = errors.New("notifications lost")

// Listen subscribes to multicast groups (RTNLGRP_*) in the calling thread's network namespace.
func Listen(groups ...int) (*Listener, error) {
	fd, err := open()
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			return nil, errors.Join(fmt.Errorf("netlink group %d: %w", g, err), unix.Close(fd))
		}
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("netlink socket: %w", err), unix.Close(fd))
	}
	return &Listener{file: os.NewFile(uintptr(fd), "netlink"), buf: make([]byte, readBuffer)}, nil
}

// Close ends the subscription.
func (l *Listener) Close() error { return l.file.Close() }

// Receive waits for notifications and calls f for each. It returns ErrOverrun when some were lost, after
// which it can be called again, and the context's error when that has ended.
//
// An overrun is told twice, when it begins and when all that was queued has been read: in between the kernel
// drops whatever comes, without another error (NETLINK_S_CONGESTED in net/netlink/af_netlink.c).
func (l *Listener) Receive(ctx context.Context, f func(Message)) error {
	stop := context.AfterFunc(ctx, func() { _ = l.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := l.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	for {
		var n int
		var from unix.Sockaddr
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, from, rerr = unix.Recvfrom(int(fd), l.buf, unix.MSG_DONTWAIT)
			return !errors.Is(rerr, unix.EAGAIN) || l.overrun
		})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("netlink receive: %w", err)
		case errors.Is(rerr, unix.ENOBUFS):
			l.overrun = true
			return ErrOverrun
		case errors.Is(rerr, unix.EAGAIN): // only asked for after an overrun
			l.overrun = false
			return ErrOverrun
		case rerr != nil:
			return fmt.Errorf("netlink receive: %w", rerr)
		}
		if nl, ok := from.(*unix.SockaddrNetlink); ok && nl.Pid != 0 {
			continue // not from the kernel
		}
		for m := range Messages(l.buf[:n]) {
			f(m)
		}
	}
}
