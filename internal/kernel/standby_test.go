package kernel_test

import (
	"maps"
	"strconv"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/state"
)

const standby = 1 << 19

// reaching is a node with devices of one port that reach peer 2, or, if the peer does not receive on it, nobody.
func reaching(port int) state.State {
	s := ported(node(2), port)
	switch port {
	case 8472:
		return s
	case 4789:
		return second(s)
	}
	return under(under(s, "flannel.1", "dead4"), "flannel-v6.1", "dead6")
}

// devices returns s with all devices but without routes.
func devices() state.State {
	s := reaching(8472)
	for _, o := range []state.State{reaching(4789), reaching(9999)} {
		maps.Copy(s.Links, o.Links)
		maps.Copy(s.Addresses, o.Addresses)
		maps.Copy(s.Neighbours, o.Neighbours)
		maps.Copy(s.FDB, o.FDB)
		maps.Copy(s.Sysctls, o.Sysctls)
	}
	clear(s.Routes)
	return s
}

// routed is s with routes by way of the devices of ports, the first in use, the others standing by. Port 0 is the
// uplink, port -1 a route to all pods by the uplink.
func routed(s state.State, ports ...int) state.State {
	s = under(s, "", "")
	for i, port := range ports {
		from := node(2)
		if port > 0 {
			from = reaching(port)
		} else {
			underlay(from, 2)
		}
		for key, r := range from.Routes {
			if port < 0 && key.Dst.Addr().Is4() {
				key = state.RouteKey{Dst: scope.Networks[0], Metric: 1}
			} else if port < 0 {
				key = state.RouteKey{Dst: scope.Networks[1], Metric: 1024}
			} else if i > 0 {
				key.Metric = standby + i
			}
			s.Routes[key] = r
		}
	}
	return s
}

// together is s and what other has, with other's routes standing by.
func together(s, other state.State) state.State {
	out := under(s, "", "")
	maps.Copy(out.Links, other.Links)
	maps.Copy(out.Addresses, other.Addresses)
	maps.Copy(out.Neighbours, other.Neighbours)
	maps.Copy(out.FDB, other.FDB)
	maps.Copy(out.Sysctls, other.Sysctls)
	for key, r := range other.Routes {
		out.Routes[state.RouteKey{Dst: key.Dst, Metric: standby}] = r
	}
	return out
}

// TestStandbyRoutesNeverCarry goes from each row of ways to each other. The dead way, which is never the one in use,
// must not be in force in between, and no moment may be without a route.
func TestStandbyRoutesNeverCarry(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k, peer := twoHosts(t, 8472, 4789)
		apply(t, k, devices())
		w := witnessed(t)
		all := [][]int{{8472}, {8472, 9999}, {8472, 0, 9999}, {4789, 9999, 8472}, {0, 9999}, {0, 8472, 9999}, {-1}}
		apply(t, k, routed(devices(), all[0]...))
		w.since(t)
		four, six := startFlow(t, peer, "10.244.0.9", "10.244.2.9"), startFlow(t, peer, "fd24::9", "fd24:0:0:2::9")
		names := map[int][2]string{8472: {"flannel.1", "flannel-v6.1"}, 4789: {"flannel-4789", "flannel6-4789"}, 0: {"eth0", "eth0"}, -1: {"eth0", "eth0"}}
		for _, from := range all {
			for _, to := range all {
				apply(t, k, routed(devices(), from...))
				rests(t, k, routed(devices(), from...))
				w.since(t)
				apply(t, k, routed(devices(), to...))
				rests(t, k, routed(devices(), to...))
				allowed := map[string]bool{}
				for _, port := range []int{from[0], to[0]} {
					allowed["10.244.2.9: "+names[port][0]], allowed["fd24:0:0:2::9: "+names[port][1]] = true, true
				}
				for in := range w.since(t) {
					if !allowed[in] {
						t.Errorf("from %v to %v: %s was in force", from, to, in)
					}
				}
			}
		}
		if lost := []int64{four.lost(t), six.lost(t)}; lost[0]+lost[1] > 0 {
			t.Errorf("lost %d", lost)
		}
		routes := sh(t, "ip route") + sh(t, "ip -6 route")
		lacks(t, routes, "dead4 proto 119", "dead6 proto 119", "metric 52428")
	})
}

