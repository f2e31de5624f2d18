package k8s

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weftnet/weft/internal/lab"
	"github.com/weftnet/weft/test/k8s/cluster"
)

// TestCommunication installs the network on an empty cluster and wants the four communications of the
// Kubernetes network model.
func TestCommunication(t *testing.T) {
	flat := [][]string{{"cp", "n1", "n2"}}
	for _, tc := range []struct {
		name, backend, proxy, family string
		segments                     [][]string
	}{
		{"vxlan, IPv4, kube-proxy with iptables", `{"Type": "vxlan"}`, "iptables", lab.IPv4, nil},
		{"vxlan, dual, kube-proxy with nftables", `{"Type": "vxlan"}`, "nftables", lab.Dual, nil},
		{"DirectRouting, dual, kube-proxy with iptables", `{"Type": "vxlan", "DirectRouting": true}`, "iptables", lab.Dual, nil},
		{"DirectRouting, IPv4, kube-proxy with nftables", `{"Type": "vxlan", "DirectRouting": true}`, "nftables", lab.IPv4, nil},
		{"host-gw, dual, kube-proxy with nftables", `{"Type": "host-gw"}`, "nftables", lab.Dual, flat},
		{"host-gw, IPv4, kube-proxy with iptables", `{"Type": "host-gw"}`, "iptables", lab.IPv4, flat},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.backend != `{"Type": "vxlan"}` || tc.family != lab.Dual {
				long(t)
			}
			net := tested(t)
			o := cluster.Options{Family: tc.family, Proxy: tc.proxy, Segments: tc.segments}
			ctx, c := up(t, 15*time.Minute, o, net)
			net.installed(ctx, t, c, netConf(o, tc.backend))
			must(t, c.StartDNS(ctx))
			pods := deployWeb(ctx, t, c)
			if len(pods) != len(c.Nodes) {
				t.Fatalf("pods on %d nodes of %d", len(pods), len(c.Nodes))
			}
			communicate(ctx, t, c, pods)
		})
	}
}

// communicate checks the four communications between pods that run on all nodes.
func communicate(ctx context.Context, t *testing.T, c *cluster.Cluster, pods map[string]*cluster.Pod) {
	withinPod(ctx, t, pods)
	pingAll(t, pods)
	podToPod(ctx, t, pods)
	podToService(ctx, t, c, pods)
	outside(ctx, t, c, pods)
}

// withinPod wants the containers of one pod to reach each other on loopback.
func withinPod(ctx context.Context, t *testing.T, pods map[string]*cluster.Pod) {
	t.Helper()
	for _, p := range pods {
		// That the other container has been started does not mean that it listens.
		eventually(ctx, t, time.Minute, "containers of the pod on "+p.Node.Name, func() error {
			out, err := p.Exec(ctx, "/pod", "get", "http://127.0.0.1:9090/", "1")
			if err == nil && !strings.HasPrefix(out, "1 beside 127.0.0.1") {
				err = fmt.Errorf("%q", out)
			}
			return err
		})
	}
}

// podToPod wants every pod to see others' own addresses: there is no NAT between pods.
func podToPod(ctx context.Context, t *testing.T, pods map[string]*cluster.Pod) {
	t.Helper()
	for _, from := range pods {
		for _, to := range pods {
			for i, a := range to.Addrs {
				want := to.Node.Name + " " + from.Addrs[i].String()
				if got, err := get(ctx, from, a, podPort); err != nil || got != want {
					t.Errorf("pod on %s to pod on %s (%s): %q, %v; want %q", from.Node.Name, to.Node.Name, a, got, err, want)
				}
			}
		}
	}
}

// podToService wants the service to answer, from pods and from nodes, by address and by name.
func podToService(ctx context.Context, t *testing.T, c *cluster.Cluster, pods map[string]*cluster.Pod) {
	t.Helper()
	addrs := clusterIPs(ctx, t, c, "web")
	for _, p := range pods {
		for _, a := range addrs {
			backends(ctx, t, fmt.Sprintf("pod on %s to Service %s", p.Node.Name, a), p, a, 80, len(pods))
			backends(ctx, t, fmt.Sprintf("node %s to Service %s", p.Node.Name, a), p.Node, a, 80, len(pods))
		}
		const name = "web.default.svc.cluster.local"
		// kube-proxy is behind CoreDNS's pods as well.
		eventually(ctx, t, time.Minute, "pod on "+p.Node.Name+" resolves "+name, func() error {
			out, err := p.Exec(ctx, "/pod", "resolve", name)
			for _, a := range addrs {
				if err == nil && !strings.Contains(out, a.String()) {
					err = fmt.Errorf("%q, want %v", out, addrs)
				}
			}
			return err
		})
		if out, err := p.Exec(ctx, "/pod", "get", "http://web/", "3"); err != nil || strings.Contains(out, "error") {
			t.Errorf("pod on %s to Service by name: %q, %v", p.Node.Name, out, err)
		}
	}
}

// outside wants NodePort and hostPort to answer to the router, which is no part of the cluster.
func outside(ctx context.Context, t *testing.T, c *cluster.Cluster, pods map[string]*cluster.Pod) {
	t.Helper()
	for _, p := range pods {
		for _, a := range p.Node.Addrs() {
			backends(ctx, t, fmt.Sprintf("outside to NodePort of %s (%s)", p.Node.Name, a), c.Router(), a, nodePort, len(pods))
			got, err := get(ctx, c.Router(), a, hostPort)
			if err != nil || !strings.HasPrefix(got, p.Node.Name+" ") {
				t.Errorf("outside to hostPort of %s (%s): %q, %v", p.Node.Name, a, got, err)
			}
		}
	}
}

func clusterIPs(ctx context.Context, t *testing.T, c *cluster.Cluster, service string) []netip.Addr {
	t.Helper()
	s, err := c.Client.CoreV1().Services(core.NamespaceDefault).Get(ctx, service, meta.GetOptions{})
	must(t, err)
	var out []netip.Addr
	for _, ip := range s.Spec.ClusterIPs {
		a, err := netip.ParseAddr(ip)
		must(t, err)
		out = append(out, a)
	}
	return out
}
