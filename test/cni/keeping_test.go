package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/cni/rules"
	"github.com/weftnet/weft/internal/netnstest"
)

func TestCheckSeesDamage(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, dualEnv)
	for i, c := range []struct {
		name, command, want string // POD and PORT stand for what they say
	}{
		{"nothing", "true", ""},
		{"address deleted in the pod", "POD ip addr del IP4/24 dev eth0", "has no address"},
		{"IPv6 address deleted in the pod", "POD ip -6 addr flush dev eth0 scope global", "has no address fd24"},
		{"default route deleted in the pod", "POD ip route del default", "no route to 0.0.0.0/0"},
		{"pod's interface down", "POD ip link set eth0 down", "is down"},
		{"pod's MAC changed", "POD ip link set eth0 address 02:00:00:00:00:07", "has MAC"},
		{"pod's MTU changed", "POD ip link set eth0 mtu 1300", "has MTU 1300"},
		{"port deleted", "ip link del PORT", "is gone"},
		{"port taken off the bridge", "ip link set PORT nomaster", "not on the bridge"},
		{"hairpin off", "bridge link set dev PORT hairpin off", "no hairpin"},
		{"port down", "ip link set PORT down", "is down"},
		{"gateway address deleted", "ip addr del 10.244.3.1/24 dev cni0", "cni0 has no address 10.244.3.1/24"},
		{"bridge down", "ip link set cni0 down", "cni0 is down"},
		{"forwarding off", "sysctl -qw net.ipv4.ip_forward=0", "does not forward IPv4"},
		{"entry removed", "rm " + ipamDir + "/IP4", "no entry"},
		{"hostPort rules removed", "nft flush chain ip weft-cni hostports", "hostPorts: 4 of 7 nftables rules"},
		{"state file removed", "rm -r " + stateDir, "no state file"},
		{"bridge deleted", "ip link del cni0", "cni0 is gone"},
	} {
		p := newPod(t, fmt.Sprintf("p%d", i))
		at := call{pod: p, list: modern, caps: mappings(mapped(8080, 80, "tcp"))}
		r := n.add(at)
		command := strings.NewReplacer("POD", "nsenter --net="+p.path, "PORT", r.Interfaces[1].Name, "IP4", address(t, r, 4).String()).Replace(c.command)
		netnstest.Command(t, "sh", "-c", command)
		err := n.check(at)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: CHECK says %v, not %q", c.name, err, c.want)
		}
		n.del(at)
	}
	n.wantClean()
}

func TestGC(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, dualEnv)
	keep := call{pod: newPod(t, "keep"), list: modern, caps: mappings(mapped(8080, 80, "tcp"))}
	r := n.add(keep)
	var lost []pod
	for i := range 5 {
		p := newPod(t, fmt.Sprintf("lost%d", i))
		lost = append(lost, p)
		n.add(call{pod: p, list: modern, caps: map[string]any{
			"portMappings": []any{mapped(9000+i, 80, "tcp")},
			"bandwidth":    map[string]any{"egressRate": 1 << 30, "egressBurst": 1 << 20},
		}})
	}
	before := n.leavings()
	must(t, lost[0].kill())
	must(t, lost[1].kill())
	list, err := libcni.ConfListFromBytes([]byte(modern))
	must(t, err)
	gc := func(valid ...types.GCAttachment) {
		must(t, n.cni.GCNetworkList(context.Background(), list, &libcni.GCArgs{ValidAttachments: valid}))
	}
	all := []types.GCAttachment{{ContainerID: "keep", IfName: "eth0"}}
	for _, p := range lost[2:] {
		all = append(all, types.GCAttachment{ContainerID: p.id, IfName: "eth0"})
	}
	// The rules of the ports go before the address: somebody may get it before portmap has its turn.
	raw, err := json.Marshal(all)
	must(t, err)
	if out, err := n.raw("GC", "flannel", strings.Replace(first(t, modern), "{", `{"cni.dev/valid-attachments":`+string(raw)+",", 1), pod{}); err != nil {
		t.Error(out)
	}
	if got := strings.Join(n.leavings(), "\n"); strings.Contains(got, "portmap cbr0/lost0") || !strings.Contains(got, "portmap cbr0/lost2") {
		t.Errorf("after GC of flannel:\n%s", got)
	}
	gc(all...)
	for _, f := range n.leavings() {
		if strings.Contains(f, "lost0") || strings.Contains(f, "lost1") {
			t.Errorf("GC left %s", f)
		}
	}
	cached, err := filepath.Glob("/var/lib/cni/cache/results/*lost*") // with these libcni would delete them itself
	must(t, err)
	if len(cached) != 3 {
		t.Errorf("libcni remembers %q", cached)
	}
	for _, path := range cached {
		must(t, os.Remove(path))
	}
	gc(all[0])
	for _, f := range n.leavings() {
		if strings.Contains(f, "lost") || strings.HasPrefix(f, "ifb") || strings.HasPrefix(f, "veth") && !strings.Contains(f, r.Interfaces[1].Name) {
			t.Errorf("GC left %s of\n%s", f, strings.Join(before, "\n"))
		}
	}
	must(t, n.check(keep))
	n.del(keep)
	n.wantClean()
}

