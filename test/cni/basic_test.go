package cni

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/agent"
	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/subnetfile"
)

func TestStockConflistWithOneFile(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, dualEnv)
	a, b := newPod(t, "a"), newPod(t, "b")
	ra := n.add(call{pod: a})
	n.add(call{pod: a, ifName: "lo", list: `{"name":"lo","cniVersion":"0.3.1","plugins":[{"type":"loopback"}]}`})
	rb := n.add(call{pod: b})
	for _, version := range []int{4, 6} {
		to := netip.AddrPortFrom(address(t, ra, version), 80)
		serve(t, a.do, to)
		for name, from := range map[string]func(func() error) error{"node": here, "other pod": b.do, "own pod": a.do} {
			for _, network := range []string{"tcp", "udp"} {
				seen, err := ask(from, network, to)
				if err != nil {
					t.Errorf("%s %s from %s: %v", network, to, name, err)
				}
				if want := address(t, rb, version); name == "other pod" && seen != want {
					t.Errorf("%s %s: server sees %s, not %s", network, to, seen, want)
				}
			}
		}
	}
	if got := a.ip(t, "route"); !strings.Contains(got, "default via 10.244.3.1 dev eth0") || !strings.Contains(got, "10.244.0.0/16 via 10.244.3.1 dev eth0") {
		t.Errorf("routes:\n%s", got)
	}
	if got := a.ip(t, "-6", "addr"); strings.Contains(got, "tentative scope global") || !strings.Contains(got, "fd24:0:0:3::2/64 scope global nodad") {
		t.Errorf("addresses:\n%s", got)
	}
	if got := netnstest.Command(t, "bridge", "-d", "link"); strings.Count(got, "hairpin on") != 2 {
		t.Errorf("hairpin:\n%s", got)
	}
	n.del(call{pod: a})
	n.del(call{pod: a}) // twice
	must(t, b.kill())
	n.del(call{pod: b}) // without namespace
	n.wantClean()
}

func TestStateFileIsTheOriginals(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, dualEnv)
	n.add(call{pod: newPod(t, "a"), list: strings.Replace(stock, "0.3.1", "1.1.0", 1)})
	want := `{"cniVersion":"1.1.0","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.3.0/24"}],[{"subnet":"fd24:0:0:3::/64"}]],"routes":[{"dst":"10.244.0.0/16"},{"dst":"fd24::/48"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}`
	raw, err := os.ReadFile(filepath.Join(stateDir, "a"))
	must(t, err)
	if diff := cmp.Diff(want, string(raw)); diff != "" {
		t.Errorf("state file (-want +got):\n%s", diff)
	}
	entry, err := os.ReadFile(filepath.Join(ipamDir, "10.244.3.2"))
	must(t, err)
	if string(entry) != "a\r\neth0" {
		t.Errorf("address entry: %q", entry)
	}
	for path, want := range map[string]os.FileMode{stateDir: 0o700, stateDir + "/a": 0o600, ipamDir + "/10.244.3.2": 0o600} {
		info, err := os.Stat(path)
		must(t, err)
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, not %o", path, got, want)
		}
	}
}

func TestTwentyAtOnce(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, dualEnv)
	var wg sync.WaitGroup
	addrs := make([]netip.Addr, 40)
	errs := make([]error, len(addrs))
	pods := make([]pod, len(addrs))
	for i := range pods {
		pods[i] = newPod(t, "p"+string(rune('a'+i/26))+string(rune('a'+i%26)))
	}
	limit := make(chan struct{}, 20)
	for i, p := range pods {
		wg.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			r, err := n.tryAdd(call{pod: p})
			if errs[i] = err; err == nil {
				addrs[i] = address(t, r, 4)
			}
		})
	}
	wg.Wait()
	seen := map[netip.Addr]bool{}
	for i, a := range addrs {
		if errs[i] != nil {
			t.Errorf("pod %d: %v", i, errs[i])
		}
		if seen[a] {
			t.Errorf("address %s was given twice", a)
		}
		seen[a] = true
	}
	for i, p := range pods {
		wg.Go(func() { errs[i] = n.tryDel(call{pod: p}) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("DEL of pod %d: %v", i, err)
		}
	}
	n.wantClean()
}

func TestAddWaitsForTheAgent(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, v4Env)
	must(t, os.Remove(envFile))
	p := newPod(t, "a")
	done := make(chan error)
	go func() {
		_, err := n.tryAdd(call{pod: p})
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("ADD did not wait: %v", err)
	case <-time.After(500 * time.Millisecond):
	}
	n.setEnv(v4Env)
	must(t, <-done)
	must(t, os.Remove(envFile))
	n.del(call{pod: p}) // needs no subnet.env
	n.wantClean()
	_, err := n.tryAdd(call{pod: p})
	if err == nil || !strings.Contains(err.Error(), envFile+" is not there") {
		t.Errorf("ADD without %s: %v", envFile, err)
	}
	n.wantClean()
	err = n.status(modern)
	if err == nil || !strings.Contains(err.Error(), envFile+" is not there") {
		t.Errorf("STATUS without %s: %v", envFile, err)
	}
	l, err := agent.ListenSocket(subnetfile.Socket(envFile))
	must(t, err)
	defer l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_ = agent.Serve(ctx, l, agent.New(agent.Options{}, agent.Parts{}, slog.New(slog.DiscardHandler)).SocketHandler())
	}()
	if err = n.status(modern); err == nil || !strings.Contains(err.Error(), "flanneld says: starting") {
		t.Errorf("STATUS while flanneld waits: %v", err)
	}
	n.setEnv(v4Env)
	must(t, n.status(modern))
}

func TestOneFamily(t *testing.T) {
	if !asNode(t) {
		return
	}
	for version, env := range map[int]string{
		4: v4Env,
		6: "FLANNEL_IPV6_NETWORK=fd24::/48\nFLANNEL_IPV6_SUBNET=fd24:0:0:3::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
	} {
		n := newNode(t, env)
		a, b := newPod(t, "a"), newPod(t, "b")
		ca := call{pod: a, list: modern, caps: mappings(mapped(8080, 80, "tcp"))}
		ra := n.add(ca)
		mac := strings.Fields(netnstest.Command(t, "ip", "-br", "link", "show", "cni0"))[2]
		for i := range 10 {
			n.add(call{pod: newPod(t, "more"+string(rune('a'+i)))})
		}
		if now := strings.Fields(netnstest.Command(t, "ip", "-br", "link", "show", "cni0"))[2]; now != mac {
			t.Errorf("IPv%d: the bridge's MAC follows its ports: %s, now %s", version, mac, now)
		}
		n.add(call{pod: b})
		if len(ra.IPs) != 1 {
			t.Errorf("IPv%d: addresses %v", version, ra.IPs)
		}
		serve(t, a.do, netip.AddrPortFrom(address(t, ra, version), 80))
		if _, err := ask(b.do, "tcp", netip.AddrPortFrom(address(t, ra, version), 80)); err != nil {
			t.Errorf("IPv%d: %v", version, err)
		}
		must(t, n.check(ca))
		netnstest.Command(t, "ip", "link", "del", "cni0")
	}
}
