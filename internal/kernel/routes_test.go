package kernel_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/state"
)

// TestPathOfAPeerChanges moves peer 2 between overlay and underlay. The kernel must never be asked to
// delete its route: a replace leaves no moment without one.
func TestPathOfAPeerChanges(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		over, direct := node(2, 3), node(2, 3)
		underlay(direct, 2)
		apply(t, k, over)
		for range 2 {
			for want, parts := range map[*state.State][]string{
				&direct: {"10.244.2.0/24 via 10.77.0.2 dev eth0 proto 119", "fd24:0:0:2::/64 via fd77::2 dev eth0 proto 119 metric 1024 pref medium"},
				&over: {"10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 119 onlink",
					"fd24:0:0:2::/64 via fd24:0:0:2:: dev flannel-v6.1 proto 119 metric 1024 onlink pref medium"},
			} {
				for _, l := range lines(apply(t, k, *want).Changes()) {
					if strings.HasPrefix(l, "remove route") {
						t.Error(l)
					}
				}
				contains(t, look(t), parts...)
				lacks(t, sh(t, "ip -6 route"), "\nfd24:0:0:2:: ", " metric 1 ") // what helps the route in is gone
				rests(t, k, *want)
			}
		}
	})
}

// TestDirectRoutesComeBack covers what the kernel does to routes of a device that goes down.
func TestDirectRoutesComeBack(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		want := node(2, 3)
		underlay(want, 2)
		underlay(want, 3)
		apply(t, k, want)
		settled := normal(look(t))
		sh(t, "ip link set eth0 down")
		r, err := k.Apply(t.Context(), want, scope)
		if err != nil || len(r.Errors) == 0 || !errors.Is(r.Err(), unix.ENETUNREACH) {
			t.Errorf("with the uplink down: %v, %v", r.Err(), err)
		}
		sh(t, "ip link set eth0 up")
		sh(t, "ip addr replace fd77::1/64 dev eth0 nodad")
		apply(t, k, want)
		now := normal(look(t))
		for l := range settled {
			if !now[l] {
				t.Errorf("%q is gone", l)
			}
		}
		rests(t, k, want)
	})
}

func TestFailingPeerDoesNotHoldUpOthers(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		want := node(2, 3, 4)
		underlay(want, 3)
		bad := state.RouteKey{Dst: subnet4(3)}
		r := want.Routes[bad]
		r.Via = netip.MustParseAddr("10.99.0.3") // not on-link
		want.Routes[bad] = r
		for range 2 {
			report, err := k.Apply(t.Context(), want, scope)
			if err != nil {
				t.Fatal(err)
			}
			if len(report.Errors) != 1 || report.Errors[0].Object != "10.244.3.0/24" || !errors.Is(report.Err(), unix.ENETUNREACH) {
				t.Errorf("errors: %v", report.Errors)
			}
		}
		contains(t, look(t), "10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 119 onlink",
			"10.244.4.0/24 via 10.244.4.0 dev flannel.1 proto 119 onlink",
			"10.244.4.0 lladdr 0a:00:00:00:00:04 PERMANENT", "0a:00:00:00:00:04 dst 10.77.0.4 self permanent")
		sh(t, "ip addr add 10.99.0.1/24 dev eth0")
		apply(t, k, want)
		rests(t, k, want)
	})
}

func TestConnectedSubnetIsNeverReplaced(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		for _, c := range []string{
			"ip link add docker0 type bridge", "ip link set docker0 up",
			"ip addr add 10.244.2.1/24 dev docker0", "ip addr add fd24:0:0:2::1/64 dev docker0 nodad",
		} {
			sh(t, c)
		}
		want := node(2, 3)
		r, err := k.Apply(t.Context(), want, scope)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Errors) != 2 || !strings.Contains(r.Err().Error(), "docker0") {
			t.Errorf("errors: %v", r.Errors)
		}
		contains(t, look(t), "10.244.2.0/24 dev docker0 proto kernel scope link src 10.244.2.1",
			"10.244.3.0/24 via 10.244.3.0 dev flannel.1 proto 119 onlink")
		lacks(t, sh(t, "ip route")+sh(t, "ip -6 route"), "10.244.2.0/24 via", "fd24:0:0:2::/64 via")
		sh(t, "ip link del docker0")
		apply(t, k, want)
		rests(t, k, want)
	})
}

