// Package cni drives the CNI plugin as a runtime does: with libcni, the specification's own library, in a
// node made of namespaces.
package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/cni/rules"
	"github.com/weftnet/weft/internal/netnstest"
)

// The conflist of the original's manifest, and of ours.
const (
	stock = `{"name":"cbr0","cniVersion":"0.3.1","plugins":[
	  {"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},
	  {"type":"portmap","capabilities":{"portMappings":true}}]}`
	modern = `{"name":"cbr0","cniVersion":"1.1.0","plugins":[
	  {"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},
	  {"type":"portmap","capabilities":{"portMappings":true}},
	  {"type":"bandwidth","capabilities":{"bandwidth":true}}]}`
	dualEnv = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n" +
		"FLANNEL_IPV6_NETWORK=fd24::/48\nFLANNEL_IPV6_SUBNET=fd24:0:0:3::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
	v4Env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
)

// References are the directories of Debian's containernetworking-plugins.
const references = "/usr/lib/cni"

const (
	stateDir  = "/var/lib/cni/flannel"
	ipamDir   = "/var/lib/cni/networks/cbr0"
	envFile   = "/run/flannel/subnet.env"
	inNodeVar = "WEFT_TEST_NODE"
)

var (
	pluginPath = os.Getenv("WEFT_TEST_PLUGIN") // the binary under test, once it is built
	inNode     = os.Getenv(inNodeVar) != ""
)

func TestMain(m *testing.M) {
	if os.Getenv("WEFT_PLAY_ORIGINAL") != "" {
		if err := playOriginal(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if pluginPath != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "weft-cni")
	if err != nil {
		panic(err)
	}
	path := filepath.Join(dir, "flannel")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/weftnet/weft/cmd/flannel")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the plugin: %v\n%s", err, out)
		os.Exit(1)
	}
	pluginPath = path
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// asNode runs the calling test again, in a process with network and mount namespaces of its own, and
// returns false; in that process it returns true.
func asNode(t testing.TB) bool {
	t.Helper()
	if inNode {
		return true
	}
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.timeout=3h"}
	if strings.HasPrefix(t.Name(), "Benchmark") {
		args = []string{"-test.run=^$", "-test.bench=^" + t.Name() + "$", "-test.benchtime=1x"}
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), inNodeVar+"=1", "WEFT_TEST_PLUGIN="+pluginPath)
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if strings.HasPrefix(t.Name(), "Benchmark") {
		cmd.Stdout, cmd.Stderr = os.Stdout, nil // the figures; the original prints its configuration to stderr
	}
	err := cmd.Run()
	out := output.Bytes()
	switch {
	case errors.Is(err, fs.ErrPermission):
		netnstest.Unavailable(t, "new namespaces (root is needed): %v", err)
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP")):
		t.Skipf("%s", out)
	default:
		t.Logf("%s", out)
	}
	return false
}

// A node is a machine with an empty CNI directory but for our one file and the links to it.
type node struct {
	t   testing.TB
	bin string
	cni *libcni.CNIConfig
}

func newNode(t testing.TB, env string) *node {
	t.Helper()
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	for _, dir := range []string{"/run", "/var/lib/cni"} {
		must(t, os.MkdirAll(dir, 0o755))
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	}
	must(t, os.MkdirAll("/run/netns", 0o755))
	netnstest.Command(t, "ip", "link", "set", "lo", "up")
	n := &node{t: t, bin: t.TempDir()}
	must(t, copyFile(pluginPath, filepath.Join(n.bin, "flannel")))
	for _, name := range []string{"bridge", "host-local", "portmap", "loopback", "bandwidth"} {
		must(t, os.Symlink("flannel", filepath.Join(n.bin, name)))
	}
	n.cni = newLibcni(n.bin)
	n.setEnv(env)
	return n
}

func newLibcni(bin string) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{bin}, "/var/lib/cni/cache", nil)
}

// setEnv plays the agent.
func (n *node) setEnv(env string) {
	n.t.Helper()
	must(n.t, os.MkdirAll(filepath.Dir(envFile), 0o755))
	must(n.t, os.WriteFile(envFile+".tmp", []byte(env), 0o644))
	must(n.t, os.Rename(envFile+".tmp", envFile))
}

// A pod is a container id and a network namespace.
type pod struct {
	id, path string
}

// newPod makes a namespace and pins it.
func newPod(t testing.TB, id string) pod {
	t.Helper()
	p := pod{id: id, path: "/run/netns/" + id}
	f, err := os.Create(p.path)
	must(t, err)
	f.Close()
	must(t, aside(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", p.path, "", unix.MS_BIND, "")
	}))
	return p
}

// kill ends the namespace, as when a sandbox dies without DEL. Its devices go soon after.
func (p pod) kill() error {
	return errors.Join(unix.Unmount(p.path, unix.MNT_DETACH), os.Remove(p.path))
}

// do runs f inside the pod.
func (p pod) do(f func() error) error {
	return aside(func() error {
		fd, err := unix.Open(p.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = unix.Setns(fd, unix.CLONE_NEWNET)
		unix.Close(fd)
		if err != nil {
			return err
		}
		return f()
	})
}

// aside runs f on a thread that ends with it. The main thread cannot end: the runtime parks it, and it would
// keep a namespace alive for good.
func aside(f func() error) error {
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			errs <- aside(f)
			runtime.UnlockOSThread()
			return
		}
		errs <- f() // and never unlocked
	}()
	return <-errs
}

