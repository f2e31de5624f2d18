package kernel_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/state"
)

// original makes what the original leaves on a node with two peers: 2, which is still there, and 9, which
// has left, over VXLAN; 8, which has left too, on the underlay.
func original(t *testing.T) {
	t.Helper()
	for _, c := range []string{
		"ip link add flannel.1 mtu 1450 type vxlan id 1 local 10.77.0.1 dev eth0 dstport 8472 nolearning",
		"ip link add flannel-v6.1 mtu 1430 type vxlan id 1 local fd77::1 dev eth0 dstport 8472 nolearning",
		"ip link set flannel.1 address 0a:00:00:00:00:01 up",
		"ip link set flannel-v6.1 address 0a:00:00:00:00:01 up",
		"ip addr add 10.244.0.0/32 dev flannel.1",
		"ip addr add fd24::/128 dev flannel-v6.1",
	} {
		sh(t, c)
	}
	for _, n := range []string{"2", "9"} {
		for _, c := range []string{
			"ip neigh add 10.244.N.0 dev flannel.1 lladdr 0a:00:00:00:00:0N nud permanent",
			"bridge fdb add 0a:00:00:00:00:0N dev flannel.1 dst 10.77.0.N self permanent",
			"ip route add 10.244.N.0/24 via 10.244.N.0 dev flannel.1 onlink",
			"ip neigh add fd24:0:0:N:: dev flannel-v6.1 lladdr 0a:00:00:00:00:0N nud permanent",
			"bridge fdb add 0a:00:00:00:00:0N dev flannel-v6.1 dst fd77::N self permanent",
			"ip route add fd24:0:0:N::/64 via fd24:0:0:N:: dev flannel-v6.1 onlink",
		} {
			sh(t, strings.ReplaceAll(c, "N", n))
		}
	}
	sh(t, "ip route add 10.244.8.0/24 via 10.77.0.8 dev eth0")
	sh(t, "ip route add fd24:0:0:8::/64 via fd77::8 dev eth0")
}

func index(t *testing.T, dev string) string {
	t.Helper()
	n, _, _ := strings.Cut(sh(t, "ip -o link show "+dev), ":")
	return n
}

func TestOriginalIsAdopted(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		original(t)
		links, err := k.Links()
		if err != nil || len(links) != 2 || links["flannel.1"].MAC != mac(1) || links["flannel.1"].VXLAN.Parent != "eth0" {
			t.Fatalf("links %v, %v", links, err)
		}
		before := index(t, "flannel.1")

		incomplete := scope
		incomplete.Complete = false
		if r, err := k.Apply(t.Context(), node(), incomplete); err != nil || r.Err() != nil {
			t.Fatal(err, r.Err())
		}
		contains(t, look(t), "10.244.9.0/24 via 10.244.9.0 dev flannel.1 onlink", "10.244.8.0/24 via 10.77.0.8 dev eth0",
			"10.244.9.0 lladdr 0a:00:00:00:00:09 PERMANENT", "0a:00:00:00:00:09 dst 10.77.0.9 self permanent")

		r := apply(t, k, node(2))
		want := []string{
			"change route 10.244.2.0/24 -via 10.244.2.0 dev flannel.1 onlink proto 3 +via 10.244.2.0 dev flannel.1 onlink",
			"change route fd24:0:0:2::/64 metric 1024 -via fd24:0:0:2:: dev flannel-v6.1 onlink proto 3 +via fd24:0:0:2:: dev flannel-v6.1 onlink",
			"remove route fd24:0:0:8::/64 metric 1024 -via fd77::8 dev eth0 proto 3",
			"remove route fd24:0:0:9::/64 metric 1024 -via fd24:0:0:9:: dev flannel-v6.1 onlink proto 3",
			"remove route 10.244.8.0/24 -via 10.77.0.8 dev eth0 proto 3",
			"remove route 10.244.9.0/24 -via 10.244.9.0 dev flannel.1 onlink proto 3",
			"remove fdb 0a:00:00:00:00:09 dev flannel-v6.1 -dst fd77::9",
			"remove fdb 0a:00:00:00:00:09 dev flannel.1 -dst 10.77.0.9",
			"remove neighbour fd24:0:0:9:: dev flannel-v6.1 -lladdr 0a:00:00:00:00:09",
			"remove neighbour 10.244.9.0 dev flannel.1 -lladdr 0a:00:00:00:00:09",
		}
		if diff := cmp.Diff(want, lines(r.Changes())); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if now := index(t, "flannel.1"); now != before {
			t.Errorf("flannel.1 was made anew")
		}
		lacks(t, look(t), "10.244.9.", "10.244.8.", "fd24:0:0:9", "fd24:0:0:8", "00:09")
		rests(t, k, node(2))
	})
}

