package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

// TestStoreOutagesLoseNoPacket stops, kills and compacts etcd and cuts a node off from it while every
// pod pings every other one a thousand times a second. Whatever happened meanwhile is followed after.
func TestStoreOutagesLoseNoPacket(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, lab.Options{Segments: three(), Family: lab.Dual, Config: config(lab.Dual, direct, true)})
	pods := addPods(ctx, t, l)
	awaitRoutes(ctx, t, l)
	pids := agentPIDs(l)
	ps := probeAll(t, pods)

	must(t, l.Etcd().Stop())
	ps.flowing(t)
	must(t, l.Etcd().Start(ctx))
	ps.flowing(t)
	wantFollowed(ctx, t, l, "a restart", 30)

	must(t, l.Etcd().Kill())
	ps.flowing(t)
	must(t, l.Etcd().Start(ctx))
	wantFollowed(ctx, t, l, "a crash", 31)

	must(t, l.Etcd().Compact(ctx))
	wantFollowed(ctx, t, l, "a compaction", 32)

	// What happens while A hears nothing cannot be replayed to it: the history is compacted away.
	must(t, l.Partition("A", true))
	ps.flowing(t)
	putPeer(ctx, t, l, 33)
	must(t, l.Etcd().Compact(ctx))
	must(t, l.Partition("A", false))
	took := eventually(t, 40*time.Second, "A follows after the partition", func() error { return hasPeer(ctx, l.Nodes[0], 33) })
	t.Logf("A followed %v after the partition's end", took.Round(time.Millisecond))

	ps.wantNoLoss(t)
	if now := agentPIDs(l); now != pids {
		t.Errorf("agents were restarted: processes %v, then %v", pids, now)
	}
}

func agentPIDs(l *lab.Lab) string {
	var s []string
	for _, n := range l.Nodes {
		s = append(s, fmt.Sprint(n.Agent.PID()))
	}
	return strings.Join(s, " ")
}

// wantFollowed has a peer join and wants all nodes to hear of it.
func wantFollowed(ctx context.Context, t *testing.T, l *lab.Lab, what string, peer int) {
	t.Helper()
	putPeer(ctx, t, l, peer)
	for _, n := range l.Nodes {
		eventually(t, 20*time.Second, n.Name+" follows after "+what, func() error { return hasPeer(ctx, n, peer) })
	}
}

// putPeer writes the lease of a node that does not exist.
func putPeer(ctx context.Context, t *testing.T, l *lab.Lab, peer int) {
	t.Helper()
	must(t, l.Etcd().Put(ctx, fmt.Sprintf("subnets/10.244.%d.0-24&fd24:0:0:ff%02d::-64", 200+peer%50, peer),
		fmt.Sprintf(`{"PublicIP":"192.0.2.%d","PublicIPv6":"2001:db8::%d","BackendType":"vxlan",`+
			`"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:01:%02d"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:02:%02d"}}`,
			peer, peer, peer, peer)))
}

// hasPeer looks for that node's routes and FDB entries.
func hasPeer(ctx context.Context, n *lab.Node, peer int) error {
	state, err := kernelStateOf(ctx, n)
	if err != nil {
		return err
	}
	for _, want := range []string{
		fmt.Sprintf("10.244.%d.0/24 via 10.244.%d.0 dev flannel.1", 200+peer%50, 200+peer%50),
		fmt.Sprintf("02:00:00:00:01:%02d dst 192.0.2.%d", peer, peer),
		fmt.Sprintf("02:00:00:00:02:%02d dst 2001:db8::%d", peer, peer),
	} {
		if !strings.Contains(state, want) {
			return fmt.Errorf("node %s lacks %q", n.Name, want)
		}
	}
	return nil
}

