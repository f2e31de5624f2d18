package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/lab"
	"github.com/weftnet/weft/internal/lab/frame"
)

// config returns a network configuration. Nodes get subnets up to 10.244.60.0, so that tests can invent
// others.
func config(family, backend string, nftables bool) string {
	networks := map[string]string{
		lab.IPv4: `"Network":"10.244.0.0/16","SubnetMax":"10.244.60.0"`,
		lab.Dual: `"Network":"10.244.0.0/16","SubnetMax":"10.244.60.0","EnableIPv6":true,"IPv6Network":"fd24::/48"`,
		lab.IPv6: `"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd24::/48"`,
	}
	return fmt.Sprintf(`{%s,"EnableNFTables":%v,"Backend":%s}`, networks[family], nftables, backend)
}

const (
	vxlan  = `{"Type":"vxlan"}`
	direct = `{"Type":"vxlan","DirectRouting":true}`
	hostgw = `{"Type":"host-gw"}`
	alloc  = `{"Type":"alloc"}`
)

func TestEveryPodReachesEveryPod(t *testing.T) {
	for _, c := range []struct {
		name     string
		family   string
		backend  string
		nftables bool
		segments [][]string
		near     string // path between nodes of one segment
		mtu      string // of pods
	}{
		{"vxlan, IPv4", lab.IPv4, vxlan, true, three(), "vxlan", "1450"},
		{"vxlan, IPv4, iptables", lab.IPv4, vxlan, false, three(), "vxlan", "1450"},
		{"vxlan, dual", lab.Dual, vxlan, true, three(), "vxlan", "1430"},
		{"vxlan, another VNI and port", lab.Dual, `{"Type":"vxlan","VNI":42,"Port":4789}`, true, three(), "vxlan", "1430"},
		{"vxlan, IPv6", lab.IPv6, vxlan, true, three(), "vxlan", "1430"},
		{"DirectRouting, IPv6, iptables", lab.IPv6, direct, false, three(), "direct", "1430"},
		{"host-gw, IPv6", lab.IPv6, hostgw, true, [][]string{{"A", "B"}}, "direct", "1500"},
		{"DirectRouting, IPv4", lab.IPv4, direct, true, three(), "direct", "1450"},
		{"DirectRouting, dual, iptables", lab.Dual, direct, false, three(), "direct", "1430"},
		{"host-gw, IPv4", lab.IPv4, hostgw, true, [][]string{{"A", "B"}}, "direct", "1500"},
		{"host-gw, dual, iptables", lab.Dual, hostgw, false, [][]string{{"A", "B"}}, "direct", "1500"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, l := up(t, lab.Options{Segments: c.segments, Family: c.family, Config: config(c.family, c.backend, c.nftables)})
			pods := addPods(ctx, t, l)
			_, err := l.Nodes[0].AddPod(ctx, "second")
			must(t, err)
			awaitRoutes(ctx, t, l)
			pingAll(t, l)
			for _, from := range l.Nodes {
				if env := sh(ctx, t, from, "cat /run/flannel/subnet.env"); !strings.Contains(env, "FLANNEL_MTU="+c.mtu+"\n") {
					t.Errorf("node %s: want pod MTU %s in\n%s", from.Name, c.mtu, env)
				}
				for _, to := range l.Nodes {
					want := "vxlan"
					if from.Segment() == to.Segment() {
						want = c.near
					}
					if from != to {
						wantOnWire(t, pods[from.Name], pods[to.Name], want)
					}
				}
			}
		})
	}
}

// wantOnWire pings once and looks how the packets pass the sender's underlay device.
func wantOnWire(t *testing.T, from, to *lab.Pod, path string) {
	t.Helper()
	for _, a := range to.Addrs() {
		if got := onWire(t, from, a); got != path {
			t.Errorf("%s to %s (%s): %s, want %s", from.Name, to.Name, a, got, path)
		}
	}
}