// Another network may use the same bridge, and by mistake the same addresses: its pods live on.
func TestGCLeavesOtherNetworksAlone(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, v4Env)
	lost := call{pod: newPod(t, "lost"), list: modern}
	other := call{pod: newPod(t, "other"), list: strings.Replace(modern, "cbr0", "other", 1)}
	rl, ro := n.add(lost), n.add(other)
	if address(t, rl, 4) != address(t, ro, 4) {
		t.Fatalf("addresses %v, %v", rl, ro)
	}
	if out, err := n.raw("GC", "flannel", first(t, modern), pod{}); err != nil {
		t.Error(out)
	}
	must(t, n.check(other))
	n.del(other)
	n.del(lost)
	n.wantClean()
}

// 254 pods that die without DEL, over and over: the range is never full.
func TestFullRangeIsReclaimed(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, strings.ReplaceAll(v4Env, "10.244.3.1/24", "10.244.3.1/28"))
	live := n.add(call{pod: newPod(t, "live")})
	seen := map[netip.Addr]int{}
	for i := range 60 {
		p := newPod(t, fmt.Sprintf("p%d", i))
		r, err := n.tryAdd(call{pod: p, caps: mappings(mapped(9000+i, 80, "tcp"))})
		if err != nil {
			t.Fatalf("pod %d: %v", i, err)
		}
		if rules := n.ruleCount(); rules > 13*4 {
			t.Errorf("pod %d: %d rules: those of reclaimed pods stay", i, rules)
		}
		seen[address(t, r, 4)]++
		must(t, p.kill())
		eventually(t, "port is gone", func() bool {
			return !strings.Contains(netnstest.Command(t, "ip", "-o", "link"), r.Interfaces[1].Name)
		})
	}
	if seen[address(t, live, 4)] > 0 {
		t.Error("a living pod's address was given again")
	}
	// What cannot be reclaimed is not.
	for i := range 12 {
		if _, err := n.tryAdd(call{pod: newPod(t, fmt.Sprintf("q%d", i))}); err != nil {
			t.Fatalf("living pod %d: %v", i, err)
		}
	}
	_, err := n.tryAdd(call{pod: newPod(t, "toomany")})
	if err == nil || !strings.Contains(err.Error(), "belongs to a living pod") {
		t.Errorf("the 14th of 13: %v", err)
	}
}

// Torn and foreign files in the directories.
func TestDamagedFiles(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, v4Env)
	must(t, os.MkdirAll(ipamDir, 0o755))
	must(t, os.MkdirAll(stateDir, 0o700))
	write := func(path, content string) { must(t, os.WriteFile(path, []byte(content), 0o600)) }
	write(ipamDir+"/10.244.3.2", "") // torn
	write(ipamDir+"/10.244.3.3", "somebody\r\neth0")
	write(ipamDir+"/10.244.3.4", "old-entry-without-interface")
	must(t, os.Mkdir(ipamDir+"/subdirectory", 0o700))
	write(ipamDir+"/last_reserved_ip.0", "not an address")
	write(ipamDir+"/notes.txt", "10.244.3.5")
	netnstest.Command(t, "mkfifo", ipamDir+"/10.244.3.5")
	must(t, os.MkdirAll(ipamDir+"/10.244.3.6/x", 0o700))
	must(t, os.Symlink("/etc/passwd", ipamDir+"/10.244.3.7"))
	write(stateDir+"/torn", `{"cniVersion":`)
	p := newPod(t, "a")
	if got := address(t, n.add(call{pod: p}), 4).String(); got != "10.244.3.2" {
		t.Errorf("the torn entry's address is not given again but %s", got)
	}
	q := newPod(t, "b")
	r, err := n.tryAdd(call{pod: q})
	if err == nil {
		t.Logf("FIFO: got %s", address(t, r, 4))
		n.del(call{pod: q})
	}
	n.del(call{pod: p})
	n.del(call{pod: pod{id: "torn", path: "/run/netns/none"}})
	if _, err := os.Stat(stateDir + "/torn"); err == nil {
		t.Error("the torn state file is still there after DEL")
	}
	for _, f := range []string{"10.244.3.3", "10.244.3.4"} {
		if _, err := os.Stat(filepath.Join(ipamDir, f)); err != nil {
			t.Errorf("somebody else's entry: %v", err)
		}
	}
}