// TestNodeBootsWhileStoreIsDown has a node come up after a power cut with nothing but its disk.
func TestNodeBootsWhileStoreIsDown(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, lab.Options{Segments: three(), Family: lab.Dual, Config: config(lab.Dual, direct, true)})
	pods := addPods(ctx, t, l)
	awaitRoutes(ctx, t, l)
	a := l.Nodes[0]
	subnet := netip.PrefixFrom(pods["A"].Addr.V4, 24).Masked()
	// It is not written at each change, but within seconds.
	eventually(t, 10*time.Second, "both peers in the snapshot", func() error {
		snapshot, err := a.Exec(ctx, "sh", "-c", "cat /var/lib/flannel/*snapshot*")
		for _, peer := range l.Nodes[1:] {
			if err == nil && !strings.Contains(snapshot, peer.Addr().V4.String()) {
				err = fmt.Errorf("%s is not in it", peer.Name)
			}
		}
		return err
	})
	must(t, l.Etcd().Stop())
	must(t, a.Reboot())
	must(t, a.Agent.Launch())
	took := eventually(t, 15*time.Second, "subnet.env from the snapshot", func() error {
		_, err := a.Exec(ctx, "grep", "-q", "FLANNEL_SUBNET="+subnet.Addr().Next().String(), "/run/flannel/subnet.env")
		return err
	})
	pod, err := a.AddPod(ctx, "pod-again")
	must(t, err)
	eventually(t, 5*time.Second, "pods of a node that booted without etcd", func() error { return reaches(pod, pods["B"], pods["C"]) })
	t.Logf("subnet.env was there %v after the start", took.Round(time.Millisecond))
	if !subnet.Contains(pod.Addr.V4) {
		t.Errorf("pod address %s, want one of %s as before", pod.Addr.V4, subnet)
	}
	if log := strings.ToLower(a.Agent.Log()); !strings.Contains(log, "snapshot") {
		t.Error("the log does not say that the state comes from the snapshot")
	}
	if _, body, err := a.Agent.Get(ctx, "/readyz"); err != nil || !strings.Contains(body, "snapshot") {
		t.Errorf("/readyz does not say that the state comes from the snapshot: %q, %v", body, err)
	}
	must(t, l.Etcd().Start(ctx))
	eventually(t, 20*time.Second, "readiness without a word of the snapshot", func() error {
		code, body, err := a.Agent.Get(ctx, "/readyz")
		if err == nil && (code != 200 || strings.Contains(body, "snapshot")) {
			err = errors.New(body)
		}
		return err
	})
	wantFollowed(ctx, t, l, "boot without etcd", 40)
	eventually(t, 5*time.Second, "pods after that", func() error { return reaches(pod, pods["B"], pods["C"]) })
}

// TestHostileEntriesTouchNoPeer fills etcd with junk and lies, under a steady ping.
func TestHostileEntriesTouchNoPeer(t *testing.T) {
	for name, entries := range map[string]func(map[string]*lab.Pod) map[string]string{
		"junk and lies":         hostile,
		"subnets of real nodes": stolen,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			withstand(t, entries)
		})
	}
}

// withstand puts entries into etcd, and wants nothing to come of it.
func withstand(t *testing.T, entries func(map[string]*lab.Pod) map[string]string) {
	ctx, l := up(t, lab.Options{Segments: three(), Family: lab.Dual, Config: config(lab.Dual, direct, true)})
	pods := addPods(ctx, t, l)
	awaitRoutes(ctx, t, l)
	before := map[string]string{}
	for _, n := range l.Nodes {
		before[n.Name] = kernelState(ctx, t, n)
	}
	ps := probeAll(t, pods)
	for key, value := range entries(pods) {
		must(t, l.Etcd().Put(ctx, key, value))
	}
	// An honest peer that joins after all that shows that everybody has read it.
	wantFollowed(ctx, t, l, "hostile entries", 33)
	must(t, l.Etcd().Delete(ctx, "subnets/10.244.233.0-24&fd24:0:0:ff33::-64"))
	ps.flowing(t)
	for _, n := range l.Nodes {
		eventually(t, 10*time.Second, "the state of "+n.Name, func() error {
			now, err := kernelStateOf(ctx, n)
			if err == nil && now != before[n.Name] {
				err = fmt.Errorf("differs:%s", lineDiff(before[n.Name], now))
			}
			return err
		})
	}
	// Agents that start now see the same from the beginning.
	for _, n := range l.Nodes {
		must(t, n.Agent.Restart(ctx))
		if now := kernelState(ctx, t, n); now != before[n.Name] {
			t.Errorf("a restart of %s changed:%s", n.Name, lineDiff(before[n.Name], now))
		}
	}
	ps.wantNoLoss(t)
}

