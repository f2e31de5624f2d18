package udptun

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/state"
)

// A tunnel that could not be opened or started for want of descriptors, whichever was the first one to be refused,
// is there after the next Apply.
func TestStartFails(t *testing.T) {
	h := &host{space: newSpace(t), n: 1}
	h.ip("addr add 10.77.0.1/24 dev lo")
	h.ip("addr add fd77::1/64 dev lo nodad")
	var all unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &all); err != nil {
		t.Fatal(err)
	}
	allow := func(n uint64) {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: all.Max}); err != nil {
			t.Fatal(err)
		}
	}
	defer allow(all.Cur)
	apply := func(tun *Tunnel) (err error) {
		h.run(func() { _, err = tun.Apply(wantFor(1, state.TunnelOff{Segment: true, GRO: true}, 2), true) })
		return err
	}
	for limit := uint64(8); ; limit++ {
		tun := New("", slog.New(slog.DiscardHandler))
		allow(limit)
		first := apply(tun)
		allow(all.Cur)
		second := apply(tun)
		if n := tun.engines[testDev].running.Load(); second != nil || n != 2 {
			t.Errorf("%d descriptors: %v; then %v, and %d workers", limit, first, second, n)
		}
		tun.Close()
		if first == nil {
			return
		}
	}
}

// A tunnel that never ran keeps none that did from being taken up.
func TestResumeBesideOneThatFailed(t *testing.T) {
	h := &host{space: newSpace(t), n: 1}
	h.ip("addr add 10.77.0.1/24 dev lo")
	h.ip("addr add fd77::1/64 dev lo nodad")
	var taken int
	h.run(func() {
		taken, _ = datagram(netip.MustParseAddr("10.77.0.1"))
		if err := bind(taken, netip.MustParseAddr("10.77.0.1"), 9999); err != nil {
			t.Error(err)
		}
	})
	defer unix.Close(taken)
	file := filepath.Join(t.TempDir(), "tunnel")
	tun := New(file, slog.New(slog.DiscardHandler))
	want := wantFor(1, state.TunnelOff{}, 2)
	second := want.Tunnels[testDev]
	second.Port = 9999
	want.Tunnels["flannel1"] = second
	want.TunnelPeers[state.TunnelKey{Dev: "flannel1", Subnet: netip.MustParsePrefix("10.244.3.0/24")}] = netip.MustParseAddr("10.77.0.3")
	var err error
	h.run(func() { _, err = tun.Apply(want, true) })
	t.Log("apply:", err)
	if err := tun.Close(); err != nil {
		t.Fatal(err)
	}
	next := New(file, slog.New(slog.DiscardHandler))
	defer next.Close()
	h.run(func() { err = next.Resume() })
	if len(next.Ports()) == 0 {
		t.Errorf("nothing was taken up: %v", err)
	}
}

