package udptun

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// deadline bounds every wait for a packet in tests. What it waits for takes no time, on a machine that is busy.
const deadline = 30 * time.Second

func podAddr(n int, v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("fd24:0:0:%d::2", n))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.244.%d.2", n))
}

// udpEcho answers every datagram in the namespace, on all addresses, and returns its port.
func (s *space) udpEcho() int {
	var c *net.UDPConn
	s.run(func() {
		var err error
		if c, err = net.ListenUDP("udp", &net.UDPAddr{}); err != nil {
			s.t.Fatal(err)
		}
		_ = c.SetReadBuffer(8 << 20)
	})
	s.t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = c.WriteToUDPAddrPort(buf[:n], from)
			}
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).Port
}

// tcpEcho is udpEcho for streams.
func (s *space) tcpEcho() int {
	var l net.Listener
	s.run(func() {
		var err error
		if l, err = net.Listen("tcp", ":0"); err != nil {
			s.t.Fatal(err)
		}
	})
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func (s *space) dial(network string, to netip.Addr, port int) net.Conn {
	s.t.Helper()
	var c net.Conn
	var err error
	s.run(func() { c, err = net.DialTimeout(network, netip.AddrPortFrom(to, uint16(port)).String(), deadline) })
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(deadline))
	return c
}

// transfer sends size bytes there and back and compares them.
func (s *space) transfer(to netip.Addr, port, size int) {
	s.t.Helper()
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(data) // never fails
	c := s.dial("tcp", to, port).(*net.TCPConn)
	_ = c.SetDeadline(time.Now().Add(4 * deadline))
	go func() {
		_, _ = c.Write(data)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		s.t.Errorf("to %s: %d of %d bytes came back, same: %v, %v", to, len(got), size, bytes.Equal(got, data), err)
	}
}

// echo sends datagrams of many sizes, one by one and many at once, and waits for each to come back.
func (s *space) echo(to netip.Addr, port int) {
	s.t.Helper()
	c := s.dial("udp", to, port).(*net.UDPConn)
	raw, err := c.SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	for _, size := range []int{0, 1, 17, 100, 1000, 1300, 1404, 1424, 3000, 20000} {
		sent := bytes.Repeat([]byte{byte(size)}, size)
		if _, err := c.Write(sent); err != nil {
			s.t.Fatalf("%d bytes: %v", size, err)
		}
		n, err := c.Read(buf)
		if err != nil || !bytes.Equal(buf[:n], sent) {
			s.t.Fatalf("%d bytes to %s: %d came back, %v", size, to, n, err)
		}
	}
	// Twenty datagrams in one: the device hands them over as one large packet.
	if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 1000) }); err != nil {
		s.t.Fatal(err)
	}
	if err != nil {
		s.t.Logf("UDP_SEGMENT: %v", err)
		return
	}
	if _, err := c.Write(make([]byte, 19*1000+7)); err != nil {
		s.t.Fatal(err)
	}
	total := 0
	for range 20 {
		n, err := c.Read(buf)
		if err != nil {
			s.t.Fatalf("after %d bytes: %v", total, err)
		}
		total += n
	}
	if total != 19*1000+7 {
		s.t.Errorf("%d bytes", total)
	}
}

// window is how many datagrams of a load are on their way at most: as many as the smallest buffer takes while nobody
// who empties it gets the CPU.
const window = 128

// A load sends numbered datagrams to an echo, a window of them at a time, and counts what does not come
// back.
type load struct {
	c     net.Conn
	grace time.Duration // for what is on its way at the end
	stop  chan struct{}
	done  chan struct{}

	sent, lost int
	longest    time.Duration // between two that came back
}

func (s *space) load(to netip.Addr, port int, every time.Duration) *load {
	l := &load{c: s.dial("udp", to, port), stop: make(chan struct{}), done: make(chan struct{})}
	_ = l.c.SetDeadline(time.Time{})
	seen := make(chan uint64, 1<<16)
	go func() {
		buf := make([]byte, 2000)
		for {
			n, err := l.c.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				close(seen)
				return
			}
			if err == nil && n >= 8 {
				seen <- be.Uint64(buf)
			}
		}
	}()
	go l.run(seen, every)
	return l
}

func (l *load) run(seen chan uint64, every time.Duration) {
	defer close(l.done)
	pending := map[uint64]bool{}
	b := make([]byte, 200)
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := time.Now()
	back := func(n uint64) {
		delete(pending, n)
		l.longest = max(l.longest, time.Since(last))
		last = time.Now()
	}
	for {
		select {
		case n := <-seen:
			back(n)
		case <-tick.C:
			if len(pending) == window {
				continue
			}
			be.PutUint64(b, uint64(l.sent))
			pending[uint64(l.sent)] = true
			l.sent++
			_, _ = l.c.Write(b)
		case <-l.stop:
			grace := time.NewTimer(l.grace)
			defer grace.Stop()
			for len(pending) > 0 {
				select {
				case n := <-seen:
					back(n)
					continue
				case <-grace.C:
				}
				break
			}
			l.lost = len(pending)
			return
		}
	}
}

// end stops sending and returns how many were lost.
func (l *load) end() int { return l.endWithin(deadline) }

// endWithin is end for a load of which nothing may come back any more.
func (l *load) endWithin(grace time.Duration) int {
	l.grace = grace
	close(l.stop)
	<-l.done
	l.c.Close()
	return l.lost
}

// eventually waits until f is true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
