package udptun

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/state"
)

// newPair makes two nodes with tunnels to each other.
func newPair(t *testing.T, offA, offB state.TunnelOff) (a, b *host) {
	t.Helper()
	a, b = newHosts(t, 1500)
	a.start(offA, 1452, 2)
	b.start(offB, 1452, 1)
	return a, b
}

// Every offload alone and all together may be missing, on either side, and pods do not notice.
func TestPodsReachEachOtherWithAndWithoutOffloads(t *testing.T) {
	none := state.TunnelOff{Checksum: true, TSO: true, USO: true, Segment: true, GRO: true}
	for _, tc := range []struct {
		name string
		a, b state.TunnelOff
	}{
		{"all", state.TunnelOff{}, state.TunnelOff{}},
		{"none", none, none},
		{"none here", none, state.TunnelOff{}},
		{"none there", state.TunnelOff{}, none},
		{"no checksum", state.TunnelOff{Checksum: true}, state.TunnelOff{Checksum: true}},
		{"no TSO", state.TunnelOff{TSO: true}, state.TunnelOff{TSO: true}},
		{"no USO", state.TunnelOff{USO: true}, state.TunnelOff{USO: true}},
		{"no UDP_SEGMENT", state.TunnelOff{Segment: true}, state.TunnelOff{Segment: true}},
		{"no UDP_GRO", state.TunnelOff{GRO: true}, state.TunnelOff{GRO: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := newPair(t, tc.a, tc.b)
			tcp, udp := b.pod.tcpEcho(), b.pod.udpEcho()
			for _, v6 := range []bool{false, true} {
				a.pod.transfer(podAddr(2, v6), tcp, 4<<20)
				a.pod.echo(podAddr(2, v6), udp)
			}
			for _, s := range []Stats{a.stats(), b.stats()} {
				for reason, n := range s.Drops {
					if n > 0 && !strings.HasSuffix(reason, "_multicast") { // router solicitations
						t.Errorf("%s: %d", reason, n)
					}
				}
			}
			t.Logf("%v: %d reads, %d sends, %d receives, %d writes", a.stats().Use, a.stats().Reads, a.stats().Sends, a.stats().Receives, a.stats().Writes)
		})
	}
}

func TestCountersOfPeers(t *testing.T) {
	a, b := newPair(t, state.TunnelOff{}, state.TunnelOff{})
	a.command("ping", "-c3", "-i0.01", "-W5", "-s100", "10.244.2.0")
	a.command("ping", "-c3", "-i0.01", "-W5", "-s100", "fd24:0:0:2::")
	for _, h := range []*host{a, b} {
		for i, bytes := range []uint64{3 * 128, 3 * 148} { // the order is that of addresses: IPv4 first
			var p PeerStats
			eventually(t, "all is counted, which is done after a packet has left", func() bool {
				p = h.stats().Peers[i]
				return p.TxBytes >= bytes && p.RxBytes >= bytes
			})
			if p.TxPackets != 3 || p.RxPackets != 3 || p.TxBytes != bytes || p.RxBytes != bytes {
				t.Errorf("node %d: %+v", h.n, p)
			}
		}
	}
}

// A destination that nobody holds is answered at once, from the device's address.
func TestUnknownDestinationIsUnreachable(t *testing.T) {
	a, _ := newPair(t, state.TunnelOff{}, state.TunnelOff{})
	var fd int
	a.pod.run(func() {
		var err error
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP); err != nil {
			t.Fatal(err)
		}
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	})
	defer unix.Close(fd)
	for _, to := range []string{"10.244.9.9", "fd24:0:0:9::9"} {
		var err error
		began := time.Now()
		a.pod.run(func() {
			_, err = net.DialTimeout("tcp", netip.AddrPortFrom(netip.MustParseAddr(to), 7).String(), deadline)
		})
		if !errors.Is(err, unix.ENETUNREACH) || time.Since(began) > deadline/2 {
			t.Errorf("%s: %v after %s", to, err, time.Since(began))
		}
	}
	b := make([]byte, 1500)
	n, err := unix.Read(fd, b)
	if err != nil {
		t.Fatal(err)
	}
	p, ok := parse(b[:n])
	if !ok || p.src != netip.MustParseAddr("10.244.1.0") || b[8] != icmpTTL-1 || b[20] != 3 || b[21] != 0 || n != 20+8+20+8 {
		t.Errorf("ICMP %x", b[:n])
	}
	// Neither for ICMP nor for later fragments.
	eventually(t, "both are counted, which is done after they have left", func() bool { return a.stats().ICMP >= 2 })
	before := a.stats().ICMP
	if out, err := a.pod.try("ping", "-c1", "-W1", "10.244.9.9"); err == nil {
		t.Error(out)
	}
	eventually(t, "the ping is dropped", func() bool { return a.stats().Drops["out_no_peer"] >= 3 })
	a.tunnel.Close() // the workers have done whatever they do about it
	if s := a.stats(); s.ICMP != before {
		t.Errorf("%d errors sent, before %d; %v", s.ICMP, before, s.Drops)
	}
}

