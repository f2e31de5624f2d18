package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

// TestTurnAmongNodesThatNeverAnswered changes the port of nodes that have never had an answer from each other: since it
// was blocked from the beginning, so that answers to what they send on the new one go to the old one, or since their
// kernels answer no echoes.
func TestTurnAmongNodesThatNeverAnswered(t *testing.T) {
	const block = "nft 'table inet lab-block { chain in { type filter hook input priority 0; udp dport 8472 drop; ct state invalid drop; }; " +
		"chain out { type filter hook output priority 0; udp dport 8472 drop; ct state invalid drop; }; }'; "
	const ignore = "sysctl -qw net.ipv4.icmp_echo_ignore_all=1 net.ipv6.icmp.echo_ignore_all=1; "
	for name, script := range map[string]string{"blocked": block, "no echoes": ignore, "neither": block + ignore} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, l := up(t, lab.Options{Segments: three(), Family: lab.Dual, NoAgents: true, Config: config(lab.Dual, vxlan, true)})
			for _, n := range l.Nodes {
				sh(ctx, t, n, "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1")
			}
			must(t, l.EachNode(func(n *lab.Node) error { return n.Agent.Start(ctx) }))
			pods := addPods(ctx, t, l)
			for _, n := range l.Nodes {
				sh(ctx, t, n, script)
			}
			awaitRoutes(ctx, t, l)
			if err := reaches(pods["A"], pods["B"]); err == nil && strings.Contains(script, "drop") {
				t.Fatal("pods reach each other over a port that is blocked")
			}
			w := &turning{Lab: l, t: t, ctx: ctx, pods: pods}
			must(t, l.Etcd().PutConfig(ctx, stagePort.config(lab.Dual, true)))
			took := eventually(t, 40*time.Second, "pods reach each other on the new port", func() error {
				for _, from := range l.Nodes {
					for _, to := range l.Nodes {
						if from == to {
							continue
						}
						if err := w.reaches(from, to, "vxlan/1/4789"); err != nil {
							return err
						}
						if err := reaches(pods[from.Name], pods[to.Name]); err != nil {
							return fmt.Errorf("%s to %s: %w", from.Name, to.Name, err)
						}
					}
				}
				return nil
			})
			t.Logf("pods reached each other %v after the change", took.Round(100*time.Millisecond))
		})
	}
}
