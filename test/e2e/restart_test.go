package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/lab"
)

// TestRestartsLoseNoPacket restarts and kills every agent in turn while every pod pings every other one
// a thousand times a second. The kernel's state must be untouched as well.
func TestRestartsLoseNoPacket(t *testing.T) {
	for _, c := range []struct {
		name, family, backend string
		nftables              bool
		segments              [][]string
	}{
		{"vxlan, dual", lab.Dual, vxlan, true, three()},
		{"DirectRouting, dual, iptables", lab.Dual, direct, false, three()},
		{"DirectRouting, IPv6", lab.IPv6, direct, true, three()},
		{"host-gw, dual", lab.Dual, hostgw, true, [][]string{{"A", "B"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, l := up(t, lab.Options{Segments: c.segments, Family: c.family, Config: config(c.family, c.backend, c.nftables)})
			pods := addPods(ctx, t, l)
			awaitRoutes(ctx, t, l)
			before := map[string]string{}
			for _, n := range l.Nodes {
				before[n.Name] = kernelState(ctx, t, n)
			}
			ps := probeAll(t, pods)
			for _, n := range l.Nodes {
				must(t, n.Agent.Restart(ctx))
				ps.flowing(t)
				must(t, n.Agent.Kill())
				ps.flowing(t)
				must(t, n.Agent.Start(ctx))
				ps.flowing(t)
			}
			ps.wantNoLoss(t)
			for _, n := range l.Nodes {
				if after := kernelState(ctx, t, n); after != before[n.Name] {
					t.Errorf("node %s is not as it was: %s", n.Name, lineDiff(before[n.Name], after))
				}
				if writes := kernelWrites(n, t); writes != "0" {
					t.Errorf("node %s: the last agent wrote %s objects, want 0: nothing had changed", n.Name, writes)
				}
			}
		})
	}
}

// kernelWrites returns how many objects the running agent has written to the kernel.
func kernelWrites(n *lab.Node, t *testing.T) string {
	t.Helper()
	_, body, err := n.Agent.Get(t.Context(), "/metrics")
	must(t, err)
	sum := 0.0
	for line := range strings.Lines(body) {
		var v float64
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.HasPrefix(name, "weft_kernel_writes_total") {
			if _, err := fmt.Sscan(value, &v); err != nil {
				t.Fatalf("metric %q: %v", line, err)
			}
			sum += v
		}
	}
	return fmt.Sprint(sum)
}