// DEL cleans up although the state file is gone, or holds what nobody could have added.
func TestDelWithoutItsFile(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, strings.Replace(dualEnv, "IPMASQ=true", "IPMASQ=false", 1)) // so that the plugin masquerades
	for i, content := range []string{"", `{"type":"bridge"`, `{"type":"bridge","mtu":"1450"}`, `{"type":"bridge","ipam":{"type":"host-local","ranges":[[{"subnet":"10.244.3.9/32"}]]}}`} {
		c := call{pod: newPod(t, fmt.Sprintf("p%d", i)), list: modern}
		n.add(c)
		must(t, os.RemoveAll(stateDir))
		if content != "" {
			must(t, os.Mkdir(stateDir, 0o700))
			must(t, os.WriteFile(filepath.Join(stateDir, c.pod.id), []byte(content), 0o600))
		}
		if err := n.tryDel(c); err != nil {
			t.Errorf("%q: %v", content, err)
		}
		n.wantClean()
	}
	p := newPod(t, "bad")
	for plugin, conf := range map[string]string{
		"bridge":     `{"name":"cbr0","cniVersion":"1.0.0","type":"bridge","runtimeConfig":{"mac":"none"},"ipam":{"type":"host-local","ranges":[[{"subnet":"10.244.3.0/24"}]]}}`,
		"host-local": `{"name":"cbr0","cniVersion":"1.0.0","type":"ptp","ipam":{"type":"host-local","ranges":[[{"subnet":"10.244.3.9/32"}]]}}`,
	} {
		if out, err := n.raw("ADD", plugin, conf, p); err == nil {
			t.Errorf("%s: ADD succeeds: %s", plugin, out)
		}
		if out, err := n.raw("DEL", plugin, conf, p); err != nil {
			t.Errorf("%s: DEL of an ADD that could not be: %s", plugin, out)
		}
	}
}

// The node gets another subnet while pods live.
func TestSubnetChanges(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, dualEnv)
	old := []call{{pod: newPod(t, "old1")}, {pod: newPod(t, "old2")}}
	r := n.add(old[0])
	n.add(old[1])
	n.setEnv(strings.NewReplacer("10.244.3.1", "10.244.9.1", "fd24:0:0:3::", "fd24:0:0:9::").Replace(dualEnv))
	fresh := call{pod: newPod(t, "new")}
	rn := n.add(fresh)
	if got := address(t, rn, 4).String(); got != "10.244.9.2" {
		t.Errorf("new pod has %s", got)
	}
	for _, version := range []int{4, 6} {
		to := netip.AddrPortFrom(address(t, r, version), 80)
		serve(t, old[0].pod.do, to)
		for name, from := range map[string]func(func() error) error{"node": here, "old pod": old[1].pod.do, "new pod": fresh.pod.do} {
			if _, err := ask(from, "tcp", to); err != nil {
				t.Errorf("from %s: %v", name, err)
			}
		}
	}
	has := func(addr string) bool {
		return strings.Contains(netnstest.Command(t, "ip", "addr", "show", "cni0"), addr)
	}
	n.del(old[0])
	if !has("10.244.3.1/24") || !has("fd24:0:0:3::1/64") {
		t.Error("the old gateway is gone while a pod lives")
	}
	n.del(old[1])
	if has("10.244.3.1/24") || has("fd24:0:0:3::1/64") {
		t.Error("the old gateway is still there when its last pod is gone")
	}
	if !has("10.244.9.1/24") || !has("fd24:0:0:9::1/64") {
		t.Error("the new gateway is gone")
	}
	netnstest.Command(t, "ip", "addr", "add", "192.168.77.1/24", "dev", "cni0") // somebody else's
	netnstest.Command(t, "ip", "addr", "add", "10.244.8.1/24", "dev", "cni0")   // left behind
	another := call{pod: newPod(t, "another")}
	n.add(another)
	if has("10.244.8.1/24") || !has("192.168.77.1/24") {
		t.Errorf("addresses:\n%s", netnstest.Command(t, "ip", "addr", "show", "cni0"))
	}
	// The last pod of a former subnet dies without DEL.
	n.setEnv(strings.NewReplacer("10.244.3.1", "10.244.7.1", "fd24:0:0:3::", "fd24:0:0:7::").Replace(dualEnv))
	dead := call{pod: newPod(t, "dead")}
	rd := n.add(dead)
	n.setEnv(strings.NewReplacer("10.244.3.1", "10.244.9.1", "fd24:0:0:3::", "fd24:0:0:9::").Replace(dualEnv))
	must(t, dead.pod.kill())
	eventually(t, "port is gone", func() bool {
		return !strings.Contains(netnstest.Command(t, "ip", "-o", "link"), rd.Interfaces[1].Name)
	})
	last := call{pod: newPod(t, "last")}
	n.add(last)
	if has("10.244.7.1/24") || has("fd24:0:0:7::1/64") {
		t.Error("the old gateway is still there when its last pod has died")
	}
	n.del(last)
	n.del(another)
	n.del(fresh)
	n.wantClean()
}

