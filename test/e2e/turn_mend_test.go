package e2e

import (
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

// TestTurnFromAWayThatNeverCarriedAnything mends a network whose port is blocked from the beginning: nodes have
// never had an answer from each other, and answers to what they send on the new port go to the old one.
func TestTurnFromAWayThatNeverCarriedAnything(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, lab.Options{Segments: three(), Family: lab.Dual, NoAgents: true, Config: config(lab.Dual, vxlan, true)})
	for _, n := range l.Nodes {
		sh(ctx, t, n, "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1; nft 'table inet lab-block { "+
			"chain in { type filter hook input priority 0; udp dport 8472 drop; }; "+
			"chain out { type filter hook output priority 0; udp dport 8472 drop; }; }'")
	}
	must(t, l.EachNode(func(n *lab.Node) error { return n.Agent.Start(ctx) }))
	pods := addPods(ctx, t, l)
	awaitRoutes(ctx, t, l)
	if err := reaches(pods["A"], pods["B"]); err == nil {
		t.Fatal("pods reach each other over a port that is blocked")
	}
	must(t, l.Etcd().PutConfig(ctx, stagePort.config(lab.Dual, true)))
	took := eventually(t, 40*time.Second, "pods reach each other", func() error {
		for _, from := range pods {
			for _, to := range pods {
				if from == to {
					continue
				}
				if err := reaches(from, to); err != nil {
					return err
				}
			}
		}
		return nil
	})
	t.Logf("pods reached each other %v after the change", took.Round(100*time.Millisecond))
}