// TestStandbyGoesBeforeItsDevice has the dead way's devices go in the same pass.
func TestStandbyGoesBeforeItsDevice(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k, peer := twoHosts(t, 8472, 4789)
		apply(t, k, devices())
		w := witnessed(t)
		apply(t, k, routed(devices(), 8472, 9999))
		w.since(t)
		four, six := startFlow(t, peer, "10.244.0.9", "10.244.2.9"), startFlow(t, peer, "fd24::9", "fd24:0:0:2::9")
		apply(t, k, routed(state.New(), -1)) // and both other devices
		for in := range w.since(t) {
			if strings.Contains(in, "dead") || strings.Contains(in, "none") {
				t.Errorf("%s was in force", in)
			}
		}
		if lost := []int64{four.lost(t), six.lost(t)}; lost[0]+lost[1] > 0 {
			t.Errorf("lost %d", lost)
		}
		lacks(t, sh(t, "ip link"), "flannel", "dead")
		rests(t, k, routed(state.New(), -1))
	})
}

// TestDevicesShareAnAddress deletes one of two devices that have the same address, MAC and VNI.
func TestDevicesShareAnAddress(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k, peer := twoHosts(t, 8472, 4789)
		both := together(node(2), reaching(4789))
		apply(t, k, both)
		before := misaddressed(t)
		four, six := startFlow(t, peer, "10.244.0.0", "10.244.2.9"), startFlow(t, peer, "fd24::", "fd24:0:0:2::9")
		for _, stays := range []int{8472, 4789} {
			apply(t, k, both)
			rests(t, k, both)
			apply(t, k, routed(reaching(stays), stays))
			dev := map[int][2]string{8472: {"flannel.1", "flannel-v6.1"}, 4789: {"flannel-4789", "flannel6-4789"}}[stays]
			contains(t, sh(t, "ip -br addr show "+dev[0])+"\n", dev[0]+" UNKNOWN 10.244.0.0/32 "+linkLocal(t, dev[0]))
			for _, c := range []string{
				"ip route get 10.244.2.9 from 10.244.0.0 | dev " + dev[0], "ip -6 route get fd24:0:0:2::9 from fd24:: | dev " + dev[1],
				"ip route get 10.244.2.9 | src 10.244.0.0", "ip -6 route get fd24:0:0:2::9 | src fd24::",
				"ip route get 10.244.0.0 | local 10.244.0.0 dev lo", "ip -6 route get fd24:: | local fd24:: from :: dev lo",
			} {
				command, part, _ := strings.Cut(c, " | ")
				if out := sh(t, command); !strings.Contains(out, part) {
					t.Errorf("%s stays: %s: no %q in %s", dev[0], command, part, out)
				}
			}
			rests(t, k, routed(reaching(stays), stays))
		}
		// The kernel itself can miss the second of two IPv6 routes to one local address for a few microseconds while the
		// first goes, more where a CPU is not its own: it counts the packets to the address that it would forward then.
		if lost := []int64{four.lost(t), six.lost(t)}; lost[0] > 0 || lost[1] > misaddressed(t)-before {
			t.Errorf("lost %d, of which the kernel counts %d", lost, misaddressed(t)-before)
		}
	})
}

// misaddressed returns how many IPv6 packets came for an address that was not, or not known to be, this host's.
func misaddressed(t testing.TB) int64 {
	t.Helper()
	var n int64
	for line := range strings.Lines(sh(t, "cat /proc/net/snmp6")) {
		if f := strings.Fields(line); f[0] == "Ip6InAddrErrors" {
			n, _ = strconv.ParseInt(f[1], 10, 64)
		}
	}
	return n
}

