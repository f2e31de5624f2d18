package kernel_test

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/kernel"
	"github.com/weftnet/weft/internal/netnstest"
)

// watch starts a watcher. The function it returns tells the kinds of what woke since the last call, in
// order of first appearance: it makes a change that must wake, and waits for that.
func watch(t *testing.T, k *kernel.Kernel) func() []string {
	t.Helper()
	w, err := k.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	kinds, ended := make(chan string, 1<<16), make(chan error, 1)
	go func() { ended <- w.Run(ctx, func(kind string) { kinds <- kind }) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("Run does not end")
		}
	})
	return func() (seen []string) {
		t.Helper()
		sh(t, "ip addr add 192.0.2.200/32 dev eth0")
		sh(t, "ip addr del 192.0.2.200/32 dev eth0")
		for n := 0; n < 2; {
			select {
			case kind := <-kinds:
				if kind == kernel.ChangedAddress {
					n++
				}
				if !slices.Contains(seen, kind) && kind != kernel.ChangedAddress {
					seen = append(seen, kind)
				}
			case <-time.After(time.Minute):
				t.Fatalf("only %v", seen)
			}
		}
		slices.Sort(seen)
		return seen
	}
}

func TestWatch(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		want := node(2, 3)
		underlay(want, 3)
		apply(t, k, want)
		for _, c := range []string{
			"ip link add br0 type bridge", "ip link set br0 up", "ip link add p0 type veth peer name p1", "ip link set p0 master br0 up", "ip link set p1 up",
			"ip link add other type veth peer name other1", "ip link set other up", "ip link set other1 up", "ip addr add 10.50.0.1/24 dev other",
			"ip neigh add 10.50.0.3 dev other lladdr 02:00:00:00:00:03 nud stale",
		} {
			sh(t, c)
		}
		carriers(t, "br0", "p0", "p1", "other", "other1")
		woke := watch(t, k)
		// Links tell that they are up in their own time, at most once a second (net/core/link_watch.c).
		for quiet, until := time.Now(), time.Now().Add(20*time.Second); time.Since(quiet) < 1500*time.Millisecond && time.Now().Before(until); {
			if len(woke()) > 0 {
				quiet = time.Now()
			}
			time.Sleep(10 * time.Millisecond)
		}
		for _, c := range []struct {
			command string
			want    []string
		}{
			{"ip neigh add 10.50.0.2 dev other lladdr 02:00:00:00:00:02 nud permanent", nil},
			{"ip neigh replace 10.50.0.3 dev other lladdr 02:00:00:00:00:04 nud reachable", nil},
			{"ip route add 198.51.100.0/24 via 10.50.0.2", nil},
			{"ip route add 10.244.7.0/24 via 10.50.0.2 table 77", nil},
			{"bridge fdb add 02:00:00:00:00:05 dev p0 master", nil},
			{"ip link set p0 alias pod", nil},
			{"sysctl -qw net.ipv4.conf.other.rp_filter=1", nil},
			{"ip -6 addr add fe80::77/64 dev other nodad", nil},
			{"ip route del 10.244.2.0/24", []string{"route"}},
			{"ip -6 route del fd24:0:0:2::/64", []string{"route"}},
			{"ip route add 10.244.7.0/24 via 10.77.0.9", []string{"route"}},
			{"ip route add default via 10.77.0.254", []string{"route"}},
			{"ip route add 10.77.0.2/32 via 10.77.0.254", []string{"route"}}, // the underlay address of a peer
			{"ip neigh del 10.244.2.0 dev flannel.1", []string{"neighbour"}},
			{"bridge fdb del 0a:00:00:00:00:02 dev flannel.1", []string{"fdb"}},
			{"ip link set flannel.1 mtu 1300", []string{"link"}},
			{"sysctl -qw net/ipv4/conf/flannel.1/rp_filter=1", []string{"sysctl"}},
			{"sysctl -qw net.ipv4.ip_forward=1", []string{"sysctl"}},
			{"sysctl -qw net.ipv4.conf.eth0.rp_filter=1", []string{"sysctl"}},
		} {
			sh(t, c.command)
			if diff := cmp.Diff(c.want, woke()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.command, diff)
			}
		}
		sh(t, "ip route del 10.77.0.2/32")
		woke()
		apply(t, k, want) // mends all that, which wakes for links and FDB entries only
		if seen := woke(); slices.Contains(seen, "route") || slices.Contains(seen, "neighbour") {
			t.Errorf("our own writes woke %v", seen)
		}
	})
}

// TestWatchOfWhatWasAsked wakes for the way to an address that no wanted object names: a peer with a router
// between, which may come on-link, and what --iface-can-reach names.
func TestWatchOfWhatWasAsked(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		sc := scope
		sc.Reach = netip.MustParseAddr("10.91.0.9")
		if _, err := k.Apply(context.Background(), node(2), sc); err != nil {
			t.Fatal(err)
		}
		woke := watch(t, k)
		woke()
		peers := []netip.Addr{netip.MustParseAddr("fd93::9"), netip.MustParseAddr("10.90.0.9"), {}, netip.MustParseAddr("10.89.0.9")}
		if _, err := k.OnLink(peers); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			for _, c := range []struct {
				route string
				want  []string
			}{
				{"10.89.0.0/24", []string{"route"}}, {"10.90.0.0/24", []string{"route"}}, {"10.91.0.0/24", []string{"route"}},
				{"fd93::/64", []string{"route"}}, {"10.92.0.0/24", nil},
			} {
				sh(t, "ip route add "+c.route+" dev eth0")
				if diff := cmp.Diff(c.want, slices.DeleteFunc(woke(), func(kind string) bool { return kind == kernel.ChangedLink })); diff != "" {
					t.Errorf("%s (-want +got):\n%s", c.route, diff)
				}
				sh(t, "ip route del "+c.route+" dev eth0")
				woke()
			}
			if _, err := k.Apply(context.Background(), node(2), sc); err != nil { // the next pass forgets none of it
				t.Fatal(err)
			}
			woke()
		}
	})
}

// TestWatchBeforeApply has nothing to sift by yet.
func TestWatchBeforeApply(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		woke := watch(t, host(t))
		sh(t, "ip route add 198.51.100.0/24 via 10.77.0.2")
		sh(t, "ip neigh add 10.77.0.3 dev eth0 lladdr 02:00:00:00:00:02 nud permanent")
		if diff := cmp.Diff([]string{"neighbour", "route"}, woke()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestWatchEndsAtOnce ends a watcher that nothing wakes.
func TestWatchEndsAtOnce(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		w, err := host(t).NewWatcher()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := w.Run(ctx, func(string) {}); err != nil {
			t.Error(err)
		}
	})
}