// ip runs the ip command inside the pod.
func (p pod) ip(t testing.TB, args ...string) string {
	t.Helper()
	return netnstest.Command(t, "nsenter", append([]string{"--net=" + p.path, "ip"}, args...)...)
}

// A call is one attachment as a runtime asks for it.
type call struct {
	pod    pod
	ifName string // default eth0
	list   string // default stock
	caps   map[string]any
	args   [][2]string
}

func (n *node) prepare(c call) (*libcni.NetworkConfigList, *libcni.RuntimeConf) {
	n.t.Helper()
	if c.ifName == "" {
		c.ifName = "eth0"
	}
	if c.list == "" {
		c.list = stock
	}
	list, err := libcni.ConfListFromBytes([]byte(c.list))
	must(n.t, err)
	return list, &libcni.RuntimeConf{ContainerID: c.pod.id, NetNS: c.pod.path, IfName: c.ifName, CapabilityArgs: c.caps, Args: c.args}
}

func (n *node) tryAdd(c call) (*types100.Result, error) {
	list, rt := n.prepare(c)
	r, err := n.cni.AddNetworkList(context.Background(), list, rt)
	if err != nil {
		return nil, err
	}
	return types100.NewResultFromResult(r)
}

func (n *node) add(c call) *types100.Result {
	n.t.Helper()
	r, err := n.tryAdd(c)
	must(n.t, err)
	return r
}

func (n *node) tryDel(c call) error {
	list, rt := n.prepare(c)
	return n.cni.DelNetworkList(context.Background(), list, rt)
}

func (n *node) del(c call) {
	n.t.Helper()
	must(n.t, n.tryDel(c))
}

func (n *node) check(c call) error {
	list, rt := n.prepare(c)
	return n.cni.CheckNetworkList(context.Background(), list, rt)
}

// raw calls the plugin without libcni, which leaves nothing out of what is said.
func (n *node) raw(verb, plugin, conf string, p pod, env ...string) (string, error) {
	cmd := exec.Command(filepath.Join(n.bin, plugin))
	cmd.Env = append([]string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + p.id, "CNI_NETNS=" + p.path, "CNI_IFNAME=eth0", "CNI_PATH=" + n.bin,
	}, env...)
	cmd.Stdin = strings.NewReader(conf)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	if stderr.Len() > 0 {
		n.t.Errorf("%s %s prints to stderr: %s", plugin, verb, stderr.String())
	}
	return out.String(), err
}

// first returns the plugin's own configuration out of a list.
func first(t testing.TB, list string) string {
	t.Helper()
	var l struct {
		Name, CNIVersion string
		Plugins          []map[string]any
	}
	must(t, json.Unmarshal([]byte(list), &l))
	l.Plugins[0]["name"], l.Plugins[0]["cniVersion"] = l.Name, l.CNIVersion
	raw, err := json.Marshal(l.Plugins[0])
	must(t, err)
	return string(raw)
}

// leavings lists everything that attachments left on the node.
func (n *node) leavings() []string {
	n.t.Helper()
	var found []string
	links, err := netlink.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) { // a namespace that was left goes in its own time, and takes its devices along
		links, err = netlink.LinkList()
	}
	must(n.t, err)
	for _, l := range links {
		if t := l.Type(); (t == "veth" || t == "ifb") && l.Attrs().Name != "wire0" {
			found = append(found, t+" "+l.Attrs().Name)
		}
	}
	for _, dir := range []string{stateDir, ipamDir} {
		entries, err := os.ReadDir(dir)
		if !errors.Is(err, fs.ErrNotExist) {
			must(n.t, err)
		}
		for _, e := range entries {
			if e.Name() != "lock" && !strings.HasPrefix(e.Name(), "last_reserved_ip") {
				found = append(found, filepath.Join(dir, e.Name()))
			}
		}
	}
	conn, err := rules.Open()
	must(n.t, err)
	defer conn.Close()
	labels, err := conn.Count()
	must(n.t, err)
	for label, count := range labels {
		found = append(found, fmt.Sprintf("%d rules of %s", count, label))
	}
	slices.Sort(found)
	return found
}

func (n *node) wantClean() {
	n.t.Helper()
	if found := n.leavings(); len(found) > 0 {
		n.t.Errorf("left behind:\n%s", strings.Join(found, "\n"))
	}
}

// address returns the pod's address of a family, 4 or 6.
func address(t testing.TB, r *types100.Result, version int) netip.Addr {
	t.Helper()
	for _, ip := range r.IPs {
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		if a = a.Unmap(); a.Is4() == (version == 4) {
			return a
		}
	}
	t.Fatalf("no IPv%d address in %v", version, r)
	return netip.Addr{}
}

func copyFile(from, to string) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, raw, 0o755)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until f holds.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute) // the kernel takes namespaces down one after the other
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (n *node) status(conflist string) error {
	list, err := libcni.ConfListFromBytes([]byte(conflist))
	must(n.t, err)
	return n.cni.GetStatusNetworkList(context.Background(), list)
}
