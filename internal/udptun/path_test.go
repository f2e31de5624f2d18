package udptun

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/state"
)

// newRouted makes node 1 and 2 with a router between them, whose second link takes only 1340 bytes.
func newRouted(t *testing.T) (a, b *host) {
	t.Helper()
	r := newSpace(t)
	a, b = &host{space: newSpace(t), n: 1}, &host{space: newSpace(t), n: 2}
	for _, h := range []*host{a, b} {
		dev, mtu := fmt.Sprintf("n%d", h.n), 1500
		if h == b {
			mtu = 1340
		}
		r.ip(fmt.Sprintf("link add %s type veth peer name eth0 netns %s", dev, h.file))
		r.ip(fmt.Sprintf("link set %s up mtu %d", dev, mtu))
		h.ip(fmt.Sprintf("link set eth0 up mtu %d", mtu))
		for _, f := range []struct{ flag, node, router, bits string }{
			{"-4", "10.77.0.%d", "10.77.1.%d", "32"}, {"-6", "fd77::%d", "fd77:0:0:1::%d", "128"},
		} {
			node, router := fmt.Sprintf(f.node, h.n), fmt.Sprintf(f.router, h.n)
			if f.flag == "-6" {
				h.addr6(node+"/"+f.bits, "eth0")
				r.addr6(router+"/"+f.bits, dev)
			} else {
				h.ip("addr add " + node + "/" + f.bits + " dev eth0")
				r.ip("addr add " + router + "/" + f.bits + " dev " + dev)
			}
			r.ip(f.flag + " route add " + node + " dev " + dev)
			h.ip(f.flag + " route add " + router + " dev eth0")
			h.ip(f.flag + " route add default via " + router)
		}
		h.sysctl("net/ipv4/ip_forward", "1")
		h.sysctl("net/ipv6/conf/all/forwarding", "1")
		h.addPod()
	}
	r.sysctl("net/ipv4/ip_forward", "1")
	r.sysctl("net/ipv6/conf/all/forwarding", "1")
	return a, b
}

// Where the path takes less than the own device, senders learn it, fragments are made where that is
// allowed, and nothing larger leaves.
func TestAPathThatTakesLess(t *testing.T) {
	a, b := newRouted(t)
	a.start(state.TunnelOff{}, 1452, 2)
	b.start(state.TunnelOff{}, 1292, 1)
	for to, told := range map[string]string{"10.244.2.0": "mtu = 1312", "fd24:0:0:2::": "mtu"} {
		eventually(t, to+" is too far for 1428 bytes, and the sender is told", func() bool {
			out, err := a.try("ping", "-c4", "-i0.2", "-W1", "-M", "do", "-s", "1400", to)
			t.Log(out)
			return err != nil && (strings.Contains(out, told) || strings.Contains(out, "too"))
		})
	}
	// Without DF the packet is fragmented here, not by the kernel outside.
	if out, err := a.try("ping", "-c3", "-i0.2", "-W10", "-M", "dont", "-s", "1400", "10.244.2.0"); err != nil {
		t.Errorf("to be fragmented: %s", out)
	}
	peers := a.stats().Peers
	if peers[0].MaxPacket != 1312 || peers[1].MaxPacket != 1292 {
		t.Errorf("peers %+v", peers)
	}
	tcp := b.pod.tcpEcho()
	a.pod.transfer(podAddr(2, false), tcp, 2<<20)
	a.pod.transfer(podAddr(2, true), tcp, 2<<20)
	if s := a.stats(); s.Drops["out_refused"] > 0 || s.Drops["out_too_big"] == 0 {
		t.Errorf("drops %v", s.Drops)
	}
}
