package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/netnstest"
)

func TestEveryVersionOfTheSpecification(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, dualEnv)
	out, err := n.raw("VERSION", "flannel", "{}", pod{})
	must(t, err)
	var said struct{ SupportedVersions []string }
	must(t, json.Unmarshal([]byte(out), &said))
	versions := []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}
	if !slices.Equal(said.SupportedVersions, versions) {
		t.Errorf("VERSION says %s", said.SupportedVersions)
	}
	for i, v := range append(versions, "") {
		p := newPod(t, fmt.Sprintf("p%d", i))
		conf := fmt.Sprintf(`{"name":"cbr0","cniVersion":%q,"type":"flannel","delegate":{"isDefaultGateway":true}}`, v)
		if v == "" {
			conf = `{"name":"cbr0","type":"flannel","delegate":{"isDefaultGateway":true}}`
		}
		out, err := n.raw("ADD", "flannel", conf, p)
		if err != nil {
			t.Errorf("%s: ADD: %s", v, out)
			continue
		}
		var r struct {
			CNIVersion string
			IP4        struct{ IP string }
			IPs        []struct{ Address, Version string }
		}
		must(t, json.Unmarshal([]byte(out), &r))
		if v != "" && r.CNIVersion != v {
			t.Errorf("%s: the result says %s", v, r.CNIVersion)
		}
		old := v == "" || v < "0.3.0"
		if old != (r.IP4.IP != "") || old == (len(r.IPs) == 2) {
			t.Errorf("%s: result: %s", v, out)
		}
		if out, err := n.raw("DEL", "flannel", conf, p); err != nil || out != "" {
			t.Errorf("%s: DEL: %v, prints %q", v, err, out)
		}
	}
	n.wantClean()
}

func TestErrors(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, dualEnv)
	p := newPod(t, "a")
	conf := func(members string) string {
		return `{"name":"cbr0","cniVersion":"1.0.0","type":"flannel"` + members + `}`
	}
	for _, c := range []struct {
		name, conf, env string
		code            int
		want            string
	}{
		{"not JSON", `{"name":`, dualEnv, 6, ""},
		{"delegate.type is no string", conf(`,"delegate":{"type":7}`), dualEnv, 7, "delegate.type: 7 is not a string"},
		{"delegate.name given", conf(`,"delegate":{"name":"x"}`), dualEnv, 7, "delegate.name: remove it"},
		{"delegate.ipam given", conf(`,"delegate":{"ipam":{}}`), dualEnv, 7, "delegate.ipam: remove it"},
		{"unknown key", conf(`,"delegate":{"hairpinmode":true,"colour":"red"}`), dualEnv, 7, "colour, hairpinmode: not supported"},
		{"unknown ipam key", conf(`,"ipam":{"rangestart":"10.244.3.9"}`), dualEnv, 7, "ipam: rangestart: not supported"},
		{"vlan", conf(`,"delegate":{"vlan":5}`), dualEnv, 7, "vlan: not supported"},
		{"hairpin and promiscuous", conf(`,"delegate":{"hairpinMode":true,"promiscMode":true}`), dualEnv, 7, "only one of them"},
		{"no such delegate", conf(`,"delegate":{"type":"nosuch"}`), dualEnv, 7, `plugin "nosuch" is in none of`},
		{"delegate outside the directory", conf(`,"delegate":{"type":"../bin/sh"}`), dualEnv, 7, "is not the name of a plugin"},
		{"empty subnet.env", conf(""), "", 999, "no FLANNEL_NETWORK"},
		{"subnet.env without MTU", conf(""), strings.Replace(dualEnv, "FLANNEL_MTU=1450\n", "", 1), 999, "no FLANNEL_MTU"},
		{"subnet.env does not parse", conf(""), strings.Replace(dualEnv, "10.244.3.1/24", "ten", 1), 999, `"ten" is not an IPv4 prefix`},
		{"device of the bridge's name", conf(`,"delegate":{"bridge":"lo"}`), dualEnv, 999, "a device of that name exists and is a device"},
		{"unknown version", `{"name":"cbr0","cniVersion":"9.9.9","type":"flannel"}`, dualEnv, 1, "incompatible CNI versions"},
	} {
		n.setEnv(c.env)
		out, err := n.raw("ADD", "flannel", c.conf, p)
		var e struct {
			Code int
			Msg  string
		}
		if jsonErr := json.Unmarshal([]byte(out), &e); err == nil || jsonErr != nil {
			t.Errorf("%s: %v, prints %s", c.name, err, out)
			continue
		}
		if e.Code != c.code || !strings.Contains(e.Msg, c.want) {
			t.Errorf("%s: code %d, %q", c.name, e.Code, e.Msg)
		}
	}
	n.setEnv(dualEnv)
	for _, stdin := range []string{conf(`,"delegate":{"bridge":5}`), conf(`,"delegate":{"type":"nosuch"}`), conf(`,"ipam":{"dataDir":7}`)} {
		if out, err := n.raw("DEL", "flannel", stdin, p); err != nil || out != "" {
			t.Errorf("DEL of what was never added, %s: %v %s", stdin, err, out)
		}
	}
	for name, path := range map[string]string{"no namespace": "/run/netns/none", "a file": "/etc/passwd", "the node's own": "/proc/self/ns/net"} {
		out, err := n.raw("ADD", "flannel", conf(""), pod{id: "x", path: path})
		if err == nil || !strings.Contains(out, `"code":8`) {
			t.Errorf("%s: %s", name, out)
		}
	}
	n.wantClean()
}