func TestTwoInterfacesOfOnePod(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, v4Env)
	p := newPod(t, "a")
	ports := mappings(mapped(8080, 80, "tcp"))
	eth0, net1 := call{pod: p, caps: ports, list: modern}, call{pod: p, ifName: "net1", list: strings.Replace(stock, "cbr0", "other", 1)}
	n.add(eth0)
	n.add(net1)
	shared, err := os.ReadFile(stateDir + "/a")
	must(t, err)
	if !strings.Contains(string(shared), `"name":"cbr0"`) {
		t.Errorf("the original's file is the second interface's: %s", shared)
	}
	must(t, n.check(eth0))
	n.del(eth0)
	if shared, err = os.ReadFile(stateDir + "/a"); err != nil || !strings.Contains(string(shared), `"name":"other"`) {
		t.Errorf("the original could not delete the interface that is left: %v: %s", err, shared)
	}
	if got := p.ip(t, "-o", "link"); !strings.Contains(got, "net1") || strings.Contains(got, "eth0@") {
		t.Errorf("interfaces after DEL of eth0:\n%s", got)
	}
	n.del(net1)
	n.wantClean()
	entries, err := os.ReadDir("/var/lib/cni/networks/other")
	must(t, err)
	if i := slices.IndexFunc(entries, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "10.") }); i >= 0 {
		t.Errorf("left behind: %s", entries[i].Name())
	}
}

func TestBridgeDeletedByHand(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, v4Env)
	a, b := newPod(t, "a"), newPod(t, "b")
	ra := n.add(call{pod: a})
	serve(t, a.do, netip.AddrPortFrom(address(t, ra, 4), 80))
	netnstest.Command(t, "ip", "link", "del", "cni0")
	n.add(call{pod: b})
	if got := netnstest.Command(t, "bridge", "-d", "link"); strings.Count(got, "hairpin on") != 2 {
		t.Errorf("hairpin:\n%s", got)
	}
	if _, err := ask(b.do, "tcp", netip.AddrPortFrom(address(t, ra, 4), 80)); err != nil {
		t.Errorf("the pod that was there before: %v", err)
	}
	isolated := strings.Replace(stock, `"hairpinMode":true`, `"portIsolation":true,"bridge":"br1"`, 1)
	n.add(call{pod: newPod(t, "c"), list: isolated})
	netnstest.Command(t, "ip", "link", "del", "br1")
	n.add(call{pod: newPod(t, "d"), list: isolated})
	if got := netnstest.Command(t, "bridge", "-d", "link"); strings.Count(got, "isolated on") != strings.Count(got, "master br1") {
		t.Errorf("isolation:\n%s", got)
	}
}

// No room left: ADD says so and leaves nothing, DEL works.
func TestFullDisk(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, v4Env)
	must(t, unix.Mount("tmpfs", "/var/lib/cni", "tmpfs", 0, "nr_inodes=24"))
	var pods []call
	for i := range 20 {
		c := call{pod: newPod(t, fmt.Sprintf("p%d", i))}
		before := n.leavings()
		out, err := n.raw("ADD", "flannel", first(t, stock), c.pod)
		if err != nil {
			if !strings.Contains(out, "no space left") {
				t.Errorf("pod %d: %s", i, out)
			}
			if diff := cmp.Diff(before, n.leavings()); diff != "" {
				t.Errorf("a failed ADD left something (-before +after):\n%s", diff)
			}
			break
		}
		pods = append(pods, c)
	}
	if len(pods) == 0 || len(pods) == 20 {
		t.Fatalf("%d pods fit", len(pods))
	}
	for _, c := range pods {
		if out, err := n.raw("DEL", "flannel", first(t, stock), c.pod); err != nil {
			t.Errorf("DEL: %s", out)
		}
	}
	n.wantClean()
}

// ruleCount is the number of per-pod rules on the node.
func (n *node) ruleCount() (sum int) {
	conn, err := rules.Open()
	must(n.t, err)
	defer conn.Close()
	labels, err := conn.Count()
	must(n.t, err)
	for _, count := range labels {
		sum += count
	}
	return sum
}

// A pod with more ports than the kernel's answers fit into a socket of the usual size.
func TestManyHostPorts(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, dualEnv)
	var list []map[string]any
	for i := range 1000 {
		list = append(list, mapped(20000+i, 80, "tcp"))
	}
	c := call{pod: newPod(t, "a"), caps: mappings(list...)}
	n.add(c)
	if got := n.ruleCount(); got != 5002 {
		t.Errorf("%d rules", got)
	}
	n.del(c)
	n.wantClean()
}
