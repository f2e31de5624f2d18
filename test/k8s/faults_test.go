package k8s

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weftnet/weft/internal/lab"
	"github.com/weftnet/weft/test/k8s/cluster"
)

// outage is how long the API server is away.
const outage = 2 * time.Minute

// TestFaults has one cluster go through what happens to clusters. Each step leaves the cluster whole.
func TestFaults(t *testing.T) {
	long(t)
	net := tested(t)
	o := cluster.Options{Segments: [][]string{{"cp", "n1", "n2"}, {"n3", "n4"}}, Idle: []string{"n4"}}
	ctx, c := up(t, 20*time.Minute, o, net)
	net.installed(ctx, t, c, netConf(o, `{"Type": "vxlan", "DirectRouting": true}`))
	pods := deployWeb(ctx, t, c)
	pingAll(t, pods)
	for _, step := range []struct {
		name string
		f    func(context.Context, *testing.T, *cluster.Cluster)
	}{
		{"kubelet and containerd are restarted", programsRestart},
		{"the agents are killed", agentsKilled},
		{"the API server is away while a node is power-cycled", apiServerAway},
		{"nodes are added and removed while an agent is down", nodesChange},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.f(ctx, t, c) }) {
			return
		}
	}
}

func programsRestart(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	tr := startTraffic(ctx, t, webPods(ctx, t, c))
	for _, program := range []string{"kubelet", "containerd"} {
		for _, n := range running(c) {
			must(t, n.Restart(ctx, program))
		}
		// A kubelet that works again renews its node's lease.
		since := meta.NowMicro()
		for _, n := range running(c) {
			eventually(ctx, t, 2*time.Minute, n.Name+" gives signs of life", func() error {
				lease, err := c.Client.CoordinationV1().Leases("kube-node-lease").Get(ctx, n.Name, meta.GetOptions{})
				if err == nil && !since.Before(lease.Spec.RenewTime) {
					err = fmt.Errorf("the last one is of %v", lease.Spec.RenewTime)
				}
				return err
			})
		}
		tr.flowing(ctx, t)
	}
	tr.wantNoLoss(t)
	newPodsWork(ctx, t, c)
}

func agentsKilled(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	tr := startTraffic(ctx, t, webPods(ctx, t, c))
	for _, n := range running(c) {
		killAgent(ctx, t, n)
	}
	tr.flowing(ctx, t)
	tr.wantNoLoss(t)
}

// apiServerAway takes the API server away for minutes. Meanwhile one node loses power, and the agent of another
// is killed: that one starts from what it has on disk.
func apiServerAway(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	cp, n1, n2 := node(t, c, "cp"), node(t, c, "n1"), node(t, c, "n2")
	pods := webPods(ctx, t, c)
	delete(pods, "n2")
	tr := startTraffic(ctx, t, pods)
	must(t, cp.Hold(ctx, "kube-apiserver"))
	began := time.Now()
	must(t, n2.PowerCycle(ctx))
	killAgent(ctx, t, n1)
	eventually(ctx, t, time.Minute, "the agent is up without the API server", func() error {
		_, err := get(ctx, n1, n1.Addrs()[0], 8081)
		return err
	})
	select {
	case <-ctx.Done():
	case <-time.After(outage - time.Since(began)):
	}
	tr.flowing(ctx, t)
	must(t, cp.Release("kube-apiserver"))
	back := time.Now()
	eventually(ctx, t, 3*time.Minute, "the power-cycled node carries traffic", func() error { return reaches(ctx, c, "n1", "n2") })
	t.Logf("pods of the power-cycled node answer %v after the API server came back", time.Since(back).Round(100*time.Millisecond))
	tr.wantNoLoss(t)
	kubectl(ctx, t, c, "rollout", "status", "daemonset/web", "--timeout=120s")
	pingAll(t, webPods(ctx, t, c))
}

