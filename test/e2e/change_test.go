package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

// TestChurnWhileTheAgentIsDown has A's agent miss a peer that leaves, one that joins, and one that gets
// another MAC.
func TestChurnWhileTheAgentIsDown(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, lab.Options{Segments: three(), Family: lab.Dual, Config: config(lab.Dual, vxlan, true)})
	pods := addPods(ctx, t, l)
	awaitRoutes(ctx, t, l)
	a, b, c := l.Nodes[0], l.Nodes[1], l.Nodes[2]
	oldMAC := sh(ctx, t, c, "cat /sys/class/net/flannel.1/address")
	gone := netip.PrefixFrom(pods["B"].Addr.V4, 24).Masked()
	must(t, a.Agent.Stop())

	must(t, b.Agent.Stop())
	leases, err := l.Etcd().Leases(ctx)
	must(t, err)
	for key := range leases {
		if strings.HasPrefix(key, "subnets/"+gone.Addr().String()+"-") {
			must(t, l.Etcd().Delete(ctx, key))
		}
	}
	putPeer(ctx, t, l, 34)
	must(t, c.Agent.Stop())
	sh(ctx, t, c, "ip link set flannel.1 address 02:00:00:00:0c:0c")
	must(t, c.Agent.Start(ctx))
	newMAC := sh(ctx, t, c, "cat /sys/class/net/flannel.1/address")

	must(t, a.Agent.Start(ctx))
	eventually(t, 10*time.Second, "A's state", func() error {
		state, err := kernelStateOf(ctx, a)
		if err != nil {
			return err
		}
		if strings.Contains(state, gone.String()) {
			return fmt.Errorf("the departed peer %s is still there", gone)
		}
		if newMAC != oldMAC && strings.Contains(state, oldMAC) {
			return fmt.Errorf("C's old MAC %s is still there", oldMAC)
		}
		return hasPeer(ctx, a, 34)
	})
	eventually(t, 5*time.Second, "C's new MAC is followed", func() error { return reaches(pods["A"], pods["C"]) })
	must(t, b.Agent.Start(ctx))
	awaitRoutes(ctx, t, l)
	t.Logf("C's MAC was %s and is %s", oldMAC, newMAC)
}

// TestOwnLeaseIsLost deletes a node's lease under it: it gets another one, with the agent running.
func TestOwnLeaseIsLost(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, lab.Options{Segments: three(), Config: config(lab.IPv4, direct, true)})
	pods := addPods(ctx, t, l)
	awaitRoutes(ctx, t, l)
	pids := agentPIDs(l)
	before, err := l.Etcd().Leases(ctx)
	must(t, err)
	ps := probeAll(t, pods)
	own := netip.PrefixFrom(pods["A"].Addr.V4, 24).Masked()
	key := "subnets/" + own.Addr().String() + "-24"
	agents, deleted := follow(t, l.Nodes...), time.Now()
	must(t, l.Etcd().Delete(ctx, key))
	took := eventually(t, 10*time.Second, "the lease", func() error {
		now, err := l.Etcd().Leases(ctx)
		if err == nil && now[key] != before[key] {
			err = fmt.Errorf("leases %v, want %s as before: its pods have addresses of it", now, key)
		}
		return err
	})
	t.Logf("the lease was back after %v", took.Round(time.Millisecond))
	awaitRoutes(ctx, t, l)
	ps.flowing(t)
	busy := agents.between(deleted, deleted.Add(repairLimit))
	for name, loss := range ps.stop() {
		if loss.Longest > repairLimit+busy {
			t.Errorf("%s: %v, and agents waited %v for processors", name, loss, busy)
		}
	}
	if now := agentPIDs(l); now != pids {
		t.Errorf("agents were restarted: processes %v, then %v", pids, now)
	}
}

// TestOwnLeaseIsOverwritten puts junk, and attributes of another device, under a node's own key.
func TestOwnLeaseIsOverwritten(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, lab.Options{Segments: three(), Config: config(lab.IPv4, direct, true)})
	pods := addPods(ctx, t, l)
	awaitRoutes(ctx, t, l)
	own := netip.PrefixFrom(pods["A"].Addr.V4, 24).Masked()
	key := "subnets/" + own.Addr().String() + "-24"
	before, err := l.Etcd().Leases(ctx)
	must(t, err)
	for _, value := range []string{"{", lease(l.Nodes[0].Addr().V4.String(), someMAC, someMAC)} {
		must(t, l.Etcd().Put(ctx, key, value))
		took := eventually(t, 40*time.Second, "the lease", func() error {
			now, err := l.Etcd().Leases(ctx)
			if err == nil && now[key] != before[key] {
				err = fmt.Errorf("%s is %s", key, now[key])
			}
			return err
		})
		t.Logf("%.12s... was put right after %v", value, took.Round(time.Millisecond))
	}
	eventually(t, 5*time.Second, "pods", func() error { return reaches(pods["B"], pods["A"]) })
	pingAll(t, l)
}

// TestNodesStartAtOnce starts nodes together in a network with hardly more subnets than nodes.
func TestNodesStartAtOnce(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, lab.Options{
		Segments: [][]string{{"A", "B", "C", "D", "E", "F"}}, NoAgents: true,
		Config: `{"Network":"10.244.0.0/21","SubnetLen":24,"EnableNFTables":true,"Backend":{"Type":"vxlan"}}`, // seven subnets
	})
	must(t, l.EachNode(func(n *lab.Node) error { return n.Agent.Start(ctx) }))
	leases, err := l.Etcd().Leases(ctx)
	must(t, err)
	if len(leases) != len(l.Nodes) {
		t.Errorf("%d leases, want %d: %v", len(leases), len(l.Nodes), leases)
	}
	addPods(ctx, t, l)
	awaitRoutes(ctx, t, l)
	pingAll(t, l)
}

