package kernel_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel"
)

// A space is a network namespace beside the test's, by its file descriptor.
type space int

func newSpace(t testing.TB) space {
	t.Helper()
	made := make(chan space)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread goes with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("new network namespace: %v", err)
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Errorf("open namespace: %v", err)
		}
		made <- space(fd)
	}()
	s := <-made
	t.Cleanup(func() { _ = unix.Close(int(s)) })
	return s
}

// do runs f on a thread in the namespace.
func (s space) do(t testing.TB, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(s), unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("enter namespace: %v", err)
	}
}

// script runs commands, one per line or semicolon.
func script(t testing.TB, text string) {
	t.Helper()
	for c := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == ';' }) {
		if strings.TrimSpace(c) != "" {
			sh(t, c)
		}
	}
}

// twoHosts is host with peer 2 at the other end of eth0's wire. Both have pods' addresses on loopback, 10.244.0.9 and
// fd24::9 here, 10.244.2.9 and fd24:0:0:2::9 there. The peer receives on VXLAN devices with each of the ports, in both
// families, and directly; it replies directly. Each knows the other's MAC: a neighbour that is asked for again and again
// would at times be without an answer on a busy machine.
func twoHosts(t testing.TB, ports ...int) (*kernel.Kernel, space) {
	t.Helper()
	k := host(t)
	peer := newSpace(t)
	sh(t, fmt.Sprintf("ip link set wire netns /proc/%d/fd/%d", os.Getpid(), peer))
	script(t, `ip addr add 10.244.0.9/32 dev lo; ip addr add fd24::9/128 dev lo nodad
		ip link set eth0 address 02:77:00:00:00:01
		ip neigh add 10.77.0.2 dev eth0 lladdr 02:77:00:00:00:02 nud permanent
		ip neigh add fd77::2 dev eth0 lladdr 02:77:00:00:00:02 nud permanent
		sysctl -qw net.ipv4.conf.all.rp_filter=0; sysctl -qw net.ipv4.conf.eth0.rp_filter=0`)
	peer.do(t, func() {
		script(t, `ip link set lo up; ip link set wire address 02:77:00:00:00:02 up; ip addr add 10.77.0.2/24 dev wire; ip addr add fd77::2/64 dev wire nodad
			ip addr add 10.244.2.9/32 dev lo; ip addr add fd24:0:0:2::9/128 dev lo nodad; ip addr add fd24:0:0:2::/128 dev lo nodad
			ip neigh add 10.77.0.1 dev wire lladdr 02:77:00:00:00:01 nud permanent
			ip neigh add fd77::1 dev wire lladdr 02:77:00:00:00:01 nud permanent
			sysctl -qw net.ipv4.conf.all.rp_filter=0; sysctl -qw net.ipv4.conf.default.rp_filter=0; sysctl -qw net.ipv4.conf.wire.rp_filter=0
			ip route add 10.244.0.0/24 via 10.77.0.1; ip -6 route add fd24::/64 via fd77::1`)
		for _, port := range ports {
			script(t, fmt.Sprintf(`ip link add v%[1]d type vxlan id 1 local 10.77.0.2 dev wire dstport %[1]d nolearning
				ip link set v%[1]d address %[2]s up
				ip link add w%[1]d type vxlan id 1 local fd77::2 dev wire dstport %[1]d nolearning
				ip link set w%[1]d address %[2]s up`, port, mac(2)))
		}
		carriers(t, "wire")
		for _, a := range []string{"fd77::2", "fd24:0:0:2::9", "fd24:0:0:2::"} {
			local6(t, a)
		}
	})
	carriers(t, "eth0")
	local6(t, "fd24::9")
	return k, peer
}

// A flow sends datagrams to an echo in another namespace, one about every 200 microseconds. Where the machine has no time
// for the echo, few are under way: no queue on the way may overflow, which would count as lost.
type flow struct {
	conn      *net.UDPConn
	sent, got atomic.Int64
	stop      chan struct{}
	sending   sync.WaitGroup
	wait      sync.WaitGroup
}

// startFlow returns once replies come in.
func startFlow(t testing.TB, peer space, from, to string) *flow {
	t.Helper()
	var echo *net.UDPConn
	var err error
	peer.do(t, func() {
		echo, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(to), 0)))
	})
	if err != nil {
		t.Fatal(err)
	}
	f := &flow{stop: make(chan struct{})}
	f.wait.Go(func() {
		b := make([]byte, 64)
		for {
			n, who, err := echo.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = echo.WriteToUDPAddrPort(b[:n], who)
		}
	})
	f.conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)), echo.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.halt()
		_, _ = echo.Close(), f.conn.Close()
		f.wait.Wait()
	})
	f.wait.Go(f.receive)
	f.sending.Go(f.send)
	f.more(t)
	return f
}

// halt ends the sending: nothing is sent after it.
func (f *flow) halt() {
	select {
	case <-f.stop:
	default:
		close(f.stop)
	}
	f.sending.Wait()
}

func (f *flow) send() {
	const window = 64 // a socket with the usual buffer has room for two or three times as many
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	got, gave := int64(0), int64(0) // datagrams that came back, and how many were given up for lost
	since := time.Now()             // when one came back last
	for {
		select {
		case <-f.stop:
			return
		case now := <-tick.C:
			if n := f.got.Load(); n != got {
				got, since = n, now
			}
			missing := f.sent.Load() - got
			gave = min(gave, missing)
			if now.Sub(since) > time.Second {
				gave, since = missing, now
			}
			if missing-gave >= window {
				continue
			}
			_, _ = f.conn.Write(binary.BigEndian.AppendUint64(nil, uint64(f.sent.Add(1))))
		}
	}
}

func (f *flow) receive() {
	b := make([]byte, 64)
	for {
		_, err := f.conn.Read(b)
		switch {
		case err == nil:
			f.got.Add(1)
		case strings.Contains(err.Error(), net.ErrClosed.Error()):
			return
		} // an ICMP error: the datagram counts as lost
	}
}

// more waits until some datagrams that are sent from now on have come back.
func (f *flow) more(t testing.TB) {
	t.Helper()
	got := f.got.Load()
	eventually(t, "replies", func() bool { return f.got.Load() > got+100 })
}

// lost ends the flow and returns how many of its datagrams did not come back.
func (f *flow) lost(t testing.TB) int64 {
	t.Helper()
	f.more(t)
	f.halt()
	for end := time.Now().Add(10 * time.Second); f.got.Load() < f.sent.Load() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("%d datagrams, %d came back", f.sent.Load(), f.got.Load())
	return f.sent.Load() - f.got.Load()
}
