package kube_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/netnstest"
)

// TestDaemon runs a real flanneld on a real API server through what happens to a node: no podCIDR, one in a range that the
// network gets later, hints that change, a new configuration, an API server that is away when the node boots.
func TestDaemon(t *testing.T) {
	if os.Getenv(insideVariable) == "" {
		inside(t, "TestDaemon")
		return
	}
	connect(t)
	netnstest.Command(t, "ip", "addr", "add", "172.30.0.2/16", "dev", "eth0")
	server := startAPIServer(t)
	server.grant(t)
	server.createNode(t, "n1")
	for name, peer := range map[string][2]string{"n2": {"10.64.2.0/24", "9"}, "n3": {"10.66.3.0/24", "8"}} {
		server.createNode(t, name, peer[0])
		server.annotate(t, name, prefix, map[string]*string{
			"kube-subnet-manager": new("true"), "backend-type": new("vxlan"), "public-ip": new("172.30.0." + peer[1]),
			"backend-data": new(`{"VNI":1,"VtepMAC":"0e:00:00:00:00:0` + peer[1] + `"}`),
		})
	}
	n := host{t: t, server: server, dir: t.TempDir(), gate: newGate(t, server.url)}
	n.configure(`{"Network":"10.63.0.0/16","Backend":{"Type":"vxlan"}}`)
	n.start()
	n.waits("node n1 has no podCIDR")
	server.do(t, http.MethodPatch, "/api/v1/nodes/n1", `{"spec":{"podCIDR":"10.64.1.0/24","podCIDRs":["10.64.1.0/24"]}}`)
	n.waits("podCIDR 10.64.1.0/24 of node n1 is not inside Network 10.63.0.0/16")
	n.configure(`{"Network":"10.65.0.0/16","Backend":{"Type":"vxlan"}}`)
	n.waits("podCIDR 10.64.1.0/24 of node n1 is not inside Network 10.65.0.0/16")
	n.configure(`{"Network":"10.65.0.0/16","AdditionalNetworks":["10.64.0.0/16"],"Backend":{"Type":"vxlan"}}`)
	n.ready()
	n.networks("10.65.0.0/16,10.64.0.0/16")
	n.annotated("public-ip", "172.30.0.1")
	eventually(t, "the condition is set", func() bool {
		status, reason, _ := server.node(t, "n1").condition("NetworkUnavailable")
		return status == "False" && reason == "FlannelIsUp"
	})
	n.route("10.64.2.0/24 via 10.64.2.0 dev flannel.1")

	if strings.Contains(n.routes(), "10.66.3.0/24") {
		t.Error("there is a route to a node outside the network")
	}
	const more = `"Network":"10.65.0.0/16","AdditionalNetworks":["10.64.0.0/16","10.66.0.0/16"]`
	n.configure(`{` + more + `,"Backend":{"Type":"vxlan"}}`)
	n.route("10.66.3.0/24 via 10.66.3.0 dev flannel.1")
	n.networks("10.65.0.0/16,10.64.0.0/16,10.66.0.0/16")

	server.setStatus(t, "n1", `{"addresses":[{"type":"InternalIP","address":"172.30.0.2"}]}`)
	server.annotate(t, "n1", prefix, map[string]*string{"public-ip-overwrite": new("203.0.113.1")})
	n.annotated("public-ip", "203.0.113.1")
	server.annotate(t, "n1", prefix, map[string]*string{"public-ip-overwrite": nil, "node-public-ip": new("172.30.0.2")})
	n.annotated("public-ip", "172.30.0.2")

	n.configure(`{` + more + `,"Backend":{"Type":"vxlan","DirectRouting":true}}`)
	n.route("10.64.2.0/24 via 172.30.0.9 dev eth0")
	n.configure(`{"Network":"10.65.0.0/16","Backend":{"Type":"vxlan"}}`)
	n.notes("takes effect when flanneld is restarted")
	n.configure(`{` + more + `,"Backend":{"Type":"vxlan"}}`)
	n.route("10.64.2.0/24 via 10.64.2.0 dev flannel.1")
	mac := server.node(t, "n1").Metadata.Annotations[prefix+"backend-data"]

	// A boot while the API server is away: the network is as it was, without a word of the server.
	n.d.stop(t)
	netnstest.Command(t, "ip", "link", "del", "flannel.1")
	if err := os.Remove(filepath.Join(n.dir, "subnet.env")); err != nil {
		t.Fatal(err)
	}
	n.gate.set(true)
	n.start()
	n.ready()
	n.notes("the store does not answer")
	n.route("10.64.2.0/24 via 10.64.2.0 dev flannel.1")
	server.annotate(t, "n2", prefix, map[string]*string{"kube-subnet-manager": new("false")})
	n.gate.set(false)
	eventually(t, "the departed peer's route goes", func() bool { return !strings.Contains(n.routes(), "10.64.2.0/24") })
	n.annotated("backend-data", mac)
	n.annotated("public-ip", "172.30.0.2")
	n.d.stop(t)
}

