package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

// TestTurnWithRebootsHalfWay changes the backend, and two nodes lose their power in the middle of it: C, which has seen the
// change, and E, which sees it as it comes up. What of the old way they do not make again their peers cannot use.
func TestTurnWithRebootsHalfWay(t *testing.T) {
	w := underTraffic(t, 8*time.Minute, stageVXLAN, true, lab.Options{})
	stages := []stage{stageUDP}
	if all() {
		stages = []stage{stageUDP, stageHostGW, stagePort}
	}
	for i, s := range stages {
		w.rebooted(s, i)
	}
}

// rebooted makes a change during which C and E are switched off and on; their pods are new ones then.
func (w *turning) rebooted(to stage, round int) {
	w.t.Helper()
	b, c, e := w.Nodes[1], w.Nodes[2], w.Nodes[4] // no transfer ends on the last two
	w.hold(to)
	for _, n := range []*lab.Node{b, c} {
		must(w.t, w.release(n))
	}
	w.await(20*time.Second, "C receives on both ways", func() error {
		l := w.leases.now()[c.Addr().V4.String()]
		for _, k := range []string{w.tunnel, to.tunnel()} {
			if k != "host-gw" && !slices.Contains(l.receive, k) {
				return fmt.Errorf("it receives on %v, and not on %s", l.receive, k)
			}
		}
		return nil
	})
	for _, n := range []*lab.Node{c, e} {
		must(w.t, n.Reboot())
		w.leases.note(n.Name + " is switched off and on")
		sh(w.ctx, w.t, n, "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1")
		must(w.t, n.Agent.Start(w.ctx))
		pod, err := n.AddPod(w.ctx, fmt.Sprintf("pod-%s-%d", n.Name, round))
		must(w.t, err)
		w.pods[n.Name] = pod
	}
	// A, D and F have not seen the change yet, and need what they reach the two nodes by.
	w.await(5*time.Second, "new pods of C and E reach all others, and these reach them", func() error {
		for _, from := range w.Nodes {
			for _, to := range w.Nodes {
				if from == to || from != c && from != e && to != c && to != e {
					continue
				}
				if err := reaches(w.pods[from.Name], w.pods[to.Name]); err != nil {
					return fmt.Errorf("%s to %s: %w", from.Name, to.Name, err)
				}
			}
		}
		return nil
	})
	for _, n := range w.Nodes {
		must(w.t, w.release(n))
	}
	w.heard = nil
	w.settled(to)
	w.await(5*time.Second, "all pods reach each other", func() error { return allReach(w.Lab) })
	w.verdict(fmt.Sprintf("%s while C and E are switched off and on", to.name), func(g lab.Gap) bool {
		return slices.ContainsFunc([]string{g.From, g.To}, func(pod string) bool { return pod == "pod-C" || pod == "pod-E" })
	})
}