// TestSecondNodeWithOurAddressIsRefused gives B the address of A while both are up.
func TestSecondNodeWithOurAddressIsRefused(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, lab.Options{Segments: [][]string{{"A", "B"}, {"C"}}, Config: config(lab.IPv4, vxlan, true)})
	awaitRoutes(ctx, t, l)
	before, err := l.Etcd().Leases(ctx)
	must(t, err)
	b := l.Nodes[1]
	must(t, b.Agent.Stop())
	b.Agent.Args = append(b.Agent.Args, "--iface=eth0", "--public-ip="+l.Nodes[0].Addr().V4.String())
	must(t, b.Agent.Launch())
	eventually(t, 15*time.Second, "a plain refusal", func() error {
		if log := b.Agent.Log(); !strings.Contains(log, "another live node") {
			return errors.New("not in the log")
		}
		return nil
	})
	after, err := l.Etcd().Leases(ctx)
	must(t, err)
	for key, value := range before {
		if strings.Contains(value, l.Nodes[0].Addr().V4.String()) && after[key] != value {
			t.Errorf("A's lease %s was %s and is %s", key, value, after[key])
		}
	}
}

// TestNodeIsRenumbered gives a running node another underlay address.
func TestNodeIsRenumbered(t *testing.T) {
	for _, backend := range []string{vxlan, direct, hostgw} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			segments := three()
			if backend == hostgw {
				segments = [][]string{{"A", "B"}}
			}
			ctx, l := up(t, lab.Options{Segments: segments, Family: lab.Dual, Config: config(lab.Dual, backend, true)})
			pods := addPods(ctx, t, l)
			awaitRoutes(ctx, t, l)
			pids := agentPIDs(l)
			must(t, l.Nodes[0].Renumber(99))
			for _, n := range l.Nodes[1:] {
				took := eventually(t, 15*time.Second, n.Name+" follows", func() error {
					return errors.Join(reaches(pods["A"], pods[n.Name]), reaches(pods[n.Name], pods["A"]))
				})
				t.Logf("%s and A's pods reached each other again after %v", n.Name, took.Round(time.Millisecond))
			}
			pingAll(t, l)
			if now := agentPIDs(l); now != pids {
				t.Errorf("agents were restarted: processes %v, then %v", pids, now)
			}
		})
	}
}

// TestMTUChangeIsFollowed lowers and raises the uplink's MTU.
func TestMTUChangeIsFollowed(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, lab.Options{Segments: three(), Family: lab.Dual, Config: config(lab.Dual, direct, true)})
	a := l.Nodes[0]
	for _, mtu := range []int{1400, 1500} {
		sh(ctx, t, a, fmt.Sprintf("ip link set eth0 mtu %d", mtu))
		took := eventually(t, 5*time.Second, "device and subnet.env", func() error {
			out, err := a.Exec(ctx, "sh", "-c", "cat /sys/class/net/flannel.1/mtu /sys/class/net/flannel-v6.1/mtu; grep MTU /run/flannel/subnet.env")
			want := fmt.Sprintf("%d\n%d\nFLANNEL_MTU=%d\n", mtu-50, mtu-70, mtu-70)
			if err == nil && out != want {
				err = fmt.Errorf("got %q, want %q", out, want)
			}
			return err
		})
		t.Logf("MTU %d followed within %v", mtu, took.Round(time.Millisecond))
	}
}

// TestFirewallModeIsSwitched changes EnableNFTables and restarts: nothing of the other mode stays, except
// that in both modes FLANNEL-FWD accepts pods' packets where a FORWARD chain is there to drop them.
func TestFirewallModeIsSwitched(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, lab.Options{Segments: three(), Family: lab.Dual, Config: config(lab.Dual, direct, true)})
	pods := addPods(ctx, t, l)
	awaitRoutes(ctx, t, l)
	ps := probeAll(t, pods)
	a := l.Nodes[0]
	for _, nftables := range []bool{false, true} {
		must(t, l.Etcd().PutConfig(ctx, config(lab.Dual, direct, nftables)))
		must(t, a.Agent.Restart(ctx))
		rules := sh(ctx, t, a, "nft list ruleset")
		if own, chains := strings.Contains(rules, "flannel-ipv4"), strings.Contains(rules, "FLANNEL-POSTRTG"); own != nftables || chains == nftables {
			t.Errorf("EnableNFTables %v, but the rules are\n%s", nftables, rules)
		}
	}
	ps.wantNoLoss(t)
}

// TestCleanupLeavesNothing runs weft cleanup on a node and compares with a fresh one.
func TestCleanupLeavesNothing(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, lab.Options{Segments: three(), Family: lab.Dual, Config: config(lab.Dual, direct, true)})
	awaitRoutes(ctx, t, l)
	a := l.Nodes[0]
	must(t, a.Agent.Stop())
	sh(ctx, t, a, l.Options.Weft+" cleanup")
	state := sh(ctx, t, a, "ip -o link; ip route show proto 119; ip -6 route show proto 119; nft list ruleset; ls /run/flannel")
	for _, trace := range []string{"flannel", "FLANNEL", "10.244", "fd24", "subnet.env"} {
		if strings.Contains(state, trace) {
			t.Errorf("%q is left in\n%s", trace, state)
		}
	}
}
