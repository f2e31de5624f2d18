package firewall

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/netnstest"
)

// A host is a network namespace of its own, reached through its file descriptor.
type host int

func newHost(t testing.TB) host {
	t.Helper()
	made := make(chan host)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread goes with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("new network namespace: %v", err)
		}
		noDAD(t)
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Errorf("open namespace: %v", err)
		}
		made <- host(fd)
	}()
	h := <-made
	t.Cleanup(func() { unix.Close(int(h)) })
	return h
}

// noDAD has devices that come into the calling thread's namespace use their link-local addresses at once: as long
// as one is tentative, nobody is solicited for a packet that is forwarded, for up to three seconds.
func noDAD(t testing.TB) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0); err != nil {
		t.Errorf("switch off duplicate address detection: %v", err)
	}
}

// do runs f on a thread in the namespace.
func (h host) do(t testing.TB, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(h), unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("enter namespace: %v", err)
	}
}

// attach connects the calling thread's namespace, as device dev, with the host, as eth0.
func (h host) attach(t testing.TB, dev, script string) {
	t.Helper()
	sh(t, fmt.Sprintf("ip link add %s type veth peer name eth0 netns /proc/%d/fd/%d", dev, os.Getpid(), h))
	sh(t, "ip link set "+dev+" up")
	h.do(t, func() { sh(t, "ip link set lo up; ip link set eth0 up\n"+script) })
}

// A scene is a node with a pod, the outside, and the way to a pod of another node.
type scene struct{ node, pod, outside, remote host }

func newScene(t testing.TB) scene {
	t.Helper()
	s := scene{node: host(namespace(t)), pod: newHost(t), outside: newHost(t), remote: newHost(t)}
	noDAD(t)
	sh(t, `echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
		echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter`)
	s.pod.attach(t, "pod0", `ip addr add 10.5.7.2/24 dev eth0; ip addr add fd00:5:0:7::2/64 dev eth0 nodad
		ip route add default via 10.5.7.1; ip route add default via fd00:5:0:7::1`)
	s.outside.attach(t, "out0", `ip addr add 192.0.2.2/24 dev eth0; ip addr add 2001:db8::2/64 dev eth0 nodad
		ip route add 10.5.0.0/16 via 192.0.2.1; ip route add fd00:5::/48 via 2001:db8::1`)
	s.remote.attach(t, "rem0", `ip addr add 10.5.8.2/24 dev eth0; ip addr add fd00:5:0:8::2/64 dev eth0 nodad
		ip route add 10.5.7.0/32 dev eth0; ip route add default via 10.5.7.0
		ip route add fd00:5:0:7::ff/128 dev eth0; ip route add default via fd00:5:0:7::ff`)
	sh(t, `ip addr add 10.5.7.1/24 dev pod0; ip addr add fd00:5:0:7::1/64 dev pod0 nodad
		ip addr add 192.0.2.1/24 dev out0; ip addr add 2001:db8::1/64 dev out0 nodad
		ip addr add 10.5.7.0/32 dev rem0; ip addr add fd00:5:0:7::ff/128 dev rem0 nodad
		ip route add 10.5.8.0/24 dev rem0; ip route add fd00:5:0:8::/64 dev rem0
		ip addr add 10.5.7.9/32 dev out0`) // multicast leaves by the device that has its source
	return s
}

// A flight is one datagram and the source that its receiver should see.
type flight struct {
	name     string
	from, to host
	src, dst string
	mark     int
	seen     string // empty: it does not arrive
}