// lease returns the value of a lease of a node that does not exist.
func lease(public, v4, v6 string) string {
	return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":"2001:db8::99","BackendType":"vxlan","BackendData":%s,"BackendV6Data":%s}`, public, v4, v6)
}

// someMAC is backend data that makes sense.
const someMAC = `{"VNI":1,"VtepMAC":"02:00:00:00:09:09"}`

// stolen returns leases that overlap those of real nodes.
func stolen(pods map[string]*lab.Pod) map[string]string {
	entries := map[string]string{
		"subnets/10.244.0.0-17": lease("192.0.2.90", someMAC, someMAC),
		"subnets/10.244.0.0-18": lease("192.0.2.91", `"junk"`, `"junk"`),
	}
	for _, p := range pods {
		for i, bits := range []int{23, 25} {
			subnet := netip.PrefixFrom(p.Addr.V4, bits).Masked()
			entries[fmt.Sprintf("subnets/%s-%d", subnet.Addr(), bits)] = lease(fmt.Sprintf("192.0.2.%d", 92+i), someMAC, someMAC)
		}
	}
	return entries
}

// hostile returns entries that no node may act upon.
func hostile(map[string]*lab.Pod) map[string]string {
	const mac = someMAC
	good := lease("192.0.2.99", mac, mac)
	return map[string]string{
		"subnets":                          good,
		"subnets/":                         good,
		"subnets/junk":                     good,
		"subnets/10.244.66.0":              good,
		"subnets/10.244.66.0-24x":          good,
		"subnets/10.244.66.0-99":           good,
		"subnets/10.244.66.0-24&fd24-64":   good,
		"subnets-meta/x":                   "not for you",
		"subnets/\x00\xff":                 "\x00\xff",
		"subnets/192.168.0.0-24":           good, // outside the network
		"subnets/0.0.0.0-0":                good,
		"subnets/10.244.0.0-16":            good, // all of the network
		"subnets/10.244.0.0-12":            good,
		"subnets/172.31.0.0-24":            good, // the underlay
		"subnets/192.168.2.0-24&fe80::-64": good,
		"subnets/10.244.73.0-24&fd24::-0":  good,
		"subnets/10.244.80.0-24":           "",
		"subnets/10.244.81.0-24":           "null",
		"subnets/10.244.82.0-24":           "[]",
		"subnets/10.244.83.0-24":           "{",
		"subnets/10.244.84.0-24":           `"x"`,
		"subnets/10.244.85.0-24":           `{"PublicIP":7}`,
		"subnets/10.244.86.0-24":           `{}`,
		"subnets/10.244.87.0-24":           strings.Repeat("[", 100_000),
		"subnets/10.244.88.0-24":           lease("127.0.0.1", mac, mac),
		"subnets/10.244.89.0-24":           lease("0.0.0.0", mac, mac),
		"subnets/10.244.90.0-24":           lease("224.0.0.1", mac, mac),
		"subnets/10.244.91.0-24":           lease("255.255.255.255", mac, mac),
		"subnets/10.244.92.0-24":           lease("no address", mac, mac),
		"subnets/10.244.93.0-24":           lease("192.0.2.99", `{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}`, mac), // multicast
		"subnets/10.244.94.0-24":           lease("192.0.2.99", `{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}`, mac),
		"subnets/10.244.95.0-24":           lease("192.0.2.99", `{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}`, mac),
		"subnets/10.244.96.0-24":           lease("192.0.2.99", `{"VNI":1,"VtepMAC":"not a MAC"}`, mac),
		"subnets/10.244.97.0-24":           lease("192.0.2.99", `"text"`, mac),
		"subnets/10.244.98.0-24":           `{"PublicIP":"192.0.2.99","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"x"}}`,
	}
}