// nodesChange adds n4 and removes n2 while the agent of n1 is stopped, then kills that one: it has to find out
// at its start. In the end n2 joins again, with the disk it had.
func nodesChange(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	n1, n2, n4 := node(t, c, "n1"), node(t, c, "n2"), node(t, c, "n4")
	_, err := n1.Exec(ctx, "pkill", "-STOP", "-x", "flanneld")
	must(t, err)
	must(t, n4.Start(ctx))
	must(t, n4.AwaitReady(ctx, 2*time.Minute))
	gone, err := c.Client.CoreV1().Nodes().Get(ctx, "n2", meta.GetOptions{})
	must(t, err)
	must(t, n2.PowerOff())
	kubectl(ctx, t, c, "delete", "node", "n2")
	killAgent(ctx, t, n1)
	eventually(ctx, t, 2*time.Minute, "n1 reaches the new node's pod", func() error { return reaches(ctx, c, "n1", "n4") })
	eventually(ctx, t, time.Minute, "n1 forgets the removed node", func() error {
		routes, err := n1.Exec(ctx, "ip", "route", "show", gone.Spec.PodCIDR)
		if err == nil && strings.TrimSpace(routes) != "" {
			err = fmt.Errorf("it has: %s", routes)
		}
		return err
	})
	must(t, n2.Reboot())
	must(t, n2.Start(ctx))
	must(t, n2.AwaitRegistered(ctx))
	must(t, n2.AwaitReady(ctx, 3*time.Minute))
	eventually(ctx, t, 2*time.Minute, "the node that came back carries traffic", func() error { return reaches(ctx, c, "n4", "n2") })
	kubectl(ctx, t, c, "rollout", "status", "daemonset/web", "--timeout=120s")
	pingAll(t, webPods(ctx, t, c))
}

// newPodsWork replaces all pods and wants the new ones to reach each other.
func newPodsWork(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	t.Helper()
	kubectl(ctx, t, c, "rollout", "restart", "daemonset/web")
	kubectl(ctx, t, c, "rollout", "status", "daemonset/web", "--timeout=180s")
	pingAll(t, webPods(ctx, t, c))
}

// killAgent kills a node's agent and waits for another one.
func killAgent(ctx context.Context, t *testing.T, n *cluster.Node) {
	t.Helper()
	old, err := agent(ctx, n)
	must(t, err)
	_, err = n.Exec(ctx, "kill", "-KILL", old)
	must(t, err)
	eventually(ctx, t, 3*time.Minute, "another agent on "+n.Name, func() error {
		pid, err := agent(ctx, n)
		if err == nil && pid == old {
			err = errors.New("the old one is still there")
		}
		return err
	})
}

// agent returns the number, on the node, of the agent's process.
func agent(ctx context.Context, n *cluster.Node) (string, error) {
	out, err := n.Exec(ctx, "pgrep", "-x", "flanneld")
	return strings.TrimSpace(out), err
}

// reaches says whether the pod on one node reaches the one on another, where both run.
func reaches(ctx context.Context, c *cluster.Cluster, from, to string) error {
	pods, err := c.Pods(ctx, "default", "app=web")
	if err != nil {
		return err
	}
	a, b := pods[from], pods[to]
	if a == nil || b == nil {
		return fmt.Errorf("no running pods on both %s and %s", from, to)
	}
	for _, addr := range b.Addrs {
		if _, err := lab.Ping(a, addr, time.Second); err != nil {
			return err
		}
	}
	return nil
}

// running returns the nodes that are switched on.
func running(c *cluster.Cluster) []*cluster.Node {
	return slices.DeleteFunc(slices.Clone(c.Nodes), func(n *cluster.Node) bool {
		_, on := n.Process1()
		return !on
	})
}

func node(t *testing.T, c *cluster.Cluster, name string) *cluster.Node {
	t.Helper()
	n, err := c.Node(name)
	must(t, err)
	return n
}