func TestBlackhole(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		want := node(2)
		const waiting = 1 << 20
		for _, key := range []state.RouteKey{{Dst: subnet4(0)}, {Dst: subnet4(0), Metric: waiting}, {Dst: subnet6(0)}} {
			want.Routes[key] = state.Route{Type: state.Blackhole, Protocol: state.Protocol}
		}
		sh(t, "ip route add blackhole 10.244.0.0/24") // the original's
		apply(t, k, want)
		contains(t, look(t), "blackhole 10.244.0.0/24 proto 119", "blackhole 10.244.0.0/24 proto 119 metric 1048576",
			"blackhole fd24::/64 dev lo proto 119 metric 1024 pref medium")
		rests(t, k, want)

		// A bridge comes: pods must not be cut off by the blackhole with the same metric.
		sh(t, "ip link add cni0 type bridge")
		sh(t, "ip link set cni0 up")
		sh(t, "ip addr add 10.244.0.1/24 dev cni0")
		apply(t, k, want)
		lacks(t, look(t), "blackhole 10.244.0.0/24 proto 119 \n")
		contains(t, look(t), "blackhole 10.244.0.0/24 proto 119 metric 1048576")
		rests(t, k, want)

		apply(t, k, node(2))
		lacks(t, look(t), "blackhole")
	})
}

func TestOriginalsBlackholeGivesWayToOurs(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		want := node(2)
		want.Routes[state.RouteKey{Dst: subnet4(0), Metric: 1 << 20}] = state.Route{Type: state.Blackhole, Protocol: state.Protocol}
		sh(t, "ip route add blackhole 10.244.0.0/24")
		sh(t, "ip route add blackhole 10.244.50.0/24") // somebody's
		apply(t, k, want)
		out := sh(t, "ip route")
		contains(t, out, "blackhole 10.244.0.0/24 proto 119 metric 1048576", "blackhole 10.244.50.0/24")
		lacks(t, out, "blackhole 10.244.0.0/24 \n")
	})
}

func TestApplyObeysContext(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		r, err := k.Apply(ctx, node(2), scope)
		if !errors.Is(err, context.Canceled) || len(r.Changes()) > 0 {
			t.Errorf("%v: %v", err, lines(r.Changes()))
		}
	})
}

func TestOnLink(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		for _, c := range []string{
			"ip route add 10.78.0.0/16 via 10.77.0.9",
			"ip route add 10.79.0.0/16 dev wire",
			"ip route add 10.80.0.0/16 nexthop dev eth0 nexthop dev wire",
			"ip route add 10.81.0.0/16 dev lo",
			"ip route add unreachable 10.82.0.0/16",
			"ip -6 route add fd78::/64 via fd77::9",
			"ip -6 route add fd79::/64 dev wire",
			"ip -6 route add blackhole fd82::/64",
		} {
			sh(t, c)
		}
		want := map[string]string{
			"10.77.0.2": "eth0", "10.79.0.2": "wire", "fd77::2": "eth0", "fd79::2": "wire",
			"10.78.0.2": "", "10.80.0.2": "", "10.81.0.2": "", "10.82.0.2": "", "10.77.0.1": "", "10.77.0.255": "",
			"192.0.2.1": "", "127.0.0.1": "", "fd78::2": "", "fd77::1": "", "fd82::2": "", "2001:db8::1": "", "::1": "",
		}
		var addrs []netip.Addr
		for a := range want {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		got, err := k.OnLink(append(addrs, netip.Addr{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if got[a] != want[a.String()] {
				t.Errorf("%s: %q, want %q", a, got[a], want[a.String()])
			}
		}
		if got, err := k.OnLink(nil); err != nil || len(got) != 0 {
			t.Errorf("no addresses: %v, %v", got, err)
		}
	})
}

func TestMissingUplinkIsOneError(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		want := node(2)
		for n := 10; n < 60; n++ {
			overlay(want, n)
			underlay(want, n)
		}
		sh(t, "ip link del eth0")
		r, err := k.Apply(t.Context(), want, scope)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Errors) != 3 { // two links without a lower device, and what waits for it
			t.Errorf("errors: %v", r.Errors)
		}
	})
}
