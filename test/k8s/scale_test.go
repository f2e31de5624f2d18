package k8s

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"golang.org/x/sync/errgroup"

	"github.com/weftnet/weft/test/k8s/cluster"
)

// The cost that the agent may have in a cluster of so many nodes.
const (
	manyNodes    = 5000
	maxResident  = 30 << 20 // bytes on average: its own, and pages of its program
	maxStart     = 3 * time.Second
	maxHeartbeat = 0.02 // of a processor

	heartbeatPeriod = 5 * time.Minute // of a node's status, unless it changes; the kubelet's default
	measureFor      = time.Minute
)

// TestManyNodes puts 5,000 Node objects into the real API server and measures the agent of one real node.
func TestManyNodes(t *testing.T) {
	long(t)
	net := tested(t)
	o := cluster.Options{Segments: [][]string{{"cp", "n1"}}, PodCIDRs: []string{"10.128.0.0/9"}, Proxy: "none"}
	ctx, c := up(t, 20*time.Minute, o, net)
	text, err := net.manifest(netConf(o, `{"Type": "vxlan"}`))
	must(t, err)
	must(t, c.Apply(ctx, withServer(text, node(t, c, "cp").Addrs()[0])))
	rolledOut(ctx, t, c)
	cp, n1 := node(t, c, "cp"), node(t, c, "n1")
	// They would take the nodes for lost, and put pods on them.
	for _, program := range []string{"kube-controller-manager", "kube-scheduler"} {
		must(t, cp.Hold(ctx, program))
	}
	began := time.Now()
	must(t, makeNodes(ctx, c))
	t.Logf("%d nodes made in %v", manyNodes, time.Since(began).Round(time.Second))
	awaitPeers(ctx, t, n1)

	t.Run("start", func(t *testing.T) { startsQuickly(ctx, t, n1) })
	t.Run("memory", func(t *testing.T) { restsInLittleMemory(ctx, t, c, n1) })
	t.Run("heartbeats", func(t *testing.T) { heartbeatsAreCheap(ctx, t, c, n1) })
}

// withServer has a manifest's agent reach the API server by its own address: there is no kube-proxy here, whose
// rules are not what is measured.
func withServer(manifest string, addr netip.Addr) string {
	const before = "        - name: POD_NAME\n"
	more := fmt.Sprintf("        - name: KUBERNETES_SERVICE_HOST\n          value: %q\n", addr) +
		"        - name: KUBERNETES_SERVICE_PORT\n          value: \"6443\"\n"
	return strings.Replace(manifest, before, more+before, 1)
}

// startsQuickly has an agent start on a node whose kernel knows no peer.
func startsQuickly(ctx context.Context, t *testing.T, n *cluster.Node) {
	old, err := agent(ctx, n)
	must(t, err)
	_, err = n.Exec(ctx, "kill", "-STOP", old)
	must(t, err)
	_, err = n.Exec(ctx, "ip", "link", "del", "flannel.1")
	must(t, err)
	_, err = n.Exec(ctx, "rm", "-rf", "/var/lib/flannel") // peers come from the API server
	must(t, err)
	_, err = n.Exec(ctx, "kill", "-KILL", old)
	must(t, err)
	var pid string
	eventually(ctx, t, 2*time.Minute, "another agent", func() error {
		if pid, err = agent(ctx, n); err == nil && pid == old {
			err = fmt.Errorf("the old one is still there")
		}
		return err
	})
	awaitPeers(ctx, t, n)
	took := age(ctx, t, n, pid)
	t.Logf("%d peers programmed %v after the agent's start, with %v of CPU time", manyNodes, took, cpuTime(ctx, t, n))
	if took > maxStart {
		if busy(t) {
			t.Skipf("SKIPPED: %v is too long, but this machine is busy with other things", took)
		}
		t.Errorf("%v to all peers, want %v at most", took, maxStart)
	}
}

