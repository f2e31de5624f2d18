package kube_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/netnstest"
)

// TestCost measures what the store costs in a large cluster: a real API server with WEFT_COST Node objects of
// 15 kB, and a real flanneld in a network namespace of its own that programs all of them. The figures are
// printed; nothing is asserted but that all peers arrive, since they depend on the machine.
//
//	WEFT_COST=5000 go test -count=1 -v -timeout 20m -run TestCost ./internal/lease/kube
func TestCost(t *testing.T) {
	peers, err := strconv.Atoi(os.Getenv("WEFT_COST"))
	if err != nil {
		t.Skip("SKIPPED: a measurement; set WEFT_COST to a number of nodes")
	}
	if os.Getenv(insideVariable) == "" {
		inside(t, "TestCost")
		return
	}
	connect(t)
	cost{t: t, server: startAPIServer(t), peers: peers}.run()
}

// insideVariable holds the path of flanneld for a test that runs in a network namespace of its own.
const insideVariable = "WEFT_INSIDE_FLANNELD"

// inside runs a test again in a network namespace, where flanneld may do as it likes: all goroutines of that
// process are inside.
func inside(t *testing.T, test string) {
	flanneld := filepath.Join(t.TempDir(), "flanneld")
	if out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", flanneld, "github.com/weftnet/weft/cmd/flanneld").CombinedOutput(); err != nil {
		t.Fatalf("build flanneld: %v\n%s", err, out)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+test+"$", "-test.v", "-test.timeout=20m")
	cmd.Env = append(os.Environ(), insideVariable+"="+flanneld)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	var out bytes.Buffer
	both := io.MultiWriter(&out, os.Stdout)
	cmd.Stdout, cmd.Stderr = both, both // one writer, one goroutine
	err := cmd.Run()
	switch {
	case errors.Is(err, unix.EPERM):
		netnstest.Unavailable(t, "new network namespace (root is needed): %v", err)
	case err != nil:
		t.Fatalf("%v\n%s", err, out.Bytes())
	case bytes.Contains(out.Bytes(), []byte("--- SKIP")):
		t.Skip("skipped inside")
	}
}

type cost struct {
	t      *testing.T
	server *apiServer
	peers  int
}

// connect makes what looks like a machine on a network.
func connect(t *testing.T) {
	for _, line := range []string{
		"link set lo up", "link add eth0 type veth peer name far", "addr add 172.30.0.1/16 dev eth0",
		"link set eth0 up", "link set far up", "route add default via 172.30.255.254",
	} {
		netnstest.Command(t, "ip", strings.Fields(line)...)
	}
}

func (c cost) run() {
	c.server.grant(c.t)
	size := c.fill()
	c.t.Logf("%d Nodes, %d bytes of JSON each", c.peers, size)
	forget(c.t, os.Getenv(insideVariable))
	dir := c.t.TempDir()
	first := c.start(dir)
	c.programmed(first, "cold start")
	c.rest(first, "the first minute")
	c.rest(first, "the second minute")
	for _, rate := range []int{c.peers / 300, c.peers / 10} { // heartbeats every 5 min (kubelet's default), and every 10 s
		c.heartbeats(first, rate)
	}
	first.stop(c.t)
	again := c.start(dir)
	c.programmed(again, "restart")
	c.rest(again, "the first minute")
	again.stop(c.t)
}

// fill makes the Nodes: number 0 is ours.
func (c cost) fill() (size int) {
	bodies := make(chan []byte)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for b := range bodies {
				if code, text := c.server.try(c.t, http.MethodPost, "/api/v1/nodes", adminToken, b); code != http.StatusCreated {
					c.t.Errorf("%d %s", code, text)
				}
			}
		})
	}
	for i := range c.peers + 1 {
		b, err := json.Marshal(bigNode(i))
		if err != nil {
			c.t.Fatal(err)
		}
		size = len(b)
		bodies <- b
	}
	close(bodies)
	wg.Wait()
	return size
}