// Only peers, and each only from its own subnets, may inject.
func TestSourceCheck(t *testing.T) {
	a, b := newHosts(t, 1500)
	a.start(state.TunnelOff{}, 1452, 2)
	b.ip("addr add 10.77.0.3/24 dev eth0")
	send := func(from, src, dst string) {
		t.Helper()
		var c net.Conn
		var err error
		b.run(func() {
			c, err = (&net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))}).Dial("udp", "10.77.0.1:8285")
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		p := append([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0}, netip.MustParseAddr(src).AsSlice()...)
		p = append(append(p, netip.MustParseAddr(dst).AsSlice()...), 0, 1, 0, 1, 0, 8, 0, 0)
		setLength(p, 1)
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ name, from, src, dst, counter string }{
		{"a stranger", "10.77.0.3:8285", "10.244.2.2", "10.244.1.2", "in_unknown_sender"},
		{"another's pod", "10.77.0.2:8285", "10.244.3.2", "10.244.1.2", "in_spoofed"},
		{"our own pod", "10.77.0.2:8285", "10.244.1.9", "10.244.1.2", "in_spoofed"},
		{"our own device", "10.77.0.2:8285", "10.244.1.0", "10.244.1.2", "in_spoofed"},
		{"the outside", "10.77.0.2:8285", "192.0.2.1", "10.244.1.2", "in_spoofed"},
		{"to a multicast group", "10.77.0.2:8285", "10.244.2.2", "224.0.0.1", "in_multicast"},
		{"to loopback", "10.77.0.2:8285", "10.244.2.2", "127.0.0.1", "in_multicast"},
	} {
		before := a.stats()
		send(tc.from, tc.src, tc.dst)
		eventually(t, tc.name+" is counted", func() bool { return a.stats().Drops[tc.counter] == before.Drops[tc.counter]+1 })
		if w := a.stats().Writes; w != before.Writes {
			t.Errorf("%s: written to the device", tc.name)
		}
	}
	if p := a.stats().Peers[0]; p.Spoofed != 4 {
		t.Errorf("peer %+v", p)
	}
	off := wantFor(1, state.TunnelOff{SourceCheck: true}, 2)
	a.apply(off)
	send("10.77.0.2:8285", "192.0.2.1", "10.244.1.2")
	eventually(t, "a source that is not checked", func() bool { return a.stats().Writes > 0 })
}

