package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
	"github.com/weftnet/weft/internal/lab/frame"
)

// grow returns a configuration with another network.
func grow(network, options string) string {
	return fmt.Sprintf(`{"Network":%q,%s"EnableNFTables":true,"Backend":{"Type":"vxlan","DirectRouting":true}}`, network, options)
}

// TestNetworkGrows widens the network under traffic. Nodes keep their leases, a new one gets a subnet of the
// new part, and what cannot be followed is refused while everything goes on.
func TestNetworkGrows(t *testing.T) {
	const wide = "10.244.0.0/15"
	minMax := `"SubnetMin":"10.245.0.0","SubnetMax":"10.245.255.0",`
	ctx, l := upFor(t, 4*time.Minute, lab.Options{Segments: [][]string{{"A", "B"}, {"C", "D"}}, NoAgents: true, Config: grow("10.244.0.0/16", "")})
	old, young := l.Nodes[:3], l.Nodes[3]
	pods := map[string]*lab.Pod{}
	for _, n := range old {
		must(t, n.Agent.Start(ctx))
	}
	for _, n := range old {
		p, err := n.AddPod(ctx, "pod-"+n.Name)
		must(t, err)
		pods[n.Name] = p
	}
	eventually(t, 15*time.Second, "all reach each other", func() error { return allReach(l) })
	leases := subnetsInUse(ctx, t, l)
	ps := probeAll(t, pods)
	must(t, l.Etcd().PutConfig(ctx, grow(wide, minMax)))
	for _, n := range old {
		eventually(t, 10*time.Second, n.Name+" follows", func() error { return hasNetwork(ctx, t, n, wide) })
	}
	for _, n := range old {
		must(t, n.Agent.Restart(ctx))
	}
	must(t, young.Agent.Start(ctx))
	p, err := young.AddPod(ctx, "pod-D")
	must(t, err)
	pods["D"] = p
	awaitRoutes(ctx, t, l)
	pingAll(t, l)
	if half := netip.MustParsePrefix("10.245.0.0/16"); !half.Contains(p.Addr.V4) {
		t.Errorf("the new node's pod has %s, want one of %s", p.Addr.V4, half)
	}
	for key := range leases {
		if now := subnetsInUse(ctx, t, l); !now[key] {
			t.Errorf("lease %s is gone: %v", key, now)
		}
	}
	for _, n := range old {
		wantUnmasqueraded(t, pods[n.Name], p)
		wantUnmasqueraded(t, p, pods[n.Name])
	}
	// What cannot be followed.
	for config, reason := range map[string]string{
		grow("10.244.0.0/16", ""): "Network",
		grow("10.96.0.0/15", ""):  "Network",
		grow(wide, minMax+`"EnableIPv6":true,"IPv6Network":"fd24::/48",`): "EnableIPv6",
	} {
		must(t, l.Etcd().PutConfig(ctx, config))
		for _, n := range l.Nodes {
			eventually(t, 10*time.Second, n.Name+" refuses "+config, func() error {
				status, err := n.Exec(ctx, l.Options.Weft, "status")
				if err == nil && (!strings.Contains(status, "restart") || !strings.Contains(status, reason)) {
					err = errors.New(status)
				}
				return errors.Join(err, hasNetwork(ctx, t, n, wide))
			})
		}
		must(t, l.Etcd().PutConfig(ctx, grow(wide, minMax)))
		for _, n := range l.Nodes {
			eventually(t, 10*time.Second, n.Name+" goes on", func() error {
				status, err := n.Exec(ctx, l.Options.Weft, "status")
				if err == nil && strings.Contains(status, "restart") {
					err = errors.New(status)
				}
				return err
			})
		}
	}
	ps.wantNoLoss(t)
	pingAll(t, l)
}

// allReach says whether all pods reach each other.
func allReach(l *lab.Lab) error {
	pairs, err := l.PingAll(time.Second)
	for _, p := range pairs {
		err = errors.Join(err, p.Err)
	}
	return err
}

// subnetsInUse returns the keys of all leases.
func subnetsInUse(ctx context.Context, t *testing.T, l *lab.Lab) map[string]bool {
	t.Helper()
	leases, err := l.Etcd().Leases(ctx)
	must(t, err)
	keys := map[string]bool{}
	for key := range leases {
		keys[key] = true
	}
	return keys
}

// hasNetwork says whether masquerading and subnet.env of a node go by a network.
func hasNetwork(ctx context.Context, t *testing.T, n *lab.Node, network string) error {
	t.Helper()
	out, err := n.Exec(ctx, "sh", "-c", "cat /run/flannel/subnet.env; nft list table ip flannel-ipv4")
	if err == nil && (!strings.Contains(out, "FLANNEL_NETWORK="+network+"\n") || strings.Count(out, network) < 2 || strings.Contains(out, "10.244.0.0/16")) {
		err = fmt.Errorf("want %s in\n%s", network, out)
	}
	return err
}

// wantUnmasqueraded wants a pod to see another one's own addresses.
func wantUnmasqueraded(t *testing.T, from, to *lab.Pod) {
	t.Helper()
	c, err := lab.StartCapture(to, lab.Uplink, 0)
	must(t, err)
	for _, a := range to.Addrs() {
		_, pingErr := lab.Ping(from, a, patience)
		err = errors.Join(err, pingErr)
	}
	packets, stopErr := c.Stop()
	must(t, errors.Join(err, stopErr))
	for _, a := range from.Addrs() {
		if !slices.ContainsFunc(packets, func(p frame.Packet) bool { return p.Src == a }) {
			t.Errorf("%s does not see %s of %s: %v", to.Name, a, from.Name, packets)
		}
	}
}