// fly sends the datagram, again and again while it does not arrive and should.
func (fl flight) fly(t testing.TB) {
	t.Helper()
	// A port of its own: what an earlier flight has sent once more may still be on its way.
	to := netip.AddrPortFrom(netip.MustParseAddr(fl.dst), 0)
	var receiver, sender *net.UDPConn
	var err error
	fl.to.do(t, func() {
		if to.Addr().IsMulticast() {
			eth0, lookup := net.InterfaceByName("eth0")
			if lookup != nil {
				err = lookup
				return
			}
			receiver, err = net.ListenMulticastUDP("udp", eth0, net.UDPAddrFromAddrPort(to))
			return
		}
		receiver, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(to))
	})
	if err != nil {
		t.Fatalf("%s: listen: %v", fl.name, err)
	}
	defer receiver.Close()
	to = netip.AddrPortFrom(to.Addr(), receiver.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	for deadline := time.Now().Add(30 * time.Second); ; {
		// A new socket each time: masquerading is decided by a connection's first packet.
		fl.from.do(t, func() { sender, err = fl.dial(to) })
		if err != nil {
			t.Fatalf("%s: dial: %v", fl.name, err)
		}
		sender.Write([]byte("hello"))
		sender.Close()
		receiver.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, source, err := receiver.ReadFromUDPAddrPort(make([]byte, 16))
		switch {
		case err == nil && fl.seen == "":
			t.Errorf("%s: arrives, from %s", fl.name, source)
		case err == nil && source.Addr().Unmap().String() != fl.seen:
			t.Errorf("%s: seen from %s, want %s", fl.name, source.Addr(), fl.seen)
		case err != nil && fl.seen != "" && time.Now().Before(deadline):
			continue
		case err != nil && fl.seen != "":
			t.Errorf("%s: does not arrive", fl.name)
		}
		return
	}
}

func (fl flight) dial(to netip.AddrPort) (*net.UDPConn, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, fl.mark) })
		return err
	}}
	if fl.src != "" {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(fl.src), 0))
	}
	c, err := d.Dial("udp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// TestTraffic sends a packet each way and looks at the source that arrives.
func TestTraffic(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		s := newScene(t)
		apply(t, open(t), dual(m))
		for _, fl := range []flight{
			{"pod to outside", s.pod, s.outside, "", "192.0.2.2", 0, "192.0.2.1"},
			{"pod to pod of another node", s.pod, s.remote, "", "10.5.8.2", 0, "10.5.7.2"},
			{"pod of another node to pod", s.remote, s.pod, "", "10.5.7.2", 0, "10.5.8.2"},
			{"outside to pod", s.outside, s.pod, "", "10.5.7.2", 0, "192.0.2.2"},
			{"host to its pod", s.node, s.pod, "192.0.2.1", "10.5.7.2", 0, "192.0.2.1"},
			{"host to pod of another node", s.node, s.remote, "192.0.2.1", "10.5.8.2", 0, "10.5.7.0"},
			{"outside to pod of another node", s.outside, s.remote, "", "10.5.8.2", 0, "10.5.7.0"},
			{"marked by kube-proxy", s.node, s.remote, "192.0.2.1", "10.5.8.2", 0x4000, "192.0.2.1"},
			{"marked by kube-proxy and others", s.node, s.remote, "192.0.2.1", "10.5.8.2", 0x14001, "192.0.2.1"},
			{"marked by others", s.node, s.remote, "192.0.2.1", "10.5.8.2", 0x8001, "10.5.7.0"},
			{"pod address to multicast", s.node, s.outside, "10.5.7.9", "224.1.2.3", 0, "10.5.7.9"},
			{"host to outside", s.node, s.outside, "192.0.2.1", "192.0.2.2", 0, "192.0.2.1"},
			{"IPv6 pod to outside", s.pod, s.outside, "", "2001:db8::2", 0, "2001:db8::1"},
			{"IPv6 pod to pod of another node", s.pod, s.remote, "", "fd00:5:0:8::2", 0, "fd00:5:0:7::2"},
			{"IPv6 outside to pod", s.outside, s.pod, "", "fd00:5:0:7::2", 0, "2001:db8::2"},
			{"IPv6 host to pod of another node", s.node, s.remote, "2001:db8::1", "fd00:5:0:8::2", 0, "fd00:5:0:7::ff"},
			{"IPv6 marked by kube-proxy", s.node, s.remote, "2001:db8::1", "fd00:5:0:8::2", 0x4001, "2001:db8::1"},
		} {
			fl.fly(t)
		}
	})
}