// bigNode returns a Node as a kubelet with fifty images makes it.
func bigNode(i int) map[string]any {
	public := fmt.Sprintf("172.30.%d.%d", i/250, i%250+1)
	var images []any
	for k := range 50 {
		images = append(images, map[string]any{"sizeBytes": 123456789 + k, "names": []string{
			fmt.Sprintf("registry.example.com/some/project/application-%d@sha256:%064x", k, k),
			fmt.Sprintf("registry.example.com/some/project/application-%d:v1.%d.0", k, k),
		}})
	}
	var conditions []any
	for _, kind := range []string{"MemoryPressure", "DiskPressure", "PIDPressure", "Ready"} {
		conditions = append(conditions, map[string]any{"type": kind, "status": "False", "reason": "Kubelet" + kind, "message": "kubelet has " + kind,
			"lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"})
	}
	annotations := map[string]string{"node.alpha.kubernetes.io/ttl": "300", "volumes.kubernetes.io/controller-managed-attach-detach": "true"}
	if i > 0 {
		annotations[prefix+"kube-subnet-manager"], annotations[prefix+"backend-type"] = "true", "vxlan"
		annotations[prefix+"public-ip"] = public
		annotations[prefix+"backend-data"] = fmt.Sprintf(`{"VNI":1,"VtepMAC":"0e:00:00:00:%02x:%02x"}`, i/256, i%256)
		annotations[prefix+"x-weft"] = `{"receive":[{"key":"vxlan/1/8472","type":"vxlan"}],"send":["vxlan/1/8472"]}`
	}
	labels := map[string]string{}
	for k := range 30 {
		labels[fmt.Sprintf("example.com/some-label-%d", k)] = "some-value"
	}
	cidr := fmt.Sprintf("10.%d.%d.0/24", 64+i/256, i%256)
	return map[string]any{
		"metadata": map[string]any{"name": fmt.Sprintf("node-%d.cluster.example.com", i), "annotations": annotations, "labels": labels},
		"spec":     map[string]any{"podCIDR": cidr, "podCIDRs": []string{cidr}},
		"status": map[string]any{"images": images, "conditions": conditions, "addresses": []any{
			map[string]any{"type": "InternalIP", "address": public}, map[string]any{"type": "Hostname", "address": fmt.Sprintf("node-%d", i)}}},
	}
}

// A daemon is a running flanneld.
type daemon struct {
	cmd   *exec.Cmd
	began time.Time
	group cgroup
}

func (c cost) start(dir string) daemon {
	c.t.Helper()
	write(c.t, filepath.Join(dir, "net-conf.json"), `{"Network":"10.64.0.0/10","Backend":{"Type":"vxlan"}}`)
	return startDaemon(c.t, dir, "node-0.cluster.example.com", c.server.kubeconfig(c.t, c.server.url, flannelToken))
}

// programmed waits until there is a route to every peer and flanneld is ready with all of them.
func (c cost) programmed(d daemon, what string) {
	c.t.Helper()
	socket := "" // of the status, beside the subnet file
	for _, a := range d.cmd.Args {
		if rest, ok := strings.CutPrefix(a, "--subnet-file="); ok {
			socket = strings.TrimSuffix(rest, ".env") + ".sock"
		}
	}
	eventually(c.t, what, func() bool {
		out, err := exec.Command("curl", "-s", "--unix-socket", socket, "http://flanneld/metrics").Output()
		return err == nil && bytes.Contains(out, []byte("weft_ready 1\n")) &&
			bytes.Contains(out, fmt.Appendf(nil, "weft_peers{family=\"IPv4\",way=\"vxlan\"} %d\n", c.peers))
	})
	c.t.Logf("%s: all peers programmed after %d ms, %d ms of CPU, %s", what, time.Since(d.began).Milliseconds(), d.cpu(c.t).Milliseconds(), d.memory(c.t))
}

// rest measures a minute in which nothing changes; there are full passes all the same.
func (c cost) rest(d daemon, what string) {
	before, began := d.cpu(c.t), time.Now()
	m := d.sample(c.t, time.Minute)
	c.t.Logf("%s: %.2f %% of a core, %s; now %s", what, percent(d.cpu(c.t)-before, time.Since(began)), m, d.memory(c.t))
}

// heartbeats patches the status of rate Nodes a second, or as many as go, for a while.
func (c cost) heartbeats(d daemon, rate int) {
	tick := time.NewTicker(time.Second / time.Duration(max(rate, 1)))
	defer tick.Stop()
	var done atomic.Int64
	work := make(chan int)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range work {
				now := time.Now().UTC().Format(time.RFC3339)
				code, text := c.server.try(c.t, http.MethodPatch, fmt.Sprintf("/api/v1/nodes/node-%d.cluster.example.com/status", i), adminToken,
					fmt.Appendf(nil, `{"status":{"conditions":[{"type":"Ready","lastHeartbeatTime":%q,"message":"beat %d"}]}}`, now, time.Now().UnixNano()))
				if code != http.StatusOK {
					c.t.Errorf("%d %s", code, text)
				}
				done.Add(1)
			}
		})
	}
	before, began := d.cpu(c.t), time.Now()
	for i := 0; time.Since(began) < 30*time.Second; i++ {
		<-tick.C
		work <- 1 + i%c.peers
	}
	close(work)
	wg.Wait()
	used, took := d.cpu(c.t)-before, time.Since(began)
	c.t.Logf("%.0f heartbeats a second: %.2f %% of a core, %.0f µs each, %s", float64(done.Load())/took.Seconds(),
		percent(used, took), float64(used.Microseconds())/float64(done.Load()), d.memory(c.t))
}

func percent(used, took time.Duration) float64 { return 100 * used.Seconds() / took.Seconds() }

// cpu returns the CPU time that the daemon has used; the kernel counts it in 10 ms here.
func (d daemon) cpu(t *testing.T) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
	user, err1 := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	if err1 != nil || err2 != nil {
		t.Fatalf("unreadable: %s", b)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}
