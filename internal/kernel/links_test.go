package kernel_test

import (
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/state"
)

// withLink changes the wanted IPv4 device.
func withLink(s state.State, f func(*state.Link)) state.State {
	l := s.Links["flannel.1"]
	f(&l)
	s.Links["flannel.1"] = l
	return s
}

func TestLinkIsChangedInPlaceWhereTheKernelCan(t *testing.T) {
	for name, c := range map[string]struct {
		f     func(*state.Link)
		shows string
		anew  bool
	}{
		"MTU":        {func(l *state.Link) { l.MTU = 1300 }, "mtu 1300", false},
		"MAC":        {func(l *state.Link) { l.MAC = mac(77) }, "0a:00:00:00:00:4d", false},
		"alias":      {func(l *state.Link) { l.Owner = "else" }, "alias else", false},
		"local":      {func(l *state.Link) { l.VXLAN.Local = peerAddr(200) }, "local 10.77.0.200", false},
		"learning":   {func(l *state.Link) { l.VXLAN.Learning = true }, "dstport 8472 ttl auto", false},
		"parent":     {func(l *state.Link) { l.VXLAN.Parent = "wire" }, "dev wire", false},
		"port":       {func(l *state.Link) { l.VXLAN.Port = 4789 }, "dstport 4789", true},
		"VNI":        {func(l *state.Link) { l.VXLAN.VNI = 5 }, "vxlan id 5", true},
		"GBP":        {func(l *state.Link) { l.VXLAN.GBP = true }, "gbp", true},
		"everything": {func(l *state.Link) { l.MTU, l.MAC, l.VXLAN.Parent, l.VXLAN.Learning = 1200, mac(9), "wire", true }, "mtu 1200", false},
	} {
		t.Run(name, func(t *testing.T) {
			netnstest.Run(t, func(t *testing.T) {
				k := host(t)
				apply(t, k, node(2, 3))
				before := index(t, "flannel.1")
				want := withLink(node(2, 3), c.f)
				apply(t, k, want)
				out := sh(t, "ip -d link show flannel.1")
				if !strings.Contains(out, c.shows) {
					t.Errorf("no %q in %s", c.shows, out)
				}
				if anew := index(t, "flannel.1") != before; anew != c.anew {
					t.Errorf("made anew: %v", anew)
				}
				contains(t, look(t), "10.244.2.0 lladdr 0a:00:00:00:00:02 PERMANENT", "10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 119 onlink",
					"0a:00:00:00:00:02 dst 10.77.0.2 self permanent")
				rests(t, k, want)
			})
		})
	}
}

// TestIncompatibleDeviceIsMadeAnew has devices of the right name and kind that cannot be adopted.
func TestIncompatibleDeviceIsMadeAnew(t *testing.T) {
	for name, attributes := range map[string]string{
		"group":          "id 1 group 239.1.1.1 local 10.77.0.1 dev eth0 dstport 8472 nolearning",
		"l2miss":         "id 1 local 10.77.0.1 dev eth0 dstport 8472 nolearning l2miss",
		"external":       "external dstport 8472 nolearning",
		"other port":     "id 1 local 10.77.0.1 dev eth0 dstport 4789 nolearning",
		"other family":   "id 1 local fd77::1 dev eth0 dstport 8473 nolearning",
		"no local":       "id 1 dev eth0 dstport 8472 nolearning",
		"other VNI, GBP": "id 9 local 10.77.0.1 dev eth0 dstport 8472 gbp",
	} {
		t.Run(name, func(t *testing.T) {
			netnstest.Run(t, func(t *testing.T) {
				k := host(t)
				sh(t, "ip link add flannel.1 type vxlan "+attributes)
				apply(t, k, node(2))
				out := sh(t, "ip -d link show flannel.1")
				if !strings.Contains(out, "vxlan id 1 local 10.77.0.1 dev eth0 srcport 0 0 dstport 8472 nolearning ttl auto") {
					t.Error(out)
				}
				rests(t, k, node(2))
			})
		})
	}
}