// TestTrafficBetweenNetworks gives the pod network a second range while it works, in either order, on a host that
// forwards nothing of its own accord.
func TestTrafficBetweenNetworks(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		s := newScene(t)
		sh(t, `iptables-nft -P FORWARD DROP; ip6tables-nft -P FORWARD DROP
			ip route add 10.9.8.0/24 dev rem0; ip route add fd00:9:0:8::/64 dev rem0`)
		s.remote.do(t, func() { sh(t, "ip addr add 10.9.8.2/24 dev eth0; ip addr add fd00:9:0:8::2/64 dev eth0 nodad") })
		s.outside.do(t, func() { sh(t, "ip route add 10.9.0.0/16 via 192.0.2.1; ip route add fd00:9::/48 via 2001:db8::1") })
		fw := open(t)
		apply(t, fw, dual(m))
		for _, fl := range []flight{
			{"pod to a range that is not the cluster's", s.pod, s.remote, "", "10.9.8.2", 0, "10.5.7.0"},
			{"IPv6 pod to a range that is not the cluster's", s.pod, s.remote, "", "fd00:9:0:8::2", 0, "fd00:5:0:7::ff"},
			{"outside to a range that is not the cluster's", s.outside, s.remote, "", "10.9.8.2", 0, ""},
		} {
			fl.fly(t)
		}
		for _, networks := range []family.Pair[[]netip.Prefix]{
			{V4: prefixes("10.5.0.0/16", "10.9.0.0/16"), V6: prefixes("fd00:5::/48", "fd00:9::/48")},
			{V4: prefixes("10.9.0.0/16", "10.5.0.0/16"), V6: prefixes("fd00:9::/48", "fd00:5::/48")},
		} {
			p := dual(m)
			p.Network = networks
			apply(t, fw, p)
			settled(t, fw, p)
			for _, fl := range []flight{
				{"pod to pod of the other range", s.pod, s.remote, "", "10.9.8.2", 0, "10.5.7.2"},
				{"pod of the other range to pod", s.remote, s.pod, "10.9.8.2", "10.5.7.2", 0, "10.9.8.2"},
				{"pod to pod of its own range", s.pod, s.remote, "", "10.5.8.2", 0, "10.5.7.2"},
				{"pod to outside", s.pod, s.outside, "", "192.0.2.2", 0, "192.0.2.1"},
				{"outside to pod", s.outside, s.pod, "", "10.5.7.2", 0, "192.0.2.2"},
				{"outside to pod of the other range", s.outside, s.remote, "", "10.9.8.2", 0, "10.5.7.0"},
				{"host to pod of the other range", s.node, s.remote, "192.0.2.1", "10.9.8.2", 0, "10.5.7.0"},
				{"IPv6 pod to pod of the other range", s.pod, s.remote, "", "fd00:9:0:8::2", 0, "fd00:5:0:7::2"},
				{"IPv6 pod of the other range to pod", s.remote, s.pod, "fd00:9:0:8::2", "fd00:5:0:7::2", 0, "fd00:9:0:8::2"},
				{"IPv6 outside to pod of the other range", s.outside, s.remote, "", "fd00:9:0:8::2", 0, "fd00:5:0:7::ff"},
			} {
				fl.fly(t)
			}
		}
	})
}

// TestForwardDrop has pods talk although the host's FORWARD policy is DROP, as Docker sets it.
func TestForwardDrop(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		s := newScene(t)
		sh(t, "iptables-nft -P FORWARD DROP; ip6tables-nft -P FORWARD DROP")
		there := flight{"pod to pod of another node", s.pod, s.remote, "", "10.5.8.2", 0, "10.5.7.2"}
		there6 := flight{"IPv6 outside to pod", s.outside, s.pod, "", "fd00:5:0:7::2", 0, "2001:db8::2"}
		fw, p := open(t), dual(m)
		p.Forward = false
		apply(t, fw, p)
		for _, fl := range []flight{there, there6} {
			fl.seen = ""
			fl.fly(t)
		}
		p.Forward = true
		apply(t, fw, p)
		there.fly(t)
		there6.fly(t)
	})
}

