package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

const patience = time.Minute // for a busy machine; what matters is logged

func TestBreakAndHeal(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family.Family) {
		w, list := newWorld(t), both(f)
		if n := w.rawSockets(); n != 0 {
			t.Errorf("%d sockets without targets", n)
		}
		w.Set(list)
		w.await(patience, list, Good, Good)

		w.node[1].nft("table inet t { chain in { type filter hook input priority 0; iifname w1 meta l4proto { icmp, icmpv6 } drop; }; }")
		t.Logf("drop: dead after %v", w.await(patience, list, Good, Dead))
		w.node[1].nft("delete table inet t")
		t.Logf("no drop: good after %v", w.await(patience, list, Good, Good))

		w.node[1].ip("link set w1 down") // the other end loses its carrier
		t.Logf("down: dead after %v: %s", w.await(patience, list, Good, Dead), w.Health()[list[1].ID].Err)
		w.node[1].ip("link set w1 up")
		if f == family.V6 { // IPv6 addresses and routes go with the link
			w.node[1].ip("addr add fd77:1::2/64 dev w1 nodad")
		}
		t.Logf("up: good after %v", w.await(patience, list, Good, Good))

		w.Set(nil)
		w.eventually("no sockets without targets", func() bool { return w.rawSockets() == 0 })
	})
}

func TestWayOfTheAnswersBreaks(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family.Family) {
		w, list := newWorld(t), both(f)
		w.Set(list)
		w.await(patience, list, Good, Good)
		w.node[1].nft("table inet t { chain out { type filter hook output priority 0; oifname w0 meta l4proto { icmp, icmpv6 } drop; }; }")
		w.await(patience, list, Dead, Dead)
		if h := w.Health(); h[list[0].ID].Try || !h[list[1].ID].Try {
			t.Errorf("on trial should be the last: %+v", h)
		}
		if f == family.V6 { // the peer, which has the same trouble, takes the other way
			w.node[1].ip("-6 route replace fd24:0:0:1::/64 via fd77:1::1 dev w1 metric 10")
		} else {
			w.node[1].ip("route add 10.244.1.0/24 via 10.77.1.1 dev w1")
		}
		w.await(patience, list, Good, Good) // our direction of the first way is in order
		if h := w.Health(); h[list[0].ID].Try || h[list[1].ID].Try {
			t.Errorf("still on trial: %+v", h)
		}
	})
}

func TestDeviceIsMadeAnew(t *testing.T) {
	w, list := newWorld(t), both(family.V4)
	w.Set(list)
	w.await(patience, list, Good, Good)
	w.node[0].ip("link del w1")
	w.await(patience, list, Good, Dead)
	if h := w.Health()[list[1].ID]; !strings.Contains(h.Err, "w1: no such device") {
		t.Errorf("%q", h.Err)
	}
	w.cable(1)
	w.await(patience, list, Good, Good)
}

func TestNarrowWays(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family.Family) {
		w, list := newWorld(t), both(f)
		w.node[1].ip("link set w1 mtu 1400") // drops what is larger, and tells nobody
		w.node[0].ip("link set w0 mtu 1450")
		w.Set(list)
		w.await(patience, list, Dead, Dead)
		for i, want := range []string{"w0 does not take packets of 1500 bytes", "packets of 1500 bytes do not come through, small ones do"} {
			w.eventually(want, func() bool { return w.Health()[list[i].ID].Err == want })
		}
		list[0].Size, list[1].Size = 1450, 1400
		w.Set(list)
		w.await(patience, list, Good, Good)
	})
}

// A peer with a bridge in its subnet has the address as the subnet-router anycast address as well.
func TestAnycastPeer(t *testing.T) {
	w, list := newWorld(t), both(family.V6)
	peer := w.node[1]
	peer.sysctl("net/ipv6/conf/all/forwarding", "1")
	peer.ip("addr del fd24:0:0:2::/128 dev lo")
	peer.ip("link add cni0 type veth peer name pod")
	peer.ip("link set cni0 up")
	peer.ip("link set pod up")
	peer.ip("addr add fd24:0:0:2::1/64 dev cni0 nodad")
	peer.ip("addr add fd24:0:0:2::/128 dev lo nodad")
	w.Set(list)
	w.await(patience, list, Good, Good)
}

func TestForgedAnswers(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family.Family) {
		w, list := newWorld(t), both(f)
		w.node[1].nft("table inet t { chain in { type filter hook input priority 0; icmp type echo-request drop; icmpv6 type echo-request drop; }; }")
		w.Set(list[:1])
		w.eventually("a probe", func() bool { return w.Stats().Sent > 0 })
		w.node[1].run(func() {
			send := forger(t, list[0], false)
			for seq := range uint16(300) {
				send(w.id, seq)
				send(w.id+1, seq)
			}
		})
		w.await(patience, list, Dead)
		if s := w.Stats(); s.Answered != 0 || s.Ignored == 0 || s.Ignored > 300 {
			t.Errorf("%+v: the answers to another identifier should not even arrive", s)
		}
	})
}

// A receiver that waits for the lock with an answer must not be waited for under the lock.
func TestClosingWhileAnswersArrive(t *testing.T) {
	w, list := newWorld(t), both(family.V4)
	ctx, cancel := context.WithCancel(t.Context())
	flooded := make(chan struct{})
	go func() {
		defer close(flooded)
		w.node[1].run(func() {
			send := forger(t, list[0], false)
			for seq := uint16(0); ctx.Err() == nil; seq++ {
				send(w.id, seq)
			}
		})
	}()
	for range 50 {
		w.Set(list[:1])
		w.eventually("a socket", func() bool { return w.rawSockets() == 2 })
		ignored := w.Stats().Ignored
		w.eventually("answers", func() bool { return w.Stats().Ignored > ignored })
		w.Set(nil)
		w.eventually("no socket", func() bool { return w.rawSockets() == 0 })
	}
	cancel()
	<-flooded
}