// Device, addresses and routes stay when the process ends; the next one goes on at once, before it knows
// anything.
func TestTheNextProcessGoesOn(t *testing.T) {
	a, b := newPair(t, state.TunnelOff{}, state.TunnelOff{})
	udp := b.pod.udpEcho()
	a.pod.echo(podAddr(2, false), udp)
	look := func() string {
		return strings.ReplaceAll(a.ip("route show dev flannel0")+a.ip("-br addr show flannel0"), " linkdown", "")
	}
	_, before, _ := strings.Cut(look(), "10.244.1.0/32")
	file := filepath.Join(t.TempDir(), "tunnel.json")
	a.tunnel.file = file
	a.apply(wantFor(1, state.TunnelOff{}, 2, 3))
	if err := a.tunnel.Close(); err != nil {
		t.Fatal(err)
	}
	if _, now, _ := strings.Cut(look(), "10.244.1.0/32"); now != before || now == "" {
		t.Errorf("was %s, is %s", before, now)
	}
	a.tunnel = New(file, slog.New(slog.NewTextHandler(t.Output(), nil)))
	var err error
	a.run(func() { err = a.tunnel.Resume() })
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the kernel has seen that the device is in use again", func() bool {
		_, err := a.try("ping", "-c1", "-W1", "10.244.2.0")
		return err == nil
	})
	a.pod.echo(podAddr(2, false), udp)
	// Peers that are not known yet stay until they are known not to be.
	partial := wantFor(1, state.TunnelOff{})
	a.run(func() { _, err = a.tunnel.Apply(partial, false) })
	if err != nil || len(a.stats().Peers) != 4 {
		t.Errorf("%v, peers %v", err, a.stats().Peers)
	}
	a.apply(wantFor(1, state.TunnelOff{}, 2))
	if n := len(a.stats().Peers); n != 2 {
		t.Errorf("%d peers", n)
	}
	a.pod.echo(podAddr(2, false), udp)
	// After a reboot the device is not there, and nothing is taken up.
	if err := a.tunnel.Close(); err != nil {
		t.Fatal(err)
	}
	a.ip("link del flannel0")
	a.tunnel = New(file, slog.New(slog.NewTextHandler(t.Output(), nil)))
	a.run(func() { err = a.tunnel.Resume() })
	if err != nil || len(a.tunnel.Stats()) != 0 {
		t.Errorf("%v, %v", err, a.tunnel.Stats())
	}
}

func TestADeviceThatIsDeletedComesBack(t *testing.T) {
	a, b := newPair(t, state.TunnelOff{}, state.TunnelOff{})
	a.ip("link del flannel0")
	eventually(t, "a change is planned", func() bool { return len(a.tunnel.Plan(a.want, true)) == 1 })
	a.apply(a.want)
	if changes := a.tunnel.Plan(a.want, true); len(changes) > 0 {
		t.Errorf("still to do: %v", changes)
	}
	a.configure(1452)
	a.pod.echo(podAddr(2, true), b.pod.udpEcho())
}

func TestOthersDevices(t *testing.T) {
	a, b := newHosts(t, 1500)
	try := func() error {
		if a.tunnel != nil {
			a.tunnel.Close()
		}
		a.tunnel = New("", slog.New(slog.DiscardHandler))
		t.Cleanup(func() { a.tunnel.Close() })
		var err error
		a.run(func() { _, err = a.tunnel.Apply(wantFor(1, state.TunnelOff{}, 2), true) })
		return err
	}
	a.ip("link add flannel0 type bridge")
	if err := try(); err == nil || !strings.Contains(err.Error(), "no TUN device") {
		t.Errorf("a bridge: %v", err)
	}
	a.ip("link del flannel0")
	var fd int
	a.run(func() { fd, _ = attach(testDev, unix.IFF_TUN|unix.IFF_NO_PI) })
	if err := try(); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("the original's, which runs: %v", err)
	}
	_ = unix.Close(fd)
	var taken net.PacketConn
	a.run(func() { taken, _ = net.ListenPacket("udp", "10.77.0.1:8285") })
	if err := try(); err == nil || !strings.Contains(err.Error(), "10.77.0.1:8285: bind: address already in use") {
		t.Errorf("the port is taken: %v", err)
	}
	taken.Close()
	other := New("", slog.New(slog.DiscardHandler))
	a.run(func() {
		want := wantFor(1, state.TunnelOff{}, 2)
		want.Tunnels["flannel1"] = want.Tunnels[testDev]
		delete(want.Tunnels, testDev)
		if _, err := other.Apply(want, true); err != nil {
			t.Error(err)
		}
	})
	if err := try(); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("another agent has the port: %v", err)
	}
	other.Close()
	a.ip("tuntap add flannel0 mode tun")
	if err := try(); err != nil {
		t.Fatalf("one with a single queue that was left: %v", err)
	}
	a.configure(1452)
	b.start(state.TunnelOff{}, 1452, 1)
	a.pod.echo(podAddr(2, false), b.pod.udpEcho())
}