// TestNoGap changes policy and mode under traffic of which every packet opens a connection, and so is
// masqueraded or not by the rules of that very moment.
func TestNoGap(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		s := newScene(t)
		fw := open(t)
		apply(t, fw, dual(IPTables))
		sh(t, "echo 1 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout") // before a port's turn comes again
		wide := dual(IPTables)
		wide.Network.V4, wide.RandomFully = prefixes("10.0.0.0/13", "10.8.0.0/16"), false
		narrow := dual(IPTables)
		narrow.Subnet.V4 = netip.MustParsePrefix("10.5.7.0/25")
		policies := []Policy{dual(IPTables), wide, narrow}
		var masqueraded, bare atomic.Int64
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{}, 2)
		go func() { s.receive(t, ctx, &masqueraded, &bare); ended <- struct{}{} }()
		go func() { s.pod.do(t, func() { send(ctx) }); ended <- struct{}{} }()
		for i := range 60 {
			p := policies[i%len(policies)]
			p.Mode = Mode(i / 3 % 2)
			apply(t, fw, p)
			for want, end := masqueraded.Load()+10, time.Now().Add(time.Minute); masqueraded.Load() < want; runtime.Gosched() {
				if time.Now().After(end) {
					t.Fatalf("%d packets arrived, and no more do", masqueraded.Load())
				}
			}
		}
		if n := bare.Load(); n != 0 {
			t.Errorf("%d packets of %d left unmasqueraded", n, masqueraded.Load())
		}
		t.Logf("%d packets masqueraded over 60 changes", masqueraded.Load())
		// The test would notice: without rules they do leave so.
		if _, err := fw.Cleanup(context.Background(), false); err != nil {
			t.Error(err)
		}
		for end := time.Now().Add(time.Minute); bare.Load() == 0 && time.Now().Before(end); {
			runtime.Gosched()
		}
		if bare.Load() == 0 {
			t.Error("no packet leaves unmasqueraded even without rules")
		}
		cancel()
		<-ended
		<-ended
	})
}

// send sends datagrams to the outside, each from a port of its own: the ports take turns, and no turn of all is shorter
// than two seconds.
func send(ctx context.Context) {
	const first, last = 1024, 1<<16 - 1
	to := &unix.SockaddrInet4{Port: 5555, Addr: [4]byte{192, 0, 2, 2}}
	turn := time.NewTicker(2 * time.Second)
	defer turn.Stop()
	for port := first; ctx.Err() == nil; port++ {
		if port > last {
			select {
			case <-turn.C:
			case <-ctx.Done():
			}
			port = first
			turn.Reset(2 * time.Second)
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return
		}
		unix.Bind(fd, &unix.SockaddrInet4{Port: port})
		unix.Sendto(fd, []byte("x"), 0, to)
		unix.Close(fd)
	}
}

// receive counts datagrams by whether their source is the node's address.
func (s scene) receive(t testing.TB, ctx context.Context, masqueraded, bare *atomic.Int64) {
	var c *net.UDPConn
	var err error
	s.outside.do(t, func() { c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 5555}) })
	if err != nil {
		t.Errorf("listen: %v", err)
		return
	}
	defer c.Close()
	c.SetReadBuffer(4 << 20)
	context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	node, b := netip.MustParseAddr("192.0.2.1"), make([]byte, 16)
	for {
		_, from, err := c.ReadFromUDPAddrPort(b)
		switch {
		case err != nil:
			return
		case from.Addr().Unmap() == node:
			masqueraded.Add(1)
		default:
			bare.Add(1)
		}
	}
}
