package udptun

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/state"
)

// An original is a node that speaks as flannel's proxy does (interop section 7), with one plain socket and one
// packet at a time. Its host answers pings to all its addresses and keeps what else it gets.
type original struct {
	t    *testing.T
	c    *net.UDPConn
	peer netip.AddrPort

	mu    sync.Mutex // guards what follows
	ports map[uint16]int
	sizes []int
	got   [][]byte
	died  int // TTL 0 on arrival
}

func newOriginal(h *host, peer string) *original {
	o := &original{t: h.t.(*testing.T), peer: netip.MustParseAddrPort(peer), ports: map[uint16]int{}}
	h.run(func() {
		var err error
		o.c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(underlay(h.n).V4, 8285)))
		if err != nil {
			h.t.Fatal(err)
		}
	})
	h.t.Cleanup(func() { o.c.Close() })
	go o.run()
	return o
}

func (o *original) run() {
	buf := make([]byte, 1472)
	for {
		n, from, err := o.c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 20 {
			continue
		}
		o.receive(append([]byte(nil), buf[:n]...), from.Port())
	}
}

func (o *original) receive(p []byte, port uint16) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ports[port]++
	o.sizes = append(o.sizes, len(p))
	if !o.decrement(p) {
		o.died++
		return
	}
	if p[9] == unix.IPPROTO_ICMP && p[20] == 8 { // echo request
		reply := append([]byte(nil), p...)
		copy(reply[12:], p[16:20])
		copy(reply[16:], p[12:16])
		reply[8], reply[20] = 64, 0
		setLength(reply, be.Uint16(p[4:]))
		reply[22], reply[23] = 0, 0
		be.PutUint16(reply[22:], ^slowSum(reply[20:]))
		o.send(reply)
		return
	}
	o.got = append(o.got, p)
}

func (o *original) decrement(p []byte) bool {
	p[8]--
	if p[8] == 0 {
		return false
	}
	s := uint32(be.Uint16(p[10:])) + 0x100
	be.PutUint16(p[10:], uint16(s+s>>16))
	return true
}

// send sends a packet as the original's host does.
func (o *original) send(p []byte) {
	if o.decrement(p) {
		_, _ = o.c.WriteToUDPAddrPort(p, o.peer)
	}
}

func (o *original) received() [][]byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.got
}

// ping returns an echo request from a pod of node 2.
func ping(ttl byte, to string) []byte {
	p := append([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, ttl, unix.IPPROTO_ICMP, 0, 0, 10, 244, 2, 2}, netip.MustParseAddr(to).AsSlice()...)
	m := []byte{8, 0, 0, 0, 0, 1, 0, 1, 'h', 'e', 'l', 'l', 'o', '!'}
	be.PutUint16(m[2:], ^slowSum(m))
	p = append(p, m...)
	setLength(p, 1)
	return p
}

// The original's datagrams in both directions: TTL, ports, sizes.
func TestTalksToTheOriginal(t *testing.T) {
	a, b := newHosts(t, 1500)
	a.start(state.TunnelOff{}, 1472, 2)
	o := newOriginal(b, "10.77.0.1:8285")
	for _, tc := range []struct{ ttl, ok string }{{"2", ""}, {"3", "ok"}, {"64", "ok"}} {
		out, err := a.try("ping", "-c1", "-W"+map[string]string{"": "1", "ok": "10"}[tc.ok], "-t", tc.ttl, "10.244.2.0")
		if (err == nil) != (tc.ok != "") {
			t.Errorf("ping with TTL %s: %s", tc.ttl, out)
		}
	}
	eventually(t, "the first is there", func() bool { o.mu.Lock(); defer o.mu.Unlock(); return o.died > 0 })
	o.mu.Lock()
	if o.died != 1 || len(o.ports) != 1 || o.ports[8285] == 0 {
		t.Errorf("%d died on arrival, source ports %v", o.died, o.ports)
	}
	o.mu.Unlock()
	// The other way round. 1 is left of 3 when it reaches the host.
	for _, tc := range []struct {
		ttl     byte
		arrives bool
	}{{2, false}, {3, true}} {
		before := a.stats()
		o.send(ping(tc.ttl, "10.244.1.0"))
		if tc.arrives {
			eventually(t, "an answer", func() bool { return len(o.received()) == 1 })
			if p := o.received()[0]; p[20] != 0 || string(p[28:]) != "hello!" {
				t.Errorf("answer %x", p)
			}
		} else {
			eventually(t, "a drop", func() bool { return a.stats().Drops["in_ttl"] == before.Drops["in_ttl"]+1 })
		}
	}
	for _, short := range [][]byte{{}, {0x45}, make([]byte, 19)} {
		before := a.stats().Drops["in_short"]
		if _, err := o.c.WriteToUDPAddrPort(short, o.peer); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a drop", func() bool { return a.stats().Drops["in_short"] == before+1 })
	}
	// A full stream to it arrives as single datagrams that fit, with right checksums.
	a.pod.run(func() {
		if c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.244.2.2:9"))); err == nil {
			defer c.Close()
			raw, _ := c.SyscallConn()
			_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 1444) })
			_, _ = c.Write(make([]byte, 40*1444+1))
		}
	})
	eventually(t, "41 datagrams", func() bool { return len(o.received()) >= 42 })
	for i, p := range o.received()[1:] {
		if want := 1472; i < 40 && len(p) != want || i == 40 && len(p) != 29 || len(p) > 1472 {
			t.Errorf("datagram %d has %d bytes", i, len(p))
		}
		if slowSum(p[:20]) != 0xffff || slowSum(append(append([]byte(nil), p[12:20]...), append([]byte{0, 17, byte((len(p) - 20) >> 8), byte(len(p) - 20)}, p[20:]...)...)) != 0xffff {
			t.Errorf("datagram %d: checksum", i)
		}
	}
}
