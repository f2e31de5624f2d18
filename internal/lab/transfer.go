package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Transfer is one long TCP connection between two pods that carries data at a limited rate.
type Transfer struct {
	Name     string
	from, to net.Conn
	quit     chan struct{}
	work     sync.WaitGroup

	mu       sync.Mutex // guards what follows
	sent     int64
	received int64
	last     time.Time // when data came in last
	stalls   []Stall
	err      error
}

// A Stall is a time in which a transfer received nothing.
type Stall struct {
	Begin time.Time
	Took  time.Duration
}

// transferEvery is how often a transfer writes.
const transferEvery = 5 * time.Millisecond

// noticeable is the shortest stall that a transfer remembers.
const noticeable = 10 * time.Millisecond

// StartTransfer connects from a pod to an address of another one and sends bitsPerSecond until Stop.
func StartTransfer(ctx context.Context, from, to *Pod, addr netip.Addr, bitsPerSecond int) (*Transfer, error) {
	t := &Transfer{Name: fmt.Sprintf("%s to %s (%s)", from.Name, to.Name, addr), quit: make(chan struct{})}
	var listener net.Listener
	err := to.Do(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	err = from.Do(func() (err error) {
		// With an address, no name, the socket is made by this thread.
		t.from, err = new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
		return err
	})
	if err != nil {
		return nil, err
	}
	if t.to, err = listener.Accept(); err != nil {
		return nil, errors.Join(err, t.from.Close())
	}
	t.last = time.Now()
	t.work.Go(func() { t.write(bitsPerSecond / 8 * int(transferEvery) / int(time.Second)) })
	t.work.Go(t.read)
	return t, nil
}

func (t *Transfer) write(each int) {
	buf := make([]byte, each)
	tick := time.NewTicker(transferEvery)
	defer tick.Stop()
	for {
		n, err := t.from.Write(buf)
		t.mu.Lock()
		t.sent += int64(n)
		t.mu.Unlock()
		if err != nil {
			t.fail(err)
			return
		}
		select {
		case <-t.quit:
			t.fail(t.from.(*net.TCPConn).CloseWrite())
			return
		case <-tick.C:
		}
	}
}

func (t *Transfer) read() {
	buf := make([]byte, 1<<16)
	for {
		n, err := t.to.Read(buf)
		now := time.Now()
		t.mu.Lock()
		t.received += int64(n)
		if took := now.Sub(t.last); took > noticeable && err == nil {
			t.stalls = append(t.stalls, Stall{t.last, took})
		}
		t.last = now
		t.mu.Unlock()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.fail(err)
			return
		}
	}
}

func (t *Transfer) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = errors.Join(t.err, err)
}

// Longest returns the longest time between two moments in which nothing was received, and what has gone wrong
// with the connection so far.
func (t *Transfer) Longest(begin, end time.Time) (Stall, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	longest := Stall{Begin: t.last, Took: time.Since(t.last)} // one that goes on
	for _, s := range t.stalls {
		if s.Took > longest.Took && s.Begin.Before(end) && s.Begin.Add(s.Took).After(begin) {
			longest = s
		}
	}
	return longest, t.err
}

// Retransmits returns how many segments were sent again so far.
func (t *Transfer) Retransmits() (int, error) {
	raw, err := t.from.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var info *unix.TCPInfo
	var infoErr error
	err = raw.Control(func(fd uintptr) { info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err := errors.Join(err, infoErr); err != nil {
		return 0, err
	}
	return int(info.Total_retrans), nil
}

// Stop ends the transfer. An error says that the connection was broken, or that not all data arrived.
func (t *Transfer) Stop() error {
	close(t.quit)
	err := t.to.SetReadDeadline(time.Now().Add(busyWait))
	t.work.Wait()
	err = errors.Join(err, t.from.Close(), t.to.Close(), t.err)
	if err == nil && t.sent != t.received {
		err = fmt.Errorf("%d bytes were sent and %d received", t.sent, t.received)
	}
	return err
}
