package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/netnstest"
)

// originalVar may name the original's own binary; without it a program of a few lines stands in for it,
// which stores, calls and deletes as the contract says.
const originalVar = "WEFT_ORIGINAL_CNI"

// upstream returns the node as the original leaves it: its plugin and the reference plugins.
func (n *node) upstream(t *testing.T) *node {
	t.Helper()
	for _, p := range []string{"bridge", "host-local", "portmap", "loopback"} {
		if _, err := os.Stat(filepath.Join(references, p)); err != nil {
			netnstest.Unavailable(t, "reference plugin %s (apt-get install containernetworking-plugins)", p)
		}
	}
	bin := t.TempDir()
	for _, p := range []string{"bridge", "host-local", "portmap", "loopback", "bandwidth"} {
		must(t, copyFile(filepath.Join(references, p), filepath.Join(bin, p)))
	}
	if path := os.Getenv(originalVar); path != "" {
		must(t, copyFile(path, filepath.Join(bin, "flannel")))
	} else {
		self, err := os.Executable()
		must(t, err)
		script := fmt.Sprintf("#!/bin/sh\nWEFT_TEST_PLUGIN=x WEFT_PLAY_ORIGINAL=1 exec %s -test.run='^$'\n", self)
		must(t, os.WriteFile(filepath.Join(bin, "flannel"), []byte(script), 0o755))
	}
	return &node{t: t, bin: bin, cni: newLibcni(bin)}
}

// playOriginal is the stand-in: the contract's section on state, word for word.
func playOriginal() error {
	id, dir := os.Getenv("CNI_CONTAINERID"), stateDir
	call := func(stdin []byte) error {
		cmd := exec.Command(filepath.Join(os.Getenv("CNI_PATH"), "bridge"))
		cmd.Stdin, cmd.Stdout = bytes.NewReader(stdin), os.Stdout
		return cmd.Run()
	}
	if os.Getenv("CNI_COMMAND") == "DEL" {
		raw, err := os.ReadFile(filepath.Join(dir, id))
		if os.IsNotExist(err) {
			return nil
		}
		if err == nil {
			err = call(raw)
		}
		if err == nil {
			err = os.Remove(filepath.Join(dir, id))
		}
		return err
	}
	var c struct{ Name, CNIVersion string }
	if err := json.NewDecoder(os.Stdin).Decode(&c); err != nil {
		return err
	}
	raw, err := json.Marshal(map[string]any{
		"name": c.Name, "cniVersion": c.CNIVersion, "type": "bridge", "ipMasq": false, "mtu": 1450, "isGateway": true,
		"hairpinMode": true, "isDefaultGateway": true, "ipam": map[string]any{
			"type": "host-local", "ranges": [][]map[string]string{{{"subnet": "10.244.3.0/24"}}, {{"subnet": "fd24:0:0:3::/64"}}},
			"routes": []map[string]string{{"dst": "10.244.0.0/16"}, {"dst": "fd24::/48"}},
		}})
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, id), raw, 0o600)
	}
	if err == nil {
		err = call(raw)
	}
	return err
}

func TestTakeOverAndHandBack(t *testing.T) {
	if !asNode(t) {
		return
	}
	netnstest.Need(t, "iptables-nft", "iptables")
	ours := newNode(t, dualEnv)
	theirs := ours.upstream(t)
	ports := func(i int) map[string]any { return mappings(mapped(8000+i, 80, "tcp")) }
	var pods []call
	addrs := map[netip.Addr]bool{}
	add := func(n *node, name string) {
		c := call{pod: newPod(t, name), caps: ports(len(pods))}
		r := n.add(c)
		n.add(call{pod: c.pod, ifName: "lo", list: `{"name":"lo","cniVersion":"0.3.1","plugins":[{"type":"loopback"}]}`})
		for _, version := range []int{4, 6} {
			a := address(t, r, version)
			if addrs[a] {
				t.Errorf("%s has the address of another pod: %s", name, a)
			}
			addrs[a] = true
			serve(t, c.pod.do, netip.AddrPortFrom(a, 80))
		}
		pods = append(pods, c)
	}
	reachable := func(when string) {
		for a := range addrs {
			for name, from := range map[string]func(func() error) error{"node": here, "first pod": pods[0].pod.do, "last pod": pods[len(pods)-1].pod.do} {
				// The reference plugin's bridge detects duplicates of its link-local address at first.
				eventually(t, fmt.Sprintf("%s: %s from %s", when, a, name), func() bool {
					_, err := ask(from, "tcp", netip.AddrPortFrom(a, 80))
					return err == nil
				})
			}
		}
	}
	add(theirs, "theirs1") // deleted by ours
	add(theirs, "theirs2") // deleted by theirs, after ours were here
	add(ours, "ours1")     // deleted by theirs
	add(ours, "ours2")     // deleted by ours, after they were here again
	add(theirs, "theirs3")
	reachable("all kinds side by side")
	addrs = map[netip.Addr]bool{}
	ours.del(pods[0])
	theirs.del(pods[1])
	theirs.del(pods[2])
	ours.del(pods[3])
	theirs.del(pods[4])
	var left []string
	for _, f := range ours.leavings() {
		// The port mapping of a pod that the reference portmap deletes stays: see the test below.
		if !strings.Contains(f, "rules of portmap cbr0/ours1/eth0") && f != stateDir+"/ours1:eth0" {
			left = append(left, f)
		}
	}
	if len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	if got := netnstest.Command(t, "iptables-nft-save", "-t", "nat"); strings.Contains(got, "CNI-DN-") {
		t.Errorf("iptables rules left behind:\n%s", got)
	}
}