// restsInLittleMemory looks at an agent at rest for a minute, in which there are full passes.
func restsInLittleMemory(ctx context.Context, t *testing.T, c *cluster.Cluster, n *cluster.Node) {
	var anon, file int64
	look := func() int64 {
		anon, file = resident(ctx, t, n, "RssAnon"), resident(ctx, t, n, "RssFile")
		return anon + file
	}
	eventually(ctx, t, time.Minute, "memory of the start is given back", func() error {
		if all := look(); all > maxResident {
			return fmt.Errorf("%s resident", mib(all))
		}
		return nil
	})
	var sum, anons, most int64
	const looks = 30
	for range looks {
		all := look()
		sum, anons, most = sum+all, anons+anon, max(most, all)
		select {
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		case <-time.After(measureFor / looks):
		}
	}
	t.Logf("resident: %s on average, of that %s of its own and the rest of its program, %s at most; Kubernetes shows a working set of %s",
		mib(sum/looks), mib(anons/looks), mib(most), workingSet(ctx, t, c, n))
	if sum/looks > maxResident {
		t.Errorf("%s resident on average, want %s at most", mib(sum/looks), mib(maxResident))
	}
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// workingSet returns what the kubelet says of the agent's container: what is charged to its cgroup, but for pages of files
// that were not used again.
func workingSet(ctx context.Context, t *testing.T, c *cluster.Cluster, n *cluster.Node) string {
	t.Helper()
	raw := kubectl(ctx, t, c, "get", "--raw", "/api/v1/nodes/"+n.Name+"/proxy/stats/summary")
	var summary struct {
		Pods []struct {
			Containers []struct {
				Name   string `json:"name"`
				Memory struct {
					WorkingSetBytes int64 `json:"workingSetBytes"`
				} `json:"memory"`
			} `json:"containers"`
		} `json:"pods"`
	}
	must(t, json.Unmarshal([]byte(raw), &summary))
	for _, p := range summary.Pods {
		for _, container := range p.Containers {
			if container.Name == "kube-flannel" {
				return mib(container.Memory.WorkingSetBytes)
			}
		}
	}
	return "nothing"
}

// heartbeatsAreCheap updates the nodes' status as often as that many kubelets do.
func heartbeatsAreCheap(ctx context.Context, t *testing.T, c *cluster.Cluster, n *cluster.Node) {
	tick := time.NewTicker(heartbeatPeriod / manyNodes)
	defer tick.Stop()
	before, began := cpuTime(ctx, t, n), time.Now()
	sent := 0
	for i := 0; time.Since(began) < measureFor; i++ {
		patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":"True","lastHeartbeatTime":%q}]}}`, time.Now().UTC().Format(time.RFC3339))
		_, err := c.Client.CoreV1().Nodes().Patch(ctx, nodeName(i%manyNodes), types.StrategicMergePatchType, []byte(patch), meta.PatchOptions{}, "status")
		must(t, err)
		sent++
		select {
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		case <-tick.C:
		}
	}
	used, wall := cpuTime(ctx, t, n)-before, time.Since(began)
	share := used.Seconds() / wall.Seconds()
	t.Logf("%d heartbeats (%.1f/s) in %v: %v of CPU time, %.2f %% of a processor",
		sent, float64(sent)/wall.Seconds(), wall.Round(time.Second), used, share*100)
	if share > maxHeartbeat {
		t.Errorf("%.2f %% of a processor, want %.0f %% at most", share*100, maxHeartbeat*100)
	}
}

// makeNodes makes nodes as a cluster of flannel has them, of the usual 15 kB.
func makeNodes(ctx context.Context, c *cluster.Cluster) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(20)
	for i := range manyNodes {
		g.Go(func() error {
			n, err := c.Client.CoreV1().Nodes().Create(ctx, fakeNode(i), meta.CreateOptions{})
			if err != nil {
				return err
			}
			n.Status = fakeNode(i).Status // left out when an object is made
			_, err = c.Client.CoreV1().Nodes().UpdateStatus(ctx, n, meta.UpdateOptions{})
			return err
		})
	}
	return g.Wait()
}

func nodeName(i int) string { return fmt.Sprintf("many-%04d", i) }