// What changed in the last second is on disk after Close, also if the timer has just run out.
func TestCloseWrites(t *testing.T) {
	h := &host{space: newSpace(t), n: 1}
	h.ip("addr add 10.77.0.1/24 dev lo")
	h.ip("addr add fd77::1/64 dev lo nodad")
	file := filepath.Join(t.TempDir(), "tunnel")
	tun := New(file, slog.New(slog.DiscardHandler))
	h.run(func() {
		if _, err := tun.Apply(wantFor(1, state.TunnelOff{}, 2), true); err != nil {
			t.Fatal(err)
		}
	})
	tun.mu.Lock()
	tun.saving.Stop() // as a timer that has run out and waits for the lock
	tun.mu.Unlock()
	if err := tun.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

// An address that is not there yet costs nothing once it is.
func TestLateAddress(t *testing.T) {
	h := &host{space: newSpace(t), n: 1}
	h.ip("addr add 10.77.0.1/24 dev lo")
	tun := New("", slog.New(slog.DiscardHandler))
	defer tun.Close()
	var err error
	for range 5 {
		h.run(func() { _, err = tun.Apply(wantFor(1, state.TunnelOff{}, 2), true) })
		if err == nil {
			t.Fatal("no error")
		}
	}
	t.Log(err)
	h.ip("addr add fd77::1/64 dev lo nodad")
	h.run(func() { _, err = tun.Apply(wantFor(1, state.TunnelOff{}, 2), true) })
	if err != nil {
		t.Fatal(err)
	}
	out := strings.TrimSpace(h.command("ss", "-Hlun", "sport", "=", "8285"))
	lines := strings.Split(out, "\n")
	if len(lines) != 4 {
		t.Errorf("%d sockets on the port, want one per queue and family:\n%s", len(lines), out)
	}
}

// Packets of peers arrive after an address has come late.
func TestLateAddressTraffic(t *testing.T) {
	a, b := newHosts(t, 1500)
	b.start(state.TunnelOff{}, 1452, 1)
	a.ip("addr del fd77::1/64 dev eth0")
	a.tunnel = New("", slog.New(slog.DiscardHandler))
	t.Cleanup(func() { a.tunnel.Close() })
	for range 20 {
		a.run(func() { _, _ = a.tunnel.Apply(wantFor(1, state.TunnelOff{}, 2), true) })
	}
	a.addr6("fd77::1/64", "eth0")
	a.apply(wantFor(1, state.TunnelOff{}, 2))
	a.configure(1452)
	out, err := a.try("ping", "-c3", "-i0.2", "-W10", "10.244.2.0")
	t.Logf("%v %s", err, out)
	if err != nil {
		t.Error("no packet comes back")
	}
}

// Packets wait in the device while its worker has no CPU: on a busy machine that is for longer than the 500 packets last
// that the kernel would keep.
func TestPacketsWaitForTheWorker(t *testing.T) {
	const packets = 1900
	a, b := newPair(t, state.TunnelOff{}, state.TunnelOff{})
	port := b.pod.udpEcho()
	a.pod.echo(podAddr(2, false), port) // neighbours are known
	c := a.pod.dial("udp", podAddr(2, false), port)
	before := b.stats().Peers[0].RxPackets

	e := a.tunnel.engines[testDev]
	e.halt()
	forwarded := a.forwarded()
	for sent := range packets {
		if _, err := c.Write(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if (sent+1)%100 == 0 { // between pod and node there is room for some hundreds (net.core.netdev_max_backlog)
			eventually(t, "the packets are at the device", func() bool { return a.forwarded() >= forwarded+sent+1 })
		}
	}
	var err error
	a.run(func() { err = e.start() })
	if err != nil {
		t.Fatal(err)
	}
	arrived := uint64(0)
	for began := time.Now(); arrived < packets && time.Since(began) < deadline; time.Sleep(time.Millisecond) {
		arrived = b.stats().Peers[0].RxPackets - before
	}
	if arrived < packets {
		t.Errorf("%d of %d packets arrived", arrived, packets)
	}
}

// forwarded returns how many IPv4 packets the host has forwarded.
func (h *host) forwarded() int {
	h.t.Helper()
	n := 0
	for _, f := range strings.Fields(h.command("nstat", "-asz", "IpForwDatagrams")) {
		if i, err := strconv.Atoi(f); err == nil {
			n = i
		}
	}
	return n
}

// A kernel that cuts large UDP packets wrongly is given none: neither to send nor to hand to a pod.
func TestAKernelThatCutsWrongly(t *testing.T) {
	h := &host{space: newSpace(t), n: 1}
	h.ip("addr add 10.77.0.1/24 dev lo")
	h.ip("addr add fd77::1/64 dev lo nodad")
	// The probe's last datagram, of seven bytes, gets lost. Loopback has to cut for that.
	h.ip("link set lo gso_max_segs 1")
	h.command("nft", "add table ip x; add chain ip x i { type filter hook input priority 0; }; add rule ip x i udp length 15 drop")
	tun := New("", slog.New(slog.NewTextHandler(t.Output(), nil)))
	defer tun.Close()
	var err error
	h.run(func() { _, err = tun.Apply(wantFor(1, state.TunnelOff{}, 2), true) })
	if err != nil {
		t.Fatal(err)
	}
	if use := strings.Join(tun.Stats()[0].Use, " "); strings.Contains(use, "udp_segment") || strings.Contains(use, "uso") {
		t.Errorf("uses %s", use)
	}
}
