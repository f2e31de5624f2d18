package kernel_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/kernel"
	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/state"
)

// under returns s with a device under another name.
func under(s state.State, from, to string) state.State {
	dev := func(name string) string {
		if name == from {
			return to
		}
		return name
	}
	out := state.New()
	for name, l := range s.Links {
		out.Links[dev(name)] = l
	}
	for a := range s.Addresses {
		out.Addresses[state.Address{Dev: dev(a.Dev), Prefix: a.Prefix}] = true
	}
	for n, m := range s.Neighbours {
		out.Neighbours[state.NeighbourKey{Dev: dev(n.Dev), Addr: n.Addr}] = m
	}
	for f, dst := range s.FDB {
		out.FDB[state.FDBKey{Dev: dev(f.Dev), MAC: f.MAC}] = dst
	}
	for key, r := range s.Routes {
		r.Dev = dev(r.Dev)
		out.Routes[key] = r
	}
	for key, v := range s.Sysctls {
		out.Sysctls[strings.Replace(key, "/"+from+"/", "/"+to+"/", 1)] = v
	}
	return out
}

// second is the state of a node whose devices have the names of second ones.
func second(s state.State) state.State {
	return under(under(s, "flannel.1", "flannel-4789"), "flannel-v6.1", "flannel6-4789")
}

func ported(s state.State, port int) state.State {
	for name, l := range s.Links {
		l.VXLAN.Port = port
		s.Links[name] = l
	}
	return s
}

// TestDeviceGetsItsUsualName is the end of a change of the port: the devices that carry traffic have second names.
func TestDeviceGetsItsUsualName(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		if !kernel.RenamesLive() {
			netnstest.Unavailable(t, "Linux 6.2")
		}
		k, peer := twoHosts(t, 4789)
		want := ported(node(2, 3), 4789)
		want.Sysctls["net/ipv4/conf/flannel.1/rp_filter"] = "2"
		apply(t, k, second(want))
		indexes := index(t, "flannel-4789") + index(t, "flannel6-4789")
		four, six := startFlow(t, peer, "10.244.0.9", "10.244.2.9"), startFlow(t, peer, "fd24::9", "fd24:0:0:2::9")

		wants := []string{
			"change link flannel6-4789 -name flannel6-4789 +name flannel-v6.1",
			"change link flannel-4789 -name flannel-4789 +name flannel.1",
		}
		planned, err := k.Plan(want, scope)
		if diff := cmp.Diff(wants, lines(planned)); err != nil || diff != "" {
			t.Errorf("%v, plan (-want +got):\n%s", err, diff)
		}
		r := apply(t, k, want)
		if diff := cmp.Diff(wants, lines(r.Changes())); diff != "" {
			t.Errorf("done (-want +got):\n%s", diff)
		}
		rests(t, k, want)
		for range 5 {
			apply(t, k, second(want))
			four.more(t)
			apply(t, k, want)
			six.more(t)
		}
		if lost := []int64{four.lost(t), six.lost(t)}; lost[0]+lost[1] > 0 {
			t.Errorf("lost %d", lost)
		}
		if now := index(t, "flannel.1") + index(t, "flannel-v6.1"); now != indexes {
			t.Errorf("indexes %s, were %s", now, indexes)
		}
		contains(t, look(t), "10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 119 onlink",
			"fd24:0:0:2::/64 via fd24:0:0:2:: dev flannel-v6.1 proto 119 metric 1024 onlink pref medium",
			"10.244.2.0 lladdr 0a:00:00:00:00:02 PERMANENT", "0a:00:00:00:00:02 dst fd77::2 self permanent")
		contains(t, sh(t, "sysctl net.ipv4.conf.flannel/1.rp_filter"), "net.ipv4.conf.flannel/1.rp_filter = 2")
		lacks(t, sh(t, "ip addr")+sh(t, "ls /proc/sys/net/ipv4/conf"), "4789")
	})
}

// TestRenamedDeviceIsChangedToo has what can be changed in place, and what else hangs on it, differ as well.
func TestRenamedDeviceIsChangedToo(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		if !kernel.RenamesLive() {
			netnstest.Unavailable(t, "Linux 6.2")
		}
		k := host(t)
		apply(t, k, second(node(2, 3)))
		before := index(t, "flannel-4789")
		want := withLink(node(3, 4), func(l *state.Link) { l.MTU = 1300 })
		got := strings.Join(lines(apply(t, k, want).Changes()), "\n")
		for _, l := range []string{
			"change link flannel-4789 -name flannel-4789 mtu 1450 +name flannel.1 mtu 1300",
			"add route 10.244.4.0/24 +via 10.244.4.0 dev flannel.1 onlink",
			"remove route 10.244.2.0/24 -via 10.244.2.0 dev flannel.1 onlink",
		} {
			if !strings.Contains(got, l) {
				t.Errorf("no %q in\n%s", l, got)
			}
		}
		lacks(t, got, "10.244.3.0")
		if now := index(t, "flannel.1"); now != before {
			t.Error("made anew")
		}
		rests(t, k, want)
	})
}

// TestRefusedRenameLeavesTheDevice has a name that the kernel does not give away, since it is a second one of another
// device.
func TestRefusedRenameLeavesTheDevice(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		if !kernel.RenamesLive() {
			netnstest.Unavailable(t, "Linux 6.2")
		}
		k := host(t)
		want := under(node(2, 3), "flannel.1", "flannel-4789")
		apply(t, k, want)
		sh(t, "ip link property add dev lo altname flannel.1")
		hanging := func() string {
			return sh(t, "ip route show dev flannel-4789") + sh(t, "ip neigh show dev flannel-4789") +
				sh(t, "bridge fdb show dev flannel-4789") + sh(t, "ip addr show dev flannel-4789 scope global")
		}
		before := hanging()
		for range 2 {
			r, err := k.Apply(t.Context(), node(2), scope)
			if err != nil || len(r.Errors) == 0 || r.Errors[0].Object != "flannel-4789" {
				t.Fatalf("%v, %v", err, r.Errors)
			}
			for _, l := range lines(r.Changes()) {
				if strings.Contains(l, "flannel-4789") {
					t.Error(l)
				}
			}
		}
		if diff := cmp.Diff(before, hanging()); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
		sh(t, "ip link property del dev lo altname flannel.1")
		apply(t, k, node(2))
		rests(t, k, node(2))
	})
}

// TestSecondDeviceComesBesideTheFirst changes the port as the agent does: both at once, then the new one alone.
func TestSecondDeviceComesBesideTheFirst(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		if !kernel.RenamesLive() {
			netnstest.Unavailable(t, "Linux 6.2")
		}
		k, peer := twoHosts(t, 8472, 4789)
		old, now := node(2), second(ported(node(2), 4789))
		apply(t, k, old)
		four, six := startFlow(t, peer, "10.244.0.9", "10.244.2.9"), startFlow(t, peer, "fd24::9", "fd24:0:0:2::9")
		for _, want := range []state.State{
			together(old, now), together(now, old), now, ported(node(2), 4789),
		} {
			apply(t, k, want)
			rests(t, k, want)
			four.more(t)
			six.more(t)
		}
		if lost := []int64{four.lost(t), six.lost(t)}; lost[0]+lost[1] > 0 {
			t.Errorf("lost %d", lost)
		}
	})
}