func fakeNode(i int) *core.Node {
	subnet := netip.AddrFrom4([4]byte{10, byte(192 + i>>8), byte(i), 0}) // the real nodes' are the first ones
	host := netip.AddrFrom4([4]byte{172, 30, byte(i >> 8), byte(i)})
	prefix := netip.PrefixFrom(subnet, 24).String()
	n := &core.Node{ObjectMeta: meta.ObjectMeta{Name: nodeName(i),
		Labels: map[string]string{"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "kubernetes.io/hostname": nodeName(i),
			"topology.kubernetes.io/zone": "zone-a", "node.kubernetes.io/instance-type": "standard-8"},
		Annotations: map[string]string{
			"flannel.alpha.coreos.com/kube-subnet-manager": "true",
			"flannel.alpha.coreos.com/backend-type":        "vxlan",
			"flannel.alpha.coreos.com/backend-data":        fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:%02x:%02x"}`, i>>8, i&255),
			"flannel.alpha.coreos.com/public-ip":           host.String(),
			"flannel.alpha.coreos.com/x-weft":              `{"receive":[{"key":"vxlan/1/8472","type":"vxlan"}],"send":["vxlan/1/8472"]}`,
		}},
		Spec: core.NodeSpec{PodCIDR: prefix, PodCIDRs: []string{prefix}},
	}
	quantity := core.ResourceList{"cpu": resource.MustParse("8"), "memory": resource.MustParse("32Gi"), "pods": resource.MustParse("110")}
	n.Status = core.NodeStatus{Capacity: quantity, Allocatable: quantity,
		Addresses: []core.NodeAddress{{Type: core.NodeInternalIP, Address: host.String()}},
		NodeInfo:  core.NodeSystemInfo{KubeletVersion: "v1.34.4", OperatingSystem: "linux", Architecture: "amd64"}}
	now := meta.Now()
	for _, kind := range []core.NodeConditionType{"MemoryPressure", "DiskPressure", "PIDPressure", "Ready", "NetworkUnavailable"} {
		n.Status.Conditions = append(n.Status.Conditions, core.NodeCondition{Type: kind, Status: "False", LastHeartbeatTime: now,
			LastTransitionTime: now, Reason: "Kubelet", Message: "kubelet says so"})
	}
	for k := range 50 { // what the kubelet reports of images
		name := fmt.Sprintf("registry.example.net/team-%02d/service-with-a-usual-name-%02d", k, k)
		n.Status.Images = append(n.Status.Images, core.ContainerImage{SizeBytes: int64(k) << 20,
			Names: []string{name + "@sha256:" + strings.Repeat(fmt.Sprintf("%02x", k), 32), name + ":v1.2.3"}})
	}
	return n
}

// awaitPeers waits until the kernel of a node has a route to every other node, and all that goes with it.
func awaitPeers(ctx context.Context, t *testing.T, n *cluster.Node) {
	t.Helper()
	eventually(ctx, t, 5*time.Minute, "a route to every peer", func() error {
		for what, script := range map[string]string{
			"routes": "ip route show dev flannel.1 | grep -c via", "neighbours": "ip neigh show dev flannel.1 | grep -c PERM",
			"FDB entries": "bridge fdb show dev flannel.1 | grep -c dst"} {
			out, err := n.Exec(ctx, "sh", "-c", script+" || true")
			if err != nil {
				return err
			}
			if got, _ := strconv.Atoi(strings.TrimSpace(out)); got < manyNodes {
				return fmt.Errorf("%d %s", got, what)
			}
		}
		return nil
	})
}

// resident returns how much memory of a kind (proc_pid_status(5)) the node's agent has, in bytes.
func resident(ctx context.Context, t *testing.T, n *cluster.Node, kind string) int64 {
	t.Helper()
	pid, err := agent(ctx, n)
	must(t, err)
	out, err := n.Exec(ctx, "sh", "-c", "grep "+kind+" /proc/"+pid+"/status")
	must(t, err)
	kib, err := strconv.ParseInt(strings.Fields(out)[1], 10, 64)
	must(t, err)
	return kib << 10
}

// ticksPerSecond is the unit of times in /proc on every architecture (USER_HZ).
const ticksPerSecond = 100

// cpuTime returns the CPU time that the node's agent has had.
func cpuTime(ctx context.Context, t *testing.T, n *cluster.Node) time.Duration {
	t.Helper()
	pid, err := agent(ctx, n)
	must(t, err)
	f := processStat(ctx, t, n, pid)
	user, err := strconv.Atoi(f[11])
	must(t, err)
	system, err := strconv.Atoi(f[12])
	must(t, err)
	return time.Duration(user+system) * time.Second / ticksPerSecond
}

// age returns how long ago a process of the node was started.
func age(ctx context.Context, t *testing.T, n *cluster.Node, pid string) time.Duration {
	t.Helper()
	raw, err := os.ReadFile("/proc/uptime")
	must(t, err)
	up, err := strconv.ParseFloat(strings.Fields(string(raw))[0], 64)
	must(t, err)
	ticks, err := strconv.ParseFloat(processStat(ctx, t, n, pid)[19], 64)
	must(t, err)
	return time.Duration((up - ticks/ticksPerSecond) * float64(time.Second)).Round(10 * time.Millisecond)
}

// processStat returns the fields of /proc/PID/stat from the third on.
func processStat(ctx context.Context, t *testing.T, n *cluster.Node, pid string) []string {
	t.Helper()
	out, err := n.Exec(ctx, "cat", filepath.Join("/proc", pid, "stat"))
	must(t, err)
	return strings.Fields(out[strings.LastIndexByte(out, ')')+1:])
}

// busy says whether other programs compete for this machine's processors.
func busy(t *testing.T) bool {
	t.Helper()
	raw, err := os.ReadFile("/proc/loadavg")
	must(t, err)
	load, err := strconv.ParseFloat(strings.Fields(string(raw))[0], 64)
	must(t, err)
	return load > 6
}