// A delegate of another type, and another IPAM plugin, are called as the original would.
func TestOtherPlugins(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, v4Env)
	record := filepath.Join(t.TempDir(), "calls")
	fake := fmt.Sprintf("#!/bin/sh\n{ echo \"$0 $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME\" | sed 's#.*/##'; cat; echo; } >> %s\n", record)
	result := `[ $CNI_COMMAND != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.9.9/24","gateway":"10.9.9.1"}]}'` + "\n"
	for _, name := range []string{"other", "otheripam"} {
		must(t, os.WriteFile(filepath.Join(n.bin, name), []byte(fake+result), 0o755))
	}
	calls := func() string {
		raw, err := os.ReadFile(record)
		must(t, err)
		must(t, os.Remove(record))
		return string(raw)
	}
	p := newPod(t, "a")
	conf := `{"name":"cbr0","cniVersion":"1.0.0","type":"flannel","delegate":{"type":"other","master":"eth7"}}`
	delegate := `{"cniVersion":"1.0.0","ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.3.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"master":"eth7","mtu":1450,"name":"cbr0","type":"other"}`
	if out, err := n.raw("ADD", "flannel", conf, p); err != nil || !strings.Contains(out, "10.9.9.9") {
		t.Errorf("ADD: %v %s", err, out)
	}
	must(t, os.Remove(envFile))
	if out, err := n.raw("DEL", "flannel", conf, p); err != nil {
		t.Errorf("DEL: %v %s", err, out)
	}
	if got, want := calls(), "other ADD a eth0\n"+delegate+"\nother DEL a eth0\n"+delegate+"\n"; got != want {
		t.Errorf("calls:\n%s\nwant:\n%s", got, want)
	}
	n.setEnv(v4Env)
	n.wantClean()

	must(t, os.WriteFile(filepath.Join(n.bin, "other"), []byte("#!/bin/sh\necho '{\"code\":7,\"msg\":\"told you\"}'; exit 1\n"), 0o755))
	if out, err := n.raw("ADD", "flannel", conf, p); err == nil || !strings.Contains(out, "told you") {
		t.Errorf("an error of the delegate: %v %s", err, out)
	}
	if _, err := n.raw("DEL", "flannel", conf, p); err == nil {
		t.Error("DEL succeeds although the delegate's failed")
	}
	if _, err := os.Stat(stateDir + "/a"); err != nil {
		t.Errorf("the state file is gone after a DEL that failed: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(n.bin, "other"), []byte(fake), 0o755))
	if out, err := n.raw("DEL", "flannel", conf, p); err != nil {
		t.Errorf("DEL again: %v %s", err, out)
	}
	n.wantClean()
	calls()

	conf = `{"name":"cbr0","cniVersion":"1.0.0","type":"flannel","ipam":{"type":"otheripam"}}`
	if out, err := n.raw("ADD", "flannel", conf, p); err != nil || !strings.Contains(out, "10.9.9.9") {
		t.Errorf("ADD: %v %s", err, out)
	}
	if got := p.ip(t, "-4", "-o", "addr"); !strings.Contains(got, "10.9.9.9/24") {
		t.Errorf("addresses:\n%s", got)
	}
	if out, err := n.raw("DEL", "flannel", conf, p); err != nil {
		t.Errorf("DEL: %v %s", err, out)
	}
	if got := calls(); !strings.Contains(got, "otheripam ADD a eth0\n{") || !strings.Contains(got, "otheripam DEL a eth0\n{") {
		t.Errorf("calls:\n%s", got)
	}
	n.wantClean()

	// GC has the IPAM plugin free what it gave, and STATUS asks it.
	conf = `{"name":"cbr0","cniVersion":"1.1.0","type":"flannel","ipam":{"type":"otheripam"}}`
	must(t, os.WriteFile(filepath.Join(n.bin, "otheripam"), []byte(strings.ReplaceAll(fake+result, "1.0.0", "1.1.0")), 0o755))
	if out, err := n.raw("ADD", "flannel", conf, p); err != nil {
		t.Errorf("ADD: %v %s", err, out)
	}
	calls()
	if out, err := n.raw("GC", "flannel", conf, pod{}); err != nil {
		t.Errorf("GC: %v %s", err, out)
	}
	if got := calls(); !strings.Contains(got, "otheripam DEL a eth0\n{") {
		t.Errorf("calls of GC:\n%s", got)
	}
	n.wantClean()
	if out, err := n.raw("STATUS", "flannel", conf, pod{}); err != nil || !strings.Contains(calls(), "otheripam STATUS") {
		t.Errorf("STATUS: %v %s", err, out)
	}
	must(t, os.WriteFile(filepath.Join(n.bin, "otheripam"), []byte("#!/bin/sh\necho '{\"code\":50,\"msg\":\"no pool\"}'; exit 1\n"), 0o755))
	if out, err := n.raw("STATUS", "flannel", conf, pod{}); err == nil || !strings.Contains(out, "no pool") || !strings.Contains(out, `"code":50`) {
		t.Errorf("STATUS: %v %s", err, out)
	}
}

func TestKeysOfTheField(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, v4Env)
	p, q := newPod(t, "a"), newPod(t, "b")
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	must(t, os.WriteFile(resolv, []byte("nameserver 10.96.0.10\nsearch a.b c.d\noptions ndots:5\n"), 0o600))
	list := fmt.Sprintf(`{"name":"cbr0","cniVersion":"1.0.0","plugins":[{"type":"flannel","dataDir":"/var/lib/cni/elsewhere",
	  "capabilities":{"ips":true,"mac":true},
	  "delegate":{"bridge":"br7","promiscMode":true,"mtu":1300,"isDefaultGateway":false,"portIsolation":true,"forceAddress":true},
	  "ipam":{"dataDir":"/var/lib/cni/addresses","resolvConf":%q,"routes":[{"dst":"192.168.0.0/16","mtu":1200}]}}]}`, resolv)
	netnstest.Command(t, "ip", "link", "add", "br7", "type", "bridge")
	netnstest.Command(t, "ip", "addr", "add", "10.1.1.1/24", "dev", "br7")
	c := call{pod: p, list: list, caps: map[string]any{"ips": []string{"10.244.3.77/24"}, "mac": "02:00:00:00:00:77"}}
	r := n.add(c)
	if got := address(t, r, 4); got != netip.MustParseAddr("10.244.3.77") {
		t.Errorf("address %s", got)
	}
	if diff := fmt.Sprint(r.DNS); diff != "{[10.96.0.10]  [a.b c.d] [ndots:5]}" {
		t.Errorf("DNS: %s", diff)
	}
	for _, c := range []struct{ got, want string }{
		{p.ip(t, "-d", "link", "show", "eth0"), "02:00:00:00:00:77"},
		{p.ip(t, "-d", "link", "show", "eth0"), "mtu 1300"},
		{p.ip(t, "route"), "192.168.0.0/16 via 10.244.3.1 dev eth0 mtu 1200"},
		{netnstest.Command(t, "ip", "-d", "link", "show", "br7"), "PROMISC"},
		{netnstest.Command(t, "ip", "addr", "show", "br7"), "10.244.3.1/24"},
		{netnstest.Command(t, "bridge", "-d", "link"), "isolated on"},
		{netnstest.Command(t, "ls", "/var/lib/cni/addresses/cbr0"), "10.244.3.77"},
		{netnstest.Command(t, "ls", "/var/lib/cni/elsewhere"), "a:eth0"},
	} {
		if !strings.Contains(c.got, c.want) {
			t.Errorf("missing %q in\n%s", c.want, c.got)
		}
	}
	for _, c := range []struct{ got, not string }{
		{p.ip(t, "route"), "default"},
		{netnstest.Command(t, "ip", "addr", "show", "br7"), "10.1.1.1"},
	} {
		if strings.Contains(c.got, c.not) {
			t.Errorf("unwanted %q in\n%s", c.not, c.got)
		}
	}
	taken := call{pod: q, list: list, caps: map[string]any{"ips": []string{"10.244.3.77"}}}
	if _, err := n.tryAdd(taken); err == nil || !strings.Contains(err.Error(), "10.244.3.77") || !strings.Contains(err.Error(), "held by container a") {
		t.Errorf("an address that is taken: %v", err)
	}
	n.del(taken)
	must(t, n.check(c))
	n.del(c)
	n.wantClean()
	if left, _ := filepath.Glob("/var/lib/cni/addresses/cbr0/10.*"); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestInstall(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, v4Env)
	bin, conf := t.TempDir(), t.TempDir()
	must(t, os.Remove(envFile))
	install := func(want ...string) {
		t.Helper()
		out, err := exec.Command(pluginPath, "install", "--bin-dir", bin, "--conf-dir", conf).CombinedOutput()
		for _, w := range want {
			if !strings.Contains(string(out), w) {
				t.Errorf("install: %v: %q not in\n%s", err, w, out)
			}
		}
		if len(want) == 0 && (err != nil || len(out) > 0) {
			t.Errorf("a second install: %v\n%s", err, out)
		}
	}
	must(t, os.WriteFile(bin+"/portmap", []byte("somebody's"), 0o755))
	install("flannel: installed", "bridge: linked", "portmap: there already, left alone", "10-flannel.conflist: not written")
	if _, err := os.Stat(conf + "/10-flannel.conflist"); err == nil {
		t.Error("the conflist is there before the node has a subnet")
	}
	if raw, _ := os.ReadFile(bin + "/portmap"); string(raw) != "somebody's" {
		t.Error("another plugin's file was replaced")
	}
	must(t, os.Remove(bin+"/portmap"))
	n.setEnv(v4Env)
	must(t, os.WriteFile(conf+"/00-other.conflist", []byte("{}"), 0o644))
	install("portmap: linked", "10-flannel.conflist: written", "warning: "+conf+"/00-other.conflist sorts before")
	must(t, os.Remove(conf+"/00-other.conflist"))
	before, err := os.Stat(conf + "/10-flannel.conflist")
	must(t, err)
	install()
	after, err := os.Stat(conf + "/10-flannel.conflist")
	must(t, err)
	if !os.SameFile(before, after) {
		t.Error("the conflist was written although nothing changed")
	}
	must(t, os.WriteFile(bin+"/flannel", []byte("\x7fELF... github.com/flannel-io/cni-plugin ..."), 0o755))
	install("flannel: installed")
	must(t, os.WriteFile(bin+"/flannel", []byte("#!/bin/sh\necho nobody knows\n"), 0o755))
	install("is neither this plugin nor the original's: move it away")

	// With nothing but what was installed, pods come up.
	must(t, os.Remove(bin+"/flannel"))
	install("flannel: installed")
	n.bin, n.cni = bin, newLibcni(bin)
	raw, err := os.ReadFile(conf + "/10-flannel.conflist")
	must(t, err)
	c := call{pod: newPod(t, "a"), list: string(raw), caps: mappings(mapped(8080, 80, "tcp"))}
	n.add(c)
	n.del(c)
	n.wantClean()
}