func onWire(t *testing.T, from *lab.Pod, to netip.Addr) string {
	t.Helper()
	var paths []string
	for _, port := range []uint16{lab.VXLANPort, 4789} {
		c, err := lab.StartCapture(from.Node, lab.Uplink, port)
		must(t, err)
		_, pingErr := lab.Ping(from, to, patience)
		packets, err := c.Stop()
		must(t, errors.Join(err, pingErr))
		for _, p := range packets {
			paths = append(paths, pathOf(p, to))
		}
	}
	all := strings.Join(paths, " ")
	switch {
	case strings.Contains(all, "vxlan") && !strings.Contains(all, "direct"):
		return "vxlan"
	case strings.Contains(all, "direct") && !strings.Contains(all, "vxlan"):
		return "direct"
	}
	return "unclear: " + all
}

func pathOf(p frame.Packet, pod netip.Addr) string {
	inner := p
	if p.VXLAN != nil {
		inner = p.VXLAN.Inner
	}
	switch {
	case !inner.Echo() || inner.Src != pod && inner.Dst != pod:
		return ""
	case p.VXLAN != nil:
		return "vxlan"
	}
	return "direct"
}

func TestAllocLeasesAndLeavesTheRestToOthers(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, lab.Options{Segments: [][]string{{"A", "B"}}, Config: config(lab.IPv4, alloc, true)})
	pods := addPods(ctx, t, l)
	a, b := l.Nodes[0], l.Nodes[1]
	if links := sh(ctx, t, a, "ls /sys/class/net"); strings.Contains(links, "flannel") {
		t.Errorf("devices %q, want none of ours", links)
	}
	if routes := sh(ctx, t, a, "ip route show proto 119"); routes != "" {
		t.Errorf("routes %q, want none of ours", routes)
	}
	// What the cloud would do:
	for _, n := range [][2]*lab.Node{{a, b}, {b, a}} {
		peer := netip.PrefixFrom(pods[n[1].Name].Addr.V4, 24).Masked()
		sh(ctx, t, n[0], fmt.Sprintf("ip route add %s via %s", peer, n[1].Addr().V4))
	}
	pingAll(t, l)
	must(t, a.Agent.Restart(ctx))
	pingAll(t, l)
}

// TestPodsReachTheOutside checks masquerading and the host's own way to pods.
func TestPodsReachTheOutside(t *testing.T) {
	for _, nftables := range []bool{true, false} {
		t.Run(fmt.Sprintf("nftables %v", nftables), func(t *testing.T) {
			t.Parallel()
			ctx, l := up(t, lab.Options{Segments: three(), Family: lab.Dual, Config: config(lab.Dual, direct, nftables)})
			pods := addPods(ctx, t, l)
			awaitRoutes(ctx, t, l)
			for _, n := range l.Nodes {
				// The router has no route to pods: an answer means that the node's address was the source.
				for _, outside := range []string{"172.31.255.2", "fd31:0:0:ff::2"} {
					if _, err := lab.Ping(pods[n.Name], netip.MustParseAddr(outside), patience); err != nil {
						t.Errorf("pod on %s to the outside: %v", n.Name, err)
					}
				}
				for _, p := range pods {
					for _, a := range p.Addrs() {
						if _, err := lab.Ping(n, a, patience); err != nil {
							t.Errorf("node %s to %s: %v", n.Name, p.Name, err)
						}
					}
				}
			}
		})
	}
}

// TestForwardDropDoesNotCutPodsOff has Docker's policy on every node.
func TestForwardDropDoesNotCutPodsOff(t *testing.T) {
	for _, nftables := range []bool{true, false} {
		t.Run(fmt.Sprintf("nftables %v", nftables), func(t *testing.T) {
			t.Parallel()
			ctx, l := up(t, lab.Options{Segments: three(), Config: config(lab.IPv4, direct, nftables), NoAgents: true})
			must(t, l.EachNode(func(n *lab.Node) error {
				if _, err := n.Exec(ctx, "iptables-nft", "-P", "FORWARD", "DROP"); err != nil {
					return err
				}
				return n.Agent.Start(ctx)
			}))
			addPods(ctx, t, l)
			awaitRoutes(ctx, t, l)
			pingAll(t, l)
		})
	}
}
