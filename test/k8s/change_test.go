package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weftnet/weft/test/k8s/cluster"
)

// swapped is how long a change of a ConfigMap may take to reach all agents: the kubelet looks at its volumes once a
// minute or so. After that the nodes have to agree.
const swapped = 3 * time.Minute

// TestChangeOfBackend has an operator change the backend with kubectl, time and again, while pods talk: the kubelets bring
// the news when they like, and nothing is lost or restarted. With WEFT_ORIGINAL_IMAGES the last node runs the original.
func TestChangeOfBackend(t *testing.T) {
	long(t)
	const vxlan, direct = "vxlan/1/8472", "host-gw"
	o := cluster.Options{Segments: [][]string{{"cp", "n1", "n2"}}}
	net, foreign := ours(t), ""
	nets := []*network{net}
	if os.Getenv("WEFT_ORIGINAL_IMAGES") != "" {
		nets, foreign = append(nets, original(t)), "n2"
	}
	ctx, c := up(t, 25*time.Minute, o, nets...)
	conf := netConf(o, `{"Type": "vxlan"}`)
	if foreign == "" {
		net.installed(ctx, t, c, conf)
	} else {
		installBoth(ctx, t, c, net, nets[1], conf, foreign)
	}
	tr := startTraffic(ctx, t, deployWeb(ctx, t, c))
	w := watched{c: c, foreign: foreign}
	w.await(ctx, t, "vxlan", vxlan)
	before := w.agents(ctx, t)
	for _, step := range []struct {
		name, backend, kind, want string
	}{
		{"vxlan to DirectRouting", `{"Type": "vxlan", "DirectRouting": true}`, "vxlan", direct},
		{"DirectRouting to host-gw", `{"Type": "host-gw"}`, "host-gw", direct},
		{"host-gw to vxlan on another port", `{"Type": "vxlan", "Port": 4789}`, "vxlan", "vxlan/1/4789"},
		{"back to the usual port", `{"Type": "vxlan"}`, "vxlan", vxlan},
	} {
		t.Run(step.name, func(t *testing.T) {
			setNetConf(ctx, t, c, netConf(o, step.backend))
			w.await(ctx, t, step.kind, step.want)
			tr.flowing(ctx, t)
		})
	}
	tr.wantNoLoss(t)
	wantNoRestarts(ctx, t, c)
	if after := w.agents(ctx, t); !maps.Equal(before, after) {
		t.Errorf("agents before: %v, and after: %v", before, after)
	}
	if len(w.told) == 0 {
		t.Error("weft status has told nothing of the changes")
	}
}

// installBoth has the original on one node and ours on all others: ours is applied over the original, and only the pods of
// the others are replaced.
func installBoth(ctx context.Context, t *testing.T, c *cluster.Cluster, ours, original *network, conf, foreign string) {
	t.Helper()
	original.installed(ctx, t, c, conf)
	kubectl(ctx, t, c, "-n", flannelNamespace, "patch", daemonSet, "-p", `{"spec":{"updateStrategy":{"type":"OnDelete","rollingUpdate":null}}}`)
	ours.install(ctx, t, c, conf)
	w := watched{c: c, foreign: foreign}
	for _, pod := range w.agents(ctx, t) {
		kubectl(ctx, t, c, "-n", flannelNamespace, "delete", "pod", pod)
	}
	eventually(ctx, t, 2*time.Minute, "ours on the other nodes", func() error {
		for node, pod := range w.agents(ctx, t) {
			if _, err := w.status(ctx, pod); err != nil {
				return fmt.Errorf("node %s: %w", node, err)
			}
		}
		return nil
	})
}

// setNetConf writes net-conf.json into the ConfigMap, as kubectl edit does.
func setNetConf(ctx context.Context, t *testing.T, c *cluster.Cluster, netConf string) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"data": map[string]string{"net-conf.json": netConf}})
	must(t, err)
	kubectl(ctx, t, c, "-n", flannelNamespace, "patch", "configmap", configMap, "--type=merge", "-p", string(patch))
}

// watched is a cluster whose agents are asked how far they are.
type watched struct {
	c       *cluster.Cluster
	foreign string // the node that runs the original; empty: none does
	told    []string
}

// agents returns the pods of our agents, by node.
func (w *watched) agents(ctx context.Context, t *testing.T) map[string]string {
	t.Helper()
	list, err := w.c.Client.CoreV1().Pods(flannelNamespace).List(ctx, meta.ListOptions{LabelSelector: "app=flannel"})
	must(t, err)
	pods := map[string]string{}
	for _, p := range list.Items {
		if p.Spec.NodeName != w.foreign && p.DeletionTimestamp == nil && p.Status.Phase == core.PodRunning {
			pods[p.Spec.NodeName] = p.Name
		}
	}
	return pods
}

// agentStatus is what `weft status -o json` prints, as far as it is needed here.
type agentStatus struct {
	Ready    bool     `json:"ready"`
	Reasons  []string `json:"reasons"`
	Backend  string   `json:"backend"`
	Progress []string `json:"progress"`
	Paths    []struct {
		Node   string `json:"node"`
		Reason string `json:"reason"`
		Way    *struct {
			Key string `json:"key"`
		} `json:"way"`
	} `json:"paths"`
}

// status asks an agent as an operator does.
func (w *watched) status(ctx context.Context, pod string) (agentStatus, error) {
	var st agentStatus
	out, err := w.c.Kubectl(ctx, "-n", flannelNamespace, "exec", pod, "-c", "kube-flannel", "--", "/opt/bin/weft", "status", "-o", "json")
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal([]byte(out), &st)
}

// await waits until all nodes have a backend of that kind configured, reach all peers by the given way, and are done with everything else. The original's node
// stays on what it was started with.
func (w *watched) await(ctx context.Context, t *testing.T, kind, want string) {
	t.Helper()
	var told []string
	took := eventually(ctx, t, swapped, "all peers on "+want, func() error {
		var errs []error
		for node, pod := range w.agents(ctx, t) {
			st, err := w.status(ctx, pod)
			if err != nil {
				return fmt.Errorf("node %s: %w", node, err)
			}
			for _, line := range st.Progress {
				if !slices.Contains(told, line) {
					told = append(told, line)
				}
			}
			if err := w.settled(st, kind, want); err != nil {
				errs = append(errs, fmt.Errorf("node %s: %w", node, err))
			}
		}
		return errors.Join(errs...)
	})
	w.told = append(w.told, told...)
	t.Logf("all peers on %s after %v; on the way weft status said:\n\t%s", want, took.Round(time.Second), strings.Join(told, "\n\t"))
}

// settled says what an agent still has to do.
func (w *watched) settled(st agentStatus, kind, want string) error {
	if !st.Ready || len(st.Paths) != len(w.c.Nodes)-1 {
		return fmt.Errorf("ready: %v, %d paths, %v", st.Ready, len(st.Paths), st.Reasons)
	}
	if st.Backend != kind {
		return fmt.Errorf("still configured for %s", st.Backend)
	}
	for _, p := range st.Paths {
		switch {
		case p.Node == w.foreign && p.Way != nil:
		case p.Way == nil:
			return fmt.Errorf("no way to %s: %s", p.Node, p.Reason)
		case p.Way.Key != want:
			return fmt.Errorf("to %s by %s: %s", p.Node, p.Way.Key, p.Reason)
		}
	}
	if len(st.Progress) > 0 && w.foreign == "" {
		return fmt.Errorf("%q", st.Progress)
	}
	return nil
}
