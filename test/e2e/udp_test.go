package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

const udp = `{"Type":"udp"}`

// awaitPings waits until every pod reaches every other one: with udp one route leads to all peers, so routes
// do not tell.
func awaitPings(t *testing.T, l *lab.Lab) {
	t.Helper()
	eventually(t, 20*time.Second, "all pods reach each other", func() error {
		pairs, err := l.PingAll(500 * time.Millisecond)
		for _, p := range pairs {
			err = errors.Join(err, p.Err)
		}
		return err
	})
}

// With udp the agent is the data path. While there is none packets are lost, and only then: the device stays
// and the next agent goes on with it before it has asked anybody.
func TestUDPRestartIsShort(t *testing.T) {
	ctx, l := up(t, lab.Options{Segments: three(), Family: lab.Dual, Config: config(lab.Dual, udp, true)})
	pods := addPods(ctx, t, l)
	awaitPings(t, l)
	pingAll(t, l)
	a := l.Nodes[0]
	const look = "ip route show dev flannel0; ip -6 route show dev flannel0; ip -br addr show flannel0 | tr -s ' ' | cut -d' ' -f3-"
	routes := sh(ctx, t, a, look)
	eventually(t, 10*time.Second, "what the tunnel does is on disk", func() error {
		out, err := a.Exec(ctx, "cat", "/run/flannel/subnet.tunnel.json")
		if n := strings.Count(out, "/"); err == nil && n < 4 {
			err = fmt.Errorf("%d of 4 peers: %s", n, out)
		}
		return err
	})
	for name, end := range map[string]func() error{"SIGTERM": a.Agent.Stop, "SIGKILL": a.Agent.Kill} {
		for _, store := range []string{"with the store", "without the store"} {
			if store == "without the store" {
				must(t, l.Etcd().Stop())
			}
			ps := probeAll(t, map[string]*lab.Pod{"A": pods["A"], "C": pods["C"]})
			began := time.Now()
			must(t, end())
			gone, had := time.Since(began), waited()
			must(t, a.Agent.Launch())
			launched := time.Since(began) - gone // which is ours to do, and takes milliseconds
			ps.flowing(t)
			busy := waited(a) - had
			for path, loss := range ps.stop() {
				t.Logf("%s %s: %s: %v", name, store, path, loss)
				if loss.Lost > 1000+int((launched+busy).Milliseconds()) { // one per millisecond
					t.Errorf("%s: %v; the agent was started within %v, and waited %v for processors", path, loss, launched, busy)
				}
			}
			if gone > time.Second {
				t.Errorf("%s: took %s to end", name, gone)
			}
			if store == "without the store" {
				must(t, l.Etcd().Start(ctx))
			}
			must(t, a.Agent.WaitReady(ctx))
			if now := sh(ctx, t, a, look); now != routes {
				t.Errorf("was\n%s\nis\n%s", routes, now)
			}
		}
	}
	// The device is put right whatever happens to it.
	sh(ctx, t, a, "ip link del flannel0")
	eventually(t, 10*time.Second, "the device is back", func() error {
		_, err := lab.Ping(pods["A"], pods["C"].Addr.V4, 200*time.Millisecond)
		return err
	})
	sh(ctx, t, a, "ip link set flannel0 down mtu 1400; ip route flush proto 119")
	eventually(t, 10*time.Second, "the device is as it was", func() error {
		if now := sh(ctx, t, a, "ip -br addr show flannel0; ip route show dev flannel0"); !strings.Contains(now, "10.244.0.0/16") {
			return fmt.Errorf("%s", now)
		}
		_, err := lab.Ping(pods["A"], pods["C"].Addr.V6, 200*time.Millisecond)
		return err
	})
}

// The original on B: both directions, and whoever hands over to whom.
func TestUDPWithTheOriginal(t *testing.T) {
	original := upstream(t)
	ctx, l := up(t, lab.Options{Segments: three(), Family: lab.IPv4, Config: config(lab.IPv4, udp, false),
		FlanneldOn: map[string]string{"B": original}})
	pods := addPods(ctx, t, l)
	awaitPings(t, l)
	pingAll(t, l)
	for from, ttl := range map[string]string{"A": "2", "B": "2"} {
		to := map[string]string{"A": "B", "B": "A"}[from]
		device := strings.Fields(sh(ctx, t, l.Nodes[map[string]int{"A": 0, "B": 1}[to]], "ip -br -4 addr show flannel0"))
		address := strings.TrimSuffix(device[2], "/32")
		n := l.Nodes[map[string]int{"A": 0, "B": 1}[from]]
		if out, err := n.Exec(ctx, "ping", "-c1", "-W1", "-t", ttl, address); err == nil {
			t.Errorf("%s: TTL 2 gets through: %s", from, out)
		}
		if out, err := n.Exec(ctx, "ping", "-c1", "-W10", "-t", "3", address); err != nil {
			t.Errorf("%s: TTL 3: %v %s", from, err, out)
		}
	}
	// Ours takes over B and gives it back; its pods keep their addresses.
	b := l.Nodes[1]
	for _, binary := range []string{ours(), original} {
		must(t, b.Agent.Stop())
		b.Agent.Binary = binary
		must(t, b.Agent.Start(ctx))
		eventually(t, 15*time.Second, "pods of B", func() error {
			_, err := lab.Ping(pods["A"], pods["B"].Addr.V4, 500*time.Millisecond)
			return err
		})
		pingAll(t, l)
	}
}