// Only what differs is opened anew, and nothing is lost over it.
func TestParametersChangeWhileItRuns(t *testing.T) {
	a, b := newPair(t, state.TunnelOff{}, state.TunnelOff{})
	udp := b.pod.udpEcho()
	a.ip("addr add 10.77.0.101/24 dev eth0")
	moved := wantFor(1, state.TunnelOff{}, 2)
	w := moved.Tunnels[testDev]
	w.Local.V4 = netip.MustParseAddr("10.77.0.101")
	moved.Tunnels[testDev] = w
	theirs := wantFor(2, state.TunnelOff{}, 1)
	theirs.TunnelPeers[state.TunnelKey{Dev: testDev, Subnet: subnetOf(1).V4}] = w.Local.V4
	queues := moved.Tunnels[testDev].Queues
	e := a.tunnel.engines[testDev]
	device := e.device
	b.apply(theirs)
	a.apply(moved)
	if e.device != device || e.sockets.all[0].V4 < 0 || len(e.device.queues) != queues {
		t.Error("the device was opened anew")
	}
	a.pod.echo(podAddr(2, false), udp)
	off := wantFor(1, state.TunnelOff{TSO: true}, 2)
	a.apply(off)
	b.apply(wantFor(2, state.TunnelOff{}, 1))
	if u := strings.Join(a.stats().Use, " "); strings.Contains(u, "tso") || e.device != device {
		t.Errorf("uses %s; the device was opened anew: %v", u, e.device != device)
	}
	a.pod.echo(podAddr(2, false), udp)
}

// A thousand peers, a hundred of which change every second: nobody else loses a packet.
func TestPeersChangeUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: takes seconds, and -short was asked for")
	}
	a, b := newPair(t, state.TunnelOff{}, state.TunnelOff{})
	want := wantFor(1, state.TunnelOff{}, 2)
	key := func(i int) state.TunnelKey {
		return state.TunnelKey{Dev: testDev, Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 245, byte(i >> 6), byte(i << 2)}), 30)}
	}
	for i := range 1000 {
		want.TunnelPeers[key(i)] = netip.AddrFrom4([4]byte{10, 78, byte(i >> 8), byte(i)})
	}
	a.apply(want)
	tcp := b.pod.tcpEcho()
	l := a.pod.load(podAddr(2, false), b.pod.udpEcho(), 200*time.Microsecond)
	bulk := make(chan struct{})
	go func() {
		defer close(bulk)
		a.pod.transfer(podAddr(2, false), tcp, 64<<20)
	}()
	var slowest time.Duration
	tick := time.NewTicker(10 * time.Millisecond) // one change each: a hundred per second
	defer tick.Stop()
	for i := range 400 {
		<-tick.C
		k := key(i % 1000)
		want.TunnelPeers[k] = netip.AddrFrom4([4]byte{10, 79, byte(i >> 8), byte(i)})
		began := time.Now()
		a.apply(want)
		slowest = max(slowest, time.Since(began))
	}
	<-bulk
	if lost := l.end(); lost > 0 {
		t.Errorf("%d of %d packets lost", lost, l.sent)
	}
	t.Logf("%d packets, none lost, longest gap %s; slowest change %s", l.sent, l.longest, slowest)
}

// SIGTERM must not wait for traffic.
func TestCloseIsPrompt(t *testing.T) {
	a, b := newPair(t, state.TunnelOff{}, state.TunnelOff{})
	l := a.pod.load(podAddr(2, false), b.pod.udpEcho(), time.Millisecond)
	eventually(t, "traffic", func() bool { return a.stats().Reads > 20 })
	timed := func(tun *Tunnel) time.Duration {
		began := time.Now()
		if err := tun.Close(); err != nil {
			t.Error(err)
		}
		return time.Since(began)
	}
	// What the kernel takes to close devices and sockets on a busy machine, the other node shows: nothing comes there now.
	if d, idle := timed(a.tunnel), timed(b.tunnel); d > time.Second+idle {
		t.Errorf("took %s, and %s where there is no traffic", d, idle)
	}
	l.endWithin(0)
	if _, err := a.tunnel.Apply(a.want, true); err == nil {
		t.Error("a closed tunnel was opened")
	}
	if got := fmt.Sprint(a.tunnel.Plan(a.want, true)); !strings.Contains(got, "tunnel") {
		t.Errorf("plan %s", got)
	}
}