// Two nodes whose way in use is dead find the other one, over which their kernels do not answer before it is in use.
func TestAgentsAnswerEachOther(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family.Family) {
		w, list := newWorld(t), both(f)
		w.node[1].nft("table inet t { chain in { type filter hook input priority 0; iifname w0 meta l4proto { icmp, icmpv6 } drop; }; " +
			"chain out { type filter hook output priority 0; oifname w0 meta l4proto { icmp, icmpv6 } drop; }; }")
		w.Set(list)
		w.await(patience, list, Dead, Dead)
		peer, back := w.other(), both(f)
		for i := range back {
			back[i].Src, back[i].Dst = list[i].Dst, list[i].Src
			back[i].Subnet = netip.PrefixFrom(list[i].Src, list[i].Subnet.Bits())
		}
		peer.Set(back)
		ends := []struct {
			w    *world
			way  ID
			took bool // the way, as agents do
		}{{w, list[1].ID, false}, {peer, back[1].ID, false}}
		start := time.Now()
		w.eventually("each node has an answer from the other's kernel", func() bool {
			answered := 0
			for i := range ends {
				e := &ends[i]
				h := e.w.Health()[e.way]
				if h.Verdict == Good && !h.Called {
					answered++
				}
				if e.took || h.Verdict != Good {
					continue
				}
				e.took = true
				t.Logf("node %d has found it after %v", i+1, time.Since(start))
				if f == family.V6 {
					e.w.node[0].ip("-6 route replace %s via fd77:1::%d dev w1 metric 10", e.way.Subnet, 2-i)
				} else {
					e.w.node[0].ip("route add %s via 10.77.1.%d dev w1", e.way.Subnet, 2-i)
				}
			}
			return answered == len(ends)
		})
	})
}

func TestCallsWakeNobodyWithoutNeed(t *testing.T) {
	eachFamily(t, func(t *testing.T, f family.Family) {
		w, list := newWorld(t), both(f)
		w.Set(list)
		w.await(patience, list, Good, Good)
		w.node[1].run(func() {
			ask, reply := forger(t, list[0], true), forger(t, list[0], false)
			for seq := range uint16(300) {
				ask(callID, seq)
			}
			reply(w.id, 0)
		})
		w.eventually("the last one", func() bool { return w.Stats().Ignored > 0 })
		if s := w.Stats(); s.Ignored != 1 {
			t.Errorf("%+v: calls should not even arrive", s)
		}
	})
}

// forger returns a function that sends answers to probes of way, as a peer would; of those that belong to
// nothing. Or it sends calls.
func forger(t *testing.T, way Target, calls bool) func(id, seq uint16) {
	domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
	request, reply := types(way.Dst.Is6())
	if calls {
		reply = request
	}
	var to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{10, 244, 1, 0}}
	var from unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{10, 244, 2, 0}}
	if way.Dst.Is6() {
		domain, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
		to = &unix.SockaddrInet6{Addr: way.Src.As16()}
		from = &unix.SockaddrInet6{Addr: way.Dst.As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		t.Error(err)
		return func(uint16, uint16) {}
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, from); err != nil {
		t.Error(err)
	}
	return func(id, seq uint16) {
		if err := unix.Sendto(fd, forged(reply, id, seq), 0, to); err != nil {
			t.Error(err)
		}
	}
}

func forged(reply byte, id, seq uint16) []byte {
	b := make([]byte, 1480)
	encode(b, false, ordinary, id, seq, uint64(seq))
	b[0], b[2], b[3] = reply, 0, 0
	binary.BigEndian.PutUint16(b[2:], checksum(b[:lenICMP+lenCookie]))
	return b
}

func TestWithoutTheRight(t *testing.T) {
	s := newSpace(t)
	s.run(func() { // capabilities belong to the thread, which goes with the test
		var none [2]unix.CapUserData
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Error(err)
		}
		for _, v6 := range []bool{false, true} {
			if s, err := openSocket(v6, 1); s != nil || !errors.Is(err, unix.EPERM) {
				t.Errorf("%v, %v", s, err)
			}
		}
	})
}

func TestManyTargets(t *testing.T) {
	const n = 2000
	w := newWorld(t)
	w.node[1].ip("route add local 10.64.0.0/13 dev lo")
	for k := range 2 {
		w.node[0].ip("route add 10.64.0.0/13 via 10.77.%d.2 dev w%d metric %d", k, k, 1+k)
	}
	list := make([]Target, n)
	for i := range list {
		list[i] = target(i/2, fmt.Sprint("w", i%2))
		list[i].Dev = string(list[i].Key)
	}
	start := time.Now()
	w.Set(list)
	want := make([]Verdict, n)
	for i := range want {
		want[i] = Good
	}
	w.await(3*patience, list, want...)
	s, d := w.Stats(), time.Since(start)
	t.Logf("%d targets are good after %v: %+v", n, d, s)
	if most := uint64(perSecond * (d.Seconds() + 1)); s.Sent > most {
		t.Errorf("%d sent, more than %d", s.Sent, most)
	}
}