func TestDeviceOfAnotherKindIsLeftAlone(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		sh(t, "ip link add flannel.1 type bridge")
		sh(t, "ip link add flannel-v6.1 type vxlan id 1 local fd77::1 dev eth0 dstport 8472")
		sh(t, "ip link set flannel-v6.1 alias weft:other")
		r, err := k.Apply(t.Context(), node(2), scope)
		if err != nil {
			t.Fatal(err)
		}
		text := r.Err().Error()
		for _, part := range []string{`link flannel.1: change: a device of kind "bridge" has this name`, `another agent (alias "weft:other")`} {
			if !strings.Contains(text, part) {
				t.Errorf("no %q in %s", part, text)
			}
		}
		if out := sh(t, "ip -d link show flannel.1"); !strings.Contains(out, "bridge") {
			t.Error(out)
		}
		if out := sh(t, "ip addr show flannel-v6.1"); strings.Contains(out, "fd24") {
			t.Error(out)
		}
	})
}

// TestMTUIsCutByTheKernel asks for more than the lower device carries.
func TestMTUIsCutByTheKernel(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		want := node(2)
		for dev, l := range want.Links {
			l.MTU = 9000
			want.Links[dev] = l
		}
		apply(t, k, want)
		for dev, mtu := range map[string]string{"flannel.1": " mtu 1450 ", "flannel-v6.1": " mtu 1430 "} {
			if out := sh(t, "ip link show "+dev); !strings.Contains(out, mtu) {
				t.Errorf("no %q in %s", mtu, out)
			}
		}
		rests(t, k, want)
		sh(t, "ip link set eth0 mtu 1400")
		apply(t, k, want)
		if out := sh(t, "ip link show flannel.1"); !strings.Contains(out, " mtu 1350 ") {
			t.Error(out)
		}
		rests(t, k, want)
	})
}

func TestDefaultPort(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		want := withLink(node(2), func(l *state.Link) { l.VXLAN.Port = 0 })
		apply(t, k, want)
		if out := sh(t, "ip -d link show flannel.1"); !strings.Contains(out, "dstport 8472") {
			t.Error(out)
		}
		rests(t, k, want)
		// From 4789 back to the default.
		apply(t, k, withLink(node(2), func(l *state.Link) { l.VXLAN.Port = 4789 }))
		apply(t, k, want)
		if out := sh(t, "ip -d link show flannel.1"); !strings.Contains(out, "dstport 8472") {
			t.Error(out)
		}
	})
}

func TestCleanup(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		want := node(2, 3)
		underlay(want, 3)
		want.Routes[state.RouteKey{Dst: subnet4(0)}] = state.Route{Type: state.Blackhole, Protocol: state.Protocol}
		before := sh(t, "ip addr") + sh(t, "ip route") + sh(t, "ip -6 route")
		apply(t, k, want)
		for _, c := range []string{
			"ip link add flannel.7 type vxlan id 7 dev eth0 dstport 8472",
			"ip tuntap add flannel0 mode tun", "ip link set flannel0 up",
			"ip route add 10.244.8.0/24 via 10.77.0.8 dev eth0",
			"ip route add blackhole 10.244.9.0/24",
			"ip link add cni0 type bridge", "ip link add tap0 type bridge",
		} {
			sh(t, c)
		}
		dry, err := k.Cleanup(t.Context(), scope, true)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := k.Cleanup(t.Context(), scope, true); err != nil || len(again) != len(dry) {
			t.Errorf("a dry run was not dry: %v then %v, %v", lines(dry), lines(again), err)
		}
		done, err := k.Cleanup(t.Context(), scope, false)
		if err != nil || len(dry) != len(done) {
			t.Fatalf("%v: dry %v, done %v", err, lines(dry), lines(done))
		}
		if again, err := k.Cleanup(t.Context(), scope, false); err != nil || len(again) > 0 {
			t.Errorf("second time: %v, %v", lines(again), err)
		}
		contains(t, sh(t, "ip -br link show type bridge"), "cni0 DOWN "+strings.Fields(sh(t, "ip -br link show cni0"))[2]+" <BROADCAST,MULTICAST>")
		sh(t, "ip link del cni0")
		sh(t, "ip link del tap0")
		if now := sh(t, "ip addr") + sh(t, "ip route") + sh(t, "ip -6 route"); now != before {
			t.Errorf("before\n%s\nafter\n%s", before, now)
		}
	})
}