func linkLocal(t testing.TB, dev string) string {
	t.Helper()
	words := strings.Fields(sh(t, "ip -br -6 addr show "+dev))
	return words[len(words)-1]
}

// TestDevicesOfOneVNIArePrunedApart adds to one device what the other has, and what neither should have.
func TestDevicesOfOneVNIArePrunedApart(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k, _ := twoHosts(t)
		want := together(node(2, 3), reaching(4789)) // the second has peer 2 only
		apply(t, k, want)
		other := sh(t, "ip neigh show dev flannel.1") + sh(t, "bridge fdb show dev flannel.1")
		script(t, `ip neigh add 10.244.3.0 dev flannel-4789 lladdr 0a:00:00:00:00:03 nud permanent
			bridge fdb add 0a:00:00:00:00:03 dev flannel-4789 dst 10.77.0.3 self permanent
			ip neigh add fd24:0:0:3:: dev flannel6-4789 lladdr 0a:00:00:00:00:03 nud permanent
			bridge fdb replace 0a:00:00:00:00:02 dev flannel-4789 dst 10.77.0.99 self permanent`)
		got := strings.Join(lines(apply(t, k, want).Changes()), "\n")
		if want := strings.Join([]string{
			"change fdb 0a:00:00:00:00:02 dev flannel-4789 -dst 10.77.0.99 +dst 10.77.0.2",
			"remove fdb 0a:00:00:00:00:03 dev flannel-4789 -dst 10.77.0.3",
			"remove neighbour 10.244.3.0 dev flannel-4789 -lladdr 0a:00:00:00:00:03",
			"remove neighbour fd24:0:0:3:: dev flannel6-4789 -lladdr 0a:00:00:00:00:03",
		}, "\n"); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		if now := sh(t, "ip neigh show dev flannel.1") + sh(t, "bridge fdb show dev flannel.1"); now != other {
			t.Errorf("before\n%s\nafter\n%s", other, now)
		}
		rests(t, k, want)
	})
}

// TestStandbyRoutesAreOurs has a former process's standby routes, and somebody's.
func TestStandbyRoutesAreOurs(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k, _ := twoHosts(t)
		apply(t, k, routed(devices(), 8472, 0, 4789))
		script(t, `ip route add 10.244.2.0/24 via 10.77.0.9 metric 524300
			ip -6 route add fd24:0:0:2::/64 via fd77::9 metric 524300`)
		contains(t, look(t), "10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 119 onlink", "10.244.2.0/24 via 10.77.0.2 dev eth0 proto 119 metric 524289",
			"fd24:0:0:2::/64 via fd24:0:0:2:: dev flannel-v6.1 proto 119 metric 1024 onlink pref medium",
			"fd24:0:0:2::/64 via fd77::2 dev eth0 proto 119 metric 524289 pref medium",
			"fd24:0:0:2::/64 via fd24:0:0:2:: dev flannel6-4789 proto 119 metric 524290 onlink pref medium")
		apply(t, k, routed(devices(), 8472))
		rests(t, k, routed(devices(), 8472))
		routes := sh(t, "ip route") + sh(t, "ip -6 route")
		lacks(t, routes, "metric 524289", "metric 524290", "metric 1 ")
		contains(t, routes, "10.244.2.0/24 via 10.77.0.9 dev eth0 metric 524300", "fd24:0:0:2::/64 via fd77::9 dev eth0 metric 524300 pref medium")
		apply(t, k, routed(devices(), 8472, 0, 4789))
		if _, err := k.Cleanup(t.Context(), scope, false); err != nil {
			t.Fatal(err)
		}
		lacks(t, sh(t, "ip route")+sh(t, "ip -6 route"), "proto 119")
	})
}