// A host is where a flanneld runs.
type host struct {
	t      *testing.T
	server *apiServer
	gate   *gate
	dir    string
	d      daemon
}

// configure swaps the configuration as the kubelet swaps a ConfigMap volume.
func (n *host) configure(conf string) {
	n.t.Helper()
	volume, err := os.MkdirTemp(n.dir, "..2026_")
	if err != nil {
		n.t.Fatal(err)
	}
	write(n.t, filepath.Join(volume, "net-conf.json"), conf)
	if err := os.Symlink(filepath.Base(volume), n.dir+"/..data_tmp"); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(n.dir+"/..data_tmp", n.dir+"/..data"); err != nil {
		n.t.Fatal(err)
	}
	_ = os.Symlink("..data/net-conf.json", n.dir+"/net-conf.json") // there already but the first time
}

func (n *host) start() {
	n.d = startDaemon(n.t, n.dir, "n1", n.server.kubeconfig(n.t, n.gate.url(), flannelToken))
}

// get asks the daemon through its socket.
func (n *host) get(path string) string {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.dir, "subnet.sock"))
	}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://flanneld" + path)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (n *host) readyz(want string) {
	n.t.Helper()
	var got string
	defer func() {
		if n.t.Failed() {
			n.t.Logf("readyz says\n%s", got)
		}
	}()
	eventually(n.t, "readyz says "+want, func() bool {
		got = n.get("/readyz")
		return strings.Contains(got, want)
	})
}

func (n *host) waits(reason string) { n.t.Helper(); n.readyz(reason) }
func (n *host) notes(note string)   { n.t.Helper(); n.readyz(note) }
func (n *host) ready()              { n.t.Helper(); n.readyz("flanneld is ready\n") }

func (n *host) annotated(name, value string) {
	n.t.Helper()
	eventually(n.t, name+" is "+value, func() bool {
		var o object
		code, b := n.server.try(n.t, http.MethodGet, "/api/v1/nodes/n1", adminToken, nil)
		return code == http.StatusOK && json.Unmarshal(b, &o) == nil && o.Metadata.Annotations[prefix+name] == value
	})
}

func (n *host) routes() string {
	out, err := exec.Command("ip", "route", "show", "proto", "119").Output()
	if err != nil {
		n.t.Fatal(err)
	}
	return string(out)
}

// networks waits until pods are told of these ranges.
func (n *host) networks(want string) {
	n.t.Helper()
	eventually(n.t, "subnet.env has "+want, func() bool {
		text, err := os.ReadFile(filepath.Join(n.dir, "subnet.env"))
		return err == nil && strings.Contains(string(text), "FLANNEL_NETWORK="+want+"\n")
	})
}

func (n *host) route(want string) {
	n.t.Helper()
	eventually(n.t, "route "+want, func() bool { return strings.Contains(n.routes(), want) })
}

// startDaemon starts flanneld for a node with its files in dir.
func startDaemon(t *testing.T, dir, node, kubeconfig string) daemon {
	t.Helper()
	logFile := filepath.Join(dir, "log")
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	group := newCgroup(t)
	cmd := group.command(os.Getenv(insideVariable), "--kube-subnet-mgr", "--ip-masq", "--kubeconfig-file="+kubeconfig,
		"--net-config-path="+filepath.Join(dir, "net-conf.json"), "--subnet-file="+filepath.Join(dir, "subnet.env"),
		"--snapshot-file="+filepath.Join(dir, "snapshot"))
	cmd.Env = append(os.Environ(), "NODE_NAME="+node)
	cmd.Stdout, cmd.Stderr = log, log
	d := daemon{cmd, time.Now(), group}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // also when the test fails before
		_ = cmd.Process.Kill()
		if t.Failed() {
			text, _ := os.ReadFile(logFile)
			t.Logf("%s", bytes.TrimSpace(text[max(0, len(text)-8000):]))
		}
	})
	return d
}

func (d daemon) stop(t *testing.T) {
	t.Helper()
	_ = d.cmd.Process.Signal(unix.SIGTERM)
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("flanneld: %v", err)
	}
}
