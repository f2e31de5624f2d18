package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

const (
	leaveWithin  = 3 * time.Second // from the break of a way until traffic has moved to another one
	returnWithin = 4 * time.Minute // from when it heals
)

// TestTurnToAWayThatBreaks breaks the direct path of a node, and blocks the port of a backend that is changed to.
func TestTurnToAWayThatBreaks(t *testing.T) {
	w := underTraffic(t, 12*time.Minute, stageDirect, true, lab.Options{})
	b := w.Nodes[1]
	moves := w.moves()
	times := 1
	if all() {
		times = 3
	}
	for range times {
		sh(w.ctx, t, b, "nft 'table inet lab-break { "+
			"chain in { type filter hook prerouting priority -300; iifname eth0 ip saddr 10.244.0.0/16 drop; }; "+
			"chain out { type filter hook postrouting priority -300; oifname eth0 ip saddr 10.244.0.0/16 drop; }; }'")
		broken := time.Now() // at the latest
		w.leases.note("direct path of B breaks")
		took := w.await(20*time.Second, "B's neighbours take the other way", func() error { return w.reaches(w.Nodes[0], b, "vxlan/1/8472") })
		t.Logf("A's kernel took the other way to B after %v", took.Round(time.Millisecond))
		rest(w.ctx, leaveWithin)
		busy := w.agents.between(broken, broken.Add(leaveWithin))
		t.Logf("agents waited %v for processors meanwhile", busy.Round(time.Millisecond))
		w.verdict("a direct path breaks", func(g lab.Gap) bool {
			return w.near(g, "pod-B") && g.End.Before(broken.Add(leaveWithin+busy))
		})
		if status := sh(w.ctx, t, w.Nodes[0], w.Options.Weft+" status"); !strings.Contains(status, "host-gw: no answer") {
			t.Errorf("weft status does not say why A does not reach B directly:\n%s", status)
		}
		sh(w.ctx, t, b, "nft delete table inet lab-break")
		w.leases.note("direct path of B heals")
		took = w.await(returnWithin, "all take the direct path again", func() error {
			return w.EachNode(func(n *lab.Node) error { return w.onNode(n, stageDirect, w.keys) })
		})
		t.Logf("all took the direct path again after %v", took.Round(time.Millisecond))
		w.verdict("a direct path heals", nil)
	}
	if got := w.moves() - moves; got != 8*times { // A and C to B, and B to both, forth and back
		t.Errorf("peers were moved %d times to another way, want %d", got, 8*times)
	}
	w.blocked(stageUDP, 8285)
	if all() {
		w.blocked(stagePort, 4789)
	}
}

// near says whether a gap is between a pod and others of its segment.
func (w *turning) near(g lab.Gap, pod string) bool {
	segment := func(name string) string {
		n, err := w.Node(strings.TrimPrefix(name, "pod-"))
		must(w.t, err)
		return n.Segment()
	}
	return (g.From == pod || g.To == pod) && segment(g.From) == segment(g.To)
}

// blocked makes a change to a backend whose port the router blocks: nodes of other segments stay on what they
// have, and say why, until the port is free.
func (w *turning) blocked(to stage, port int) {
	w.t.Helper()
	old := w.tunnel
	_, err := w.Exec(w.ctx, "nft", fmt.Sprintf("table inet lab-break { chain f { type filter hook forward priority 0; udp dport %d drop; }; }", port))
	must(w.t, err)
	w.put(to)
	w.await(letGo, to.name+" within segments", func() error {
		return w.EachNode(func(n *lab.Node) error {
			for _, peer := range w.Nodes {
				key := old
				if peer.Segment() == n.Segment() {
					key = to.tunnel()
				}
				if err := w.reaches(n, peer, key); peer != n && err != nil {
					return err
				}
			}
			return nil
		})
	})
	rest(w.ctx, 12*time.Second) // longer than a key is held that reaches nobody
	status := sh(w.ctx, w.t, w.Nodes[0], w.Options.Weft+" status")
	if !strings.Contains(status, to.tunnel()+": no answer") {
		w.t.Errorf("%s: weft status does not say why A does not use it to reach D:\n%s", to.name, status)
	}
	w.verdict(to.name+" with the port blocked", nil)
	_, err = w.Exec(w.ctx, "nft", "delete", "table", "inet", "lab-break")
	must(w.t, err)
	began := time.Now()
	w.await(returnWithin, to.name+" is used by all", func() error { return w.publish(to.keys) })
	w.t.Logf("%s: used by all %v after the port was freed", to.name, time.Since(began).Round(100*time.Millisecond))
	w.heard = nil
	w.settled(to)
	w.verdict(to.name+" after the port is free", nil)
}

// reaches says whether a node reaches the pods of another one by a key.
func (w *turning) reaches(from, to *lab.Node, key string) error {
	devices, err := w.devices(from)
	if err != nil {
		return err
	}
	for _, a := range w.pods[to.Name].Addrs() {
		out, err := from.Exec(w.ctx, "ip", "route", "get", a.String())
		if err != nil {
			return err
		}
		got := devices[after(out, "dev")]
		if after(out, "dev") == lab.Uplink {
			got = "host-gw"
		}
		if got != key {
			return fmt.Errorf("%s reaches %s by %q, want %s: %s", from.Name, a, got, key, out)
		}
	}
	return nil
}

// moved is how agents tell that peers are reached by another way.
var moved = regexp.MustCompile(`msg="peers are reached by another way" .*peers=(\d+)`)

// moves counts how often peers have been moved from one way to another, on all nodes.
func (w *turning) moves() int {
	sum := 0
	for _, n := range w.Nodes {
		for _, m := range moved.FindAllStringSubmatch(n.Agent.Log(), -1) {
			peers, err := strconv.Atoi(m[1])
			must(w.t, err)
			sum += peers
		}
	}
	return sum
}
