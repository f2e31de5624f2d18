package k8s

import (
	"context"
	"testing"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weftnet/weft/test/k8s/cluster"
)

// TestApplyOverTheOriginal has the original's manifest replaced by ours, as an upgrade is, and ours by the
// original's. Pods neither lose a packet nor a connection, and none restarts.
func TestApplyOverTheOriginal(t *testing.T) {
	before, after := original(t), ours(t)
	o := cluster.Options{Proxy: "iptables"}
	ctx, c := up(t, 20*time.Minute, o, before, after)
	conf := netConf(o, `{"Type": "vxlan"}`)
	before.installed(ctx, t, c, conf)
	pods := deployWeb(ctx, t, c)
	for _, next := range []*network{after, before} {
		t.Run("to "+next.name, func(t *testing.T) {
			tr := startTraffic(ctx, t, pods)
			began := time.Now()
			next.install(ctx, t, c, conf)
			rolledOut(ctx, t, c)
			t.Logf("rolled out in %v", time.Since(began).Round(time.Second))
			tr.flowing(ctx, t)
			tr.wantNoLoss(t)
			wantNoRestarts(ctx, t, c)
		})
	}
	// New pods are attached by what came last, with addresses that nobody has.
	kubectl(ctx, t, c, "rollout", "restart", "daemonset/web")
	kubectl(ctx, t, c, "rollout", "status", "daemonset/web", "--timeout=240s")
	pingAll(t, webPods(ctx, t, c))
}

// wantNoRestarts wants all pods to be those that were started, and the agents to have started once.
func wantNoRestarts(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	t.Helper()
	list, err := c.Client.CoreV1().Pods("").List(ctx, meta.ListOptions{})
	must(t, err)
	for _, p := range list.Items {
		for _, s := range p.Status.ContainerStatuses {
			if s.RestartCount > 0 {
				t.Errorf("%s/%s: container %s was restarted %d times: %+v", p.Namespace, p.Name, s.Name, s.RestartCount, s.LastTerminationState.Terminated)
			}
		}
	}
}
