package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/lab"
	"github.com/weftnet/weft/internal/netnstest"
)

// upstream returns the original's flanneld, or skips the test.
func upstream(t *testing.T) string {
	t.Helper()
	path := os.Getenv("WEFT_UPSTREAM_FLANNELD")
	if path == "" {
		t.Skip("SKIPPED: WEFT_UPSTREAM_FLANNELD names no flanneld of the original")
	}
	netnstest.Need(t, "iptables", "iptables") // it runs them
	return path
}

// mixtures are what mixed clusters are tested with.
var mixtures = []struct {
	name, family, backend string
	nftables              bool
	segments              [][]string
	near                  string
}{
	{"vxlan, IPv4, iptables", lab.IPv4, vxlan, false, [][]string{{"A", "B"}, {"C", "D"}}, "vxlan"},
	{"vxlan, dual, nftables", lab.Dual, vxlan, true, [][]string{{"A", "B"}, {"C", "D"}}, "vxlan"},
	{"DirectRouting, dual, nftables", lab.Dual, direct, true, [][]string{{"A", "B"}, {"C", "D"}}, "direct"},
	{"host-gw, dual, iptables", lab.Dual, hostgw, false, [][]string{{"A", "B"}}, "direct"},
}

// TestMixedClusterCarriesTraffic has the original on B and D, ours on A and C: all four pairings, within
// a segment and across the router.
func TestMixedClusterCarriesTraffic(t *testing.T) {
	original := upstream(t)
	for _, m := range mixtures {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			on := map[string]string{"B": original}
			if len(m.segments) > 1 {
				on["D"] = original
			}
			ctx, l := up(t, lab.Options{Segments: m.segments, Family: m.family,
				Config: config(m.family, m.backend, m.nftables), FlanneldOn: on})
			pods := addPods(ctx, t, l)
			awaitRoutes(ctx, t, l)
			pingAll(t, l)
			for _, from := range l.Nodes {
				for _, to := range l.Nodes {
					want := "vxlan"
					if from.Segment() == to.Segment() {
						want = m.near
					}
					if from != to {
						wantOnWire(t, pods[from.Name], pods[to.Name], want)
					}
				}
			}
		})
	}
}

// TestTakeOverAndHandBack replaces the original by ours on one running node after the other, then ours by
// the original, while every pod pings every other one a thousand times a second.
func TestTakeOverAndHandBack(t *testing.T) {
	original := upstream(t)
	for _, m := range mixtures {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			segments := m.segments
			if len(segments) > 1 {
				segments = three()
			}
			ctx, l := up(t, lab.Options{Segments: segments, Family: m.family,
				Config: config(m.family, m.backend, m.nftables), Flanneld: original})
			pods := addPods(ctx, t, l)
			awaitRoutes(ctx, t, l)
			pingAll(t, l)
			leases, err := l.Etcd().Leases(ctx)
			must(t, err)
			ps := probeAll(t, pods)
			for _, binary := range []string{ours(), original} {
				for _, n := range l.Nodes {
					must(t, n.Agent.Stop())
					n.Agent.Binary = binary
					must(t, n.Agent.Start(ctx))
					ps.flowing(t)
				}
				if binary == original {
					continue
				}
				for _, n := range l.Nodes {
					if theirs := sh(ctx, t, n, "ip route show proto boot; ip -6 route show proto boot"); strings.Contains(theirs, "10.244.") || strings.Contains(theirs, "fd24:") {
						t.Errorf("node %s has routes of the original:\n%s", n.Name, theirs)
					}
				}
			}
			ps.wantNoLoss(t)
			after, err := l.Etcd().Leases(ctx)
			must(t, err)
			for key, value := range leases {
				if after[key] != value {
					t.Errorf("lease %s was\n%s and is\n%s", key, value, after[key])
				}
			}
			// A pod that was attached before can still be detached, and others attached.
			for _, p := range pods {
				must(t, p.Delete(ctx))
			}
			addPods(ctx, t, l)
			pingAll(t, l)
		})
	}
}