// What each kind of plugin made can be deleted by the other one's plugin of the same name.
func TestPartsDeleteEachOthersWork(t *testing.T) {
	if !asNode(t) {
		return
	}
	ours := newNode(t, dualEnv)
	theirs := ours.upstream(t)
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0"} {
		conf := fmt.Sprintf(`{"name":"cbr0","cniVersion":%q,"type":"bridge","bridge":"cni0","isGateway":true,"mtu":1450,
			"hairpinMode":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.244.3.0/24"}],[{"subnet":"fd24:0:0:3::/64"}]],
			"routes":[{"dst":"0.0.0.0/0"}]}}`, version)
		for i, pair := range [][2]*node{{ours, theirs}, {theirs, ours}} {
			p := newPod(t, fmt.Sprintf("p%d-%s", i, version))
			out, err := pair[0].raw("ADD", "bridge", conf, p)
			if err != nil {
				t.Fatalf("ADD: %v %s", err, out)
			}
			if out, err := pair[1].raw("DEL", "bridge", conf, p); err != nil {
				t.Errorf("DEL: %v %s", err, out)
			}
			ours.wantClean()
		}
	}
}

// What the reference plugins put into iptables goes when ours delete the pod, where iptables is nf_tables.
func TestReferenceRulesAreDeleted(t *testing.T) {
	if !asNode(t) {
		return
	}
	netnstest.Need(t, "iptables-nft", "iptables")
	ours := newNode(t, v4Env)
	theirs := ours.upstream(t)
	// The reference plugins run whatever is called iptables.
	path := t.TempDir()
	for _, name := range []string{"iptables", "ip6tables"} {
		target, err := exec.LookPath(name + "-nft")
		must(t, err)
		must(t, os.Symlink(target, filepath.Join(path, name)))
	}
	t.Setenv("PATH", path+":"+os.Getenv("PATH"))
	c := call{pod: newPod(t, "a"), caps: mappings(mapped(8080, 80, "tcp")), list: strings.Replace(referenceList, `"isGateway"`, `"ipMasq":true,"isGateway"`, 1)}
	theirs.add(c)
	before := netnstest.Command(t, "iptables-nft-save", "-t", "nat")
	if !strings.Contains(before, "-A CNI-HOSTPORT-DNAT") || strings.Count(before, "-A CNI-") < 5 {
		t.Fatalf("the reference plugins made no rules:\n%s", before)
	}
	ours.del(c)
	after := netnstest.Command(t, "iptables-nft-save", "-t", "nat")
	if strings.Contains(after, "CNI-DN-") || strings.Contains(after, `"cbr0"`) {
		t.Errorf("left behind:\n%s", after)
	}
	ours.wantClean()
}

// The original keeps one file for both interfaces of a pod, so the second overwrites the first one's; both
// can be deleted all the same.
func TestTwoInterfacesOfTheOriginals(t *testing.T) {
	if !asNode(t) {
		return
	}
	ours := newNode(t, dualEnv)
	theirs := ours.upstream(t)
	p := newPod(t, "a")
	eth0, net1 := call{pod: p}, call{pod: p, ifName: "net1", list: strings.Replace(stock, "cbr0", "other", 1)}
	theirs.add(eth0)
	theirs.add(net1)
	ours.del(eth0)
	if got := p.ip(t, "-o", "link"); !strings.Contains(got, "net1") {
		t.Errorf("interfaces after DEL of eth0:\n%s", got)
	}
	ours.del(net1)
	ours.wantClean()
	if left, _ := filepath.Glob("/var/lib/cni/networks/other/*.*.*.*"); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A second ADD without a DEL fails and costs the pod that lives nothing, whichever plugin attached it.
func TestAddTwice(t *testing.T) {
	if !asNode(t) {
		return
	}
	ours := newNode(t, dualEnv)
	for i, first := range []*node{ours, ours.upstream(t)} {
		c := call{pod: newPod(t, fmt.Sprintf("p%d", i)), list: strings.Replace(modern, "1.1.0", "1.0.0", 1)}
		first.add(c)
		before := ours.leavings()
		if _, err := ours.tryAdd(c); err == nil || !strings.Contains(err.Error(), "DEL comes before another ADD") {
			t.Errorf("the second ADD: %v", err)
		}
		if diff := cmp.Diff(before, ours.leavings()); diff != "" {
			t.Errorf("the second ADD makes a difference (-before +after):\n%s", diff)
		}
		ours.del(c)
		ours.wantClean()
	}
	p := newPod(t, "q")
	conf := `{"name":"cbr0","cniVersion":"1.0.0","type":"ptp","ipam":{"type":"host-local","ranges":[[{"subnet":"10.244.3.0/24"}]]}}`
	if out, err := ours.raw("ADD", "host-local", conf, p); err != nil {
		t.Fatal(out)
	}
	if out, err := ours.raw("ADD", "host-local", conf, p); err == nil || !strings.Contains(out, "DEL comes before another ADD") {
		t.Errorf("the second ADD of host-local: %v %s", err, out)
	}
	if out, err := ours.raw("DEL", "host-local", conf, p); err != nil {
		t.Error(out)
	}
	ours.wantClean()
}