// TestFormerProcess leaves what an agent of ours with other leases, another own subnet and another VNI has
// made.
func TestFormerProcess(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		former := node(2, 5)
		l := former.Links["flannel.1"]
		l.VXLAN.VNI = 7
		former.Links["flannel.7"] = l
		former.Addresses[state.Address{Dev: "flannel.7", Prefix: netip.MustParsePrefix("10.244.40.0/32")}] = true
		former.Addresses[state.Address{Dev: "flannel.1", Prefix: netip.MustParsePrefix("10.244.40.0/32")}] = true
		dst := netip.MustParsePrefix("10.244.6.0/24")
		former.Routes[state.RouteKey{Dst: dst}] = state.Route{
			Type: state.Unicast, Via: dst.Addr(), Dev: "flannel.7", OnLink: true, Protocol: state.Protocol}
		underlay(former, 5)
		apply(t, k, former)
		apply(t, k, node(2, 3))
		lacks(t, look(t), "10.244.40", "10.244.6", "10.244.5", "fd24:0:0:5", "00:05")
		lacks(t, sh(t, "ip link"), "flannel.7")
		rests(t, k, node(2, 3))
	})
}

func TestOriginalWithAnotherVNIIsPruned(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		original(t)
		want := node(2)
		for _, dev := range []string{"flannel.1", "flannel-v6.1"} { // ours has VNI 4
			l := want.Links[dev]
			delete(want.Links, dev)
			l.VXLAN.VNI = 4
			want.Links[strings.TrimSuffix(dev, "1")+"4"] = l
		}
		move := func(dev string) string { return strings.TrimSuffix(dev, "1") + "4" }
		moved := state.New()
		moved.Links = want.Links
		for a := range want.Addresses {
			moved.Addresses[state.Address{Dev: move(a.Dev), Prefix: a.Prefix}] = true
		}
		for n, m := range want.Neighbours {
			moved.Neighbours[state.NeighbourKey{Dev: move(n.Dev), Addr: n.Addr}] = m
		}
		for f, d := range want.FDB {
			moved.FDB[state.FDBKey{Dev: move(f.Dev), MAC: f.MAC}] = d
		}
		for key, r := range want.Routes {
			r.Dev = move(r.Dev)
			moved.Routes[key] = r
		}
		apply(t, k, moved)
		out := sh(t, "ip link")
		lacks(t, out, "flannel.1:", "flannel.1@", "flannel-v6.1")
		contains(t, sh(t, "ip route")+sh(t, "ip -6 route"), "10.244.2.0/24 via 10.244.2.0 dev flannel.4 proto 119 onlink",
			"fd24:0:0:2::/64 via fd24:0:0:2:: dev flannel-v6.4 proto 119 metric 1024 onlink pref medium")
		lacks(t, sh(t, "ip route"), "10.244.9", "10.244.8")
		rests(t, k, moved)
	})
}

