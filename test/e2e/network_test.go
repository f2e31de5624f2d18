package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

// A cluster of two ranges, of which the first has room for two nodes.
const (
	firstRange, otherRange   = "10.244.0.0/16", "10.248.0.0/16"
	firstRange6, otherRange6 = "fd24::/48", "fd42::/48"
)

// ranges returns a configuration with these networks, others in quotes, of both families.
func ranges(v4, others4, v6, others6, options, backend string) string {
	return fmt.Sprintf(`{"Network":%q,"AdditionalNetworks":[%s],"EnableIPv6":true,"IPv6Network":%q,"IPv6AdditionalNetworks":[%s],%s"EnableNFTables":true,"Backend":%s}`,
		v4, others4, v6, others6, options, backend)
}

// TestSecondNetwork gives a cluster that has used up its network another one, under traffic: nodes that found no
// room get a subnet of it, and nobody else notices. Nobody notices either when the two change places. What would
// take a range away is refused.
func TestSecondNetwork(t *testing.T) {
	for name, backend := range map[string]string{"vxlan": direct, "udp": udp} {
		t.Run(name, func(t *testing.T) { secondNetwork(t, backend) })
	}
}

func secondNetwork(t *testing.T, backend string) {
	const room = `"SubnetMin":"10.244.1.0","SubnetMax":"10.244.2.0","IPv6SubnetMin":"fd24:0:0:1::","IPv6SubnetMax":"fd24:0:0:2::",`
	quote := func(s string) string { return `"` + s + `"` }
	full := ranges(firstRange, "", firstRange6, "", room, backend)
	two := ranges(firstRange, quote(otherRange), firstRange6, quote(otherRange6), room, backend)
	turned := ranges(otherRange, quote(firstRange), otherRange6, quote(firstRange6), "", backend)
	ctx, l := upFor(t, 4*time.Minute, lab.Options{Segments: [][]string{{"A", "B"}, {"C", "D"}}, Family: lab.Dual, NoAgents: true, Config: full})
	old, young := l.Nodes[:2], l.Nodes[2:]
	pods := map[string]*lab.Pod{}
	add := func(nodes []*lab.Node) {
		for _, n := range nodes {
			p, err := n.AddPod(ctx, "pod-"+n.Name)
			must(t, err)
			pods[n.Name] = p
		}
	}
	for _, n := range old {
		must(t, n.Agent.Start(ctx))
	}
	add(old)
	eventually(t, 15*time.Second, "all reach each other", func() error { return allReach(l) })
	leases := subnetsInUse(ctx, t, l)
	every := time.Millisecond
	if backend == udp { // two CPUs cannot carry all that through four processes
		every = 20 * time.Millisecond
	}
	first := probeEvery(t, pods, every)
	must(t, young[0].Agent.Launch())
	eventually(t, 15*time.Second, "there is no room for C", func() error {
		if err := young[0].Agent.Ready(ctx); err == nil || !strings.Contains(err.Error(), "network is full") {
			return fmt.Errorf("ready, or for another reason not: %w", err)
		}
		return nil
	})

	must(t, l.Etcd().PutConfig(ctx, two))
	must(t, young[0].Agent.WaitReady(ctx)) // it has waited for this
	must(t, young[1].Agent.Start(ctx))
	for _, n := range l.Nodes {
		eventually(t, 10*time.Second, n.Name+" follows", func() error { return hasRanges(ctx, n, firstRange, otherRange) })
	}
	add(young)
	eventually(t, 15*time.Second, "all reach each other, old and new", func() error { return allReach(l) })
	for _, n := range young {
		for _, a := range pods[n.Name].Addrs() {
			if !netip.MustParsePrefix(otherRange).Contains(a) && !netip.MustParsePrefix(otherRange6).Contains(a) {
				t.Errorf("the pod of %s has %s", n.Name, a)
			}
		}
	}
	for _, from := range pods {
		for _, to := range pods {
			if from != to {
				wantUnmasqueraded(t, from, to)
			}
		}
	}
	all := probeEvery(t, pods, every)
	for _, n := range l.Nodes {
		if backend != udp { // which stands still meanwhile
			must(t, n.Agent.Restart(ctx))
		}
	}

	must(t, l.Etcd().PutConfig(ctx, turned))
	for _, n := range l.Nodes {
		eventually(t, 10*time.Second, n.Name+" follows again", func() error { return hasRanges(ctx, n, otherRange, firstRange) })
	}
	must(t, l.Etcd().PutConfig(ctx, ranges(otherRange, "", otherRange6, quote(firstRange6), "", backend)))
	for _, n := range l.Nodes {
		eventually(t, 10*time.Second, n.Name+" gives up no range", func() error {
			status, err := n.Exec(ctx, l.Options.Weft, "status")
			if err == nil && !strings.Contains(status, "does not hold all of "+firstRange) {
				err = errors.New(status)
			}
			return errors.Join(err, hasRanges(ctx, n, otherRange, firstRange))
		})
	}
	for key := range leases {
		if now := subnetsInUse(ctx, t, l); !now[key] || len(now) != len(l.Nodes) {
			t.Errorf("there was lease %s, there are %v", key, now)
		}
	}
	first.wantNoLoss(t)
	all.wantNoLoss(t)
	pingAll(t, l)
}

// hasRanges says whether subnet.env and the rules of a node go by these IPv4 ranges, in this order.
func hasRanges(ctx context.Context, n *lab.Node, first, second string) error {
	out, err := n.Exec(ctx, "sh", "-c", "cat /run/flannel/subnet.env; nft list table ip flannel-ipv4")
	if err != nil {
		return err
	}
	for _, want := range []string{"FLANNEL_NETWORK=" + first + "," + second + "\n", "ip saddr != " + first, "ip saddr != " + second, "ip saddr " + first + " accept", "ip saddr " + second + " accept"} {
		if !strings.Contains(out, want) {
			return fmt.Errorf("want %q in\n%s", want, out)
		}
	}
	return nil
}