// TestForeignSurvives puts somebody else's state next to ours, as close as it gets.
func TestForeignSurvives(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		want := node(2)
		apply(t, k, want)
		for _, c := range []string{
			"ip link add docker0 type bridge", "ip link set docker0 up", "ip addr add 172.17.0.1/16 dev docker0",
			"ip link add cni0 type bridge", "ip link set cni0 up", "ip addr add 10.244.0.1/24 dev cni0",
			"ip link add vx type vxlan id 99 dev eth0 dstport 4789", "ip link set vx up",
			"ip link add flannel.99 type vxlan id 98 dev eth0 dstport 8472", "ip link set flannel.99 up", // holds no address of a subnet
			"ip addr add 192.0.2.9/32 dev flannel.99",
			"ip link add flannel.55 type vxlan id 55 dev eth0 dstport 8472", "ip link set flannel.55 alias weft:other up", // another agent's
			"ip addr add 10.244.55.0/32 dev flannel.55",
			"ip route add 10.244.200.0/24 via 10.77.0.9 proto static",
			"ip route add 10.244.201.0/24 via 10.77.0.9 proto bird",
			"ip route add 10.244.202.0/24 via 10.77.0.9 metric 50",
			"ip route add 10.244.203.0/24 via 10.77.0.9 table 100",
			"ip route add 10.244.203.0/24 via 10.77.0.9 table 100 proto 119 metric 3",
			"ip route add 10.244.204.0/24 via 172.17.0.9 dev docker0",
			"ip route add 10.244.205.0/24 dev eth0",
			"ip route add blackhole 10.244.206.0/24",
			"ip route add 10.244.207.0/24 nexthop via 10.77.0.8 nexthop via 10.77.0.9",
			"ip route add 10.244.0.0/16 via 10.77.0.9",
			"ip route add 10.9.0.0/16 via 10.77.0.9",
			"ip route add default via 10.77.0.254",
			"ip route add 192.0.2.0/24 dev flannel.1", // not in a network, not with our protocol
			"ip neigh add 10.77.0.9 dev eth0 lladdr 02:00:00:00:00:09 nud permanent",
			"ip neigh add 10.244.99.9 dev flannel.1 lladdr 02:00:00:00:00:09 nud stale",
			"bridge fdb add 02:00:00:00:00:09 dev vx dst 10.77.0.9 self permanent",
			"bridge fdb add 02:00:00:00:00:0a dev flannel.1 dst 10.77.0.9 self dynamic",
			"ip addr add 192.0.2.1/32 dev flannel.1",
			"ip addr add 2001:db8::1/128 dev flannel-v6.1 nodad",
			"ip -6 route add fd24:0:0:c8::/64 via fd77::9 proto static",
			"ip -6 route add fd24::/48 via fd77::9",
		} {
			sh(t, c)
		}
		everything := func() []string {
			all := sh(t, "ip link") + sh(t, "ip addr show scope global") + sh(t, "ip route show table all") + sh(t, "ip -6 route show table all") +
				sh(t, "ip neigh show nud permanent") + sh(t, "ip neigh show nud stale") + sh(t, "bridge fdb")
			return slices.DeleteFunc(strings.Split(all, "\n"), onItsOwn)
		}
		local6(t, "2001:db8::1")
		before := everything()
		rests(t, k, want)
		apply(t, k, node(2, 3))
		apply(t, k, want)
		if diff := cmp.Diff(before, everything()); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
	})
}

// TestOldKernel does without filtered dumps, with other devices' neighbours and tables about.
func TestOldKernel(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		if err := k.LoseStrictChecks(); err != nil {
			t.Fatal(err)
		}
		original(t)
		for _, c := range []string{
			"ip link add vx type vxlan id 99 dev eth0 dstport 4789", "ip link set vx up",
			"bridge fdb add 02:00:00:00:00:09 dev vx dst 10.77.0.9 self permanent",
			"ip neigh add 10.77.0.9 dev eth0 lladdr 02:00:00:00:00:09 nud permanent",
			"ip route add 10.244.203.0/24 via 10.77.0.9 table 100",
			"ip route add 10.244.2.0/24 via 10.77.0.9 table 100",
		} {
			sh(t, c)
		}
		apply(t, k, node(2, 3))
		rests(t, k, node(2, 3))
		lacks(t, look(t), "10.244.9", "00:09 dst")
		contains(t, sh(t, "ip route show table 100")+sh(t, "bridge fdb show dev vx"),
			"10.244.203.0/24 via 10.77.0.9 dev eth0", "10.244.2.0/24 via 10.77.0.9 dev eth0", "02:00:00:00:00:09 dst 10.77.0.9 self permanent")
	})
}
