package kernel_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/state"
)

// TestDamage does something to a settled node by hand. One pass mends it, a second has nothing to do.
func TestDamage(t *testing.T) {
	for name, commands := range map[string][]string{
		"device deleted":        {"ip link del flannel.1"},
		"both devices deleted":  {"ip link del flannel.1", "ip link del flannel-v6.1"},
		"device renamed":        {"ip link set flannel.1 down", "ip link set flannel.1 name lost", "ip link set lost up"},
		"device in a bridge":    {"ip link add br0 type bridge", "ip link set flannel.1 master br0"},
		"device down":           {"ip link set flannel.1 down", "ip link set flannel-v6.1 down"},
		"MAC changed":           {"ip link set flannel.1 address 02:aa:aa:aa:aa:aa"},
		"MTU changed":           {"ip link set flannel.1 mtu 1280"},
		"alias taken off":       {"ip link set flannel.1 alias somebody"},
		"learning turned on":    {"ip link set flannel.1 type vxlan learning"},
		"local address changed": {"ip link set flannel.1 type vxlan local 10.77.0.9"},
		"parent re-created": {"ip link del eth0", "ip link add eth0 type veth peer name wire2", "ip link set eth0 up",
			"ip link set wire2 up", "ip addr add 10.77.0.1/24 dev eth0", "ip addr add fd77::1/64 dev eth0 nodad"},
		"routes flushed":             {"ip route flush proto 119", "ip -6 route flush proto 119"},
		"one route deleted":          {"ip route del 10.244.2.0/24"},
		"route replaced":             {"ip route replace 10.244.2.0/24 via 10.77.0.9 dev eth0", "ip -6 route replace fd24:0:0:2::/64 via fd77::9 dev eth0"},
		"route with a source":        {"ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 119 src 10.77.0.1"},
		"route prepended":            {"ip route prepend 10.244.2.0/24 via 10.77.0.9 dev eth0"},
		"route appended":             {"ip route append 10.244.2.0/24 via 10.77.0.9 dev eth0"},
		"second next hop":            {"ip -6 route append fd24:0:0:2::/64 via fd77::9 dev eth0", "ip -6 route append fd24:0:0:2::/64 dev eth0"},
		"route made a blackhole":     {"ip route replace blackhole 10.244.2.0/24", "ip -6 route replace blackhole fd24:0:0:2::/64"},
		"further route of ours":      {"ip route add 10.244.99.0/24 via 10.77.0.9 proto 119", "ip route add 192.0.2.0/24 dev flannel.1 proto 119"},
		"neighbour deleted":          {"ip neigh del 10.244.2.0 dev flannel.1", "ip neigh flush dev flannel-v6.1 nud permanent"},
		"neighbour changed":          {"ip neigh replace 10.244.2.0 dev flannel.1 lladdr 02:bb:bb:bb:bb:bb nud permanent"},
		"neighbour no longer static": {"ip neigh replace 10.244.2.0 dev flannel.1 lladdr 0a:00:00:00:00:02 nud stale"},
		"further neighbour":          {"ip neigh add 10.244.99.0 dev flannel.1 lladdr 02:bb:bb:bb:bb:bb nud permanent"},
		"FDB entry deleted":          {"bridge fdb del 0a:00:00:00:00:02 dev flannel.1", "bridge fdb del 0a:00:00:00:00:03 dev flannel-v6.1"},
		"FDB entry changed":          {"bridge fdb replace 0a:00:00:00:00:02 dev flannel.1 dst 10.77.0.9 self permanent"},
		"FDB entry with a port":      {"bridge fdb replace 0a:00:00:00:00:02 dev flannel.1 dst 10.77.0.2 port 1234 self permanent"},
		"further FDB entries": {"bridge fdb add 02:bb:bb:bb:bb:bb dev flannel.1 dst 10.77.0.9 self permanent",
			"bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 10.77.0.8", "bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 10.77.0.9"},
		"address deleted":     {"ip addr flush dev flannel.1", "ip addr flush dev flannel-v6.1 scope global"},
		"further address":     {"ip addr add 10.244.77.1/32 dev flannel.1", "ip addr add fd24::77/128 dev flannel-v6.1 nodad"},
		"address with a peer": {"ip addr add 10.244.77.1 peer 10.244.77.2/32 dev flannel.1"},
		"address with another length": {"ip addr del fd24::/128 dev flannel-v6.1", "ip addr add fd24::/64 dev flannel-v6.1 nodad",
			"ip addr del 10.244.0.0/32 dev flannel.1", "ip addr add 10.244.0.0/30 dev flannel.1"},
		"sysctl turned back": {"sysctl -qw net/ipv6/conf/flannel.1/accept_ra=2"},
	} {
		t.Run(name, func(t *testing.T) {
			netnstest.Run(t, func(t *testing.T) {
				k := host(t)
				want := node(2, 3)
				apply(t, k, want)
				settled := look(t)
				for _, c := range commands {
					sh(t, c)
				}
				planned, err := k.Plan(want, scope)
				if err != nil || len(planned) == 0 {
					t.Fatalf("plan: %v %v", lines(planned), err)
				}
				r := apply(t, k, want)
				if diff := cmp.Diff(lines(planned), lines(r.Changes())); diff != "" && !strings.Contains(diff, "sysctl") {
					t.Errorf("plan and what was done (-plan +done):\n%s", diff)
				}
				t.Log(strings.Join(lines(r.Changes()), "\n"))
				if diff := cmp.Diff(normal(settled), normal(look(t))); diff != "" {
					t.Errorf("(-before +after):\n%s", diff)
				}
				rests(t, k, want)
			})
		})
	}
}

// normal leaves out what differs for other reasons: the order of the lines, and the number of a device.
func normal(text string) map[string]bool {
	m := map[string]bool{}
	for l := range strings.Lines(text) {
		_, rest, numbered := strings.Cut(l, ": ")
		if !numbered {
			rest = l
		}
		if !onItsOwn(l) {
			m[strings.Join(strings.Fields(rest), " ")] = true
		}
	}
	return m
}

// onItsOwn says whether a line is about link-local addresses and multicast groups, which come some time after their device.
func onItsOwn(line string) bool {
	return strings.Contains(line, "fe80::") || strings.Contains(line, "ff00::/8") || strings.HasPrefix(line, "33:33:")
}

func TestSysctlsBeforeAreReported(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		want := state.New()
		want.Sysctls["net/ipv4/ip_forward"] = "1"
		want.Sysctls["net/ipv4/ip_local_port_range"] = "1024 2048"
		sh(t, "sysctl -qw net/ipv4/ip_forward=0")
		r := apply(t, k, want)
		before := map[string]string{"net/ipv4/ip_forward": "0", "net/ipv4/ip_local_port_range": "32768 60999"}
		if diff := cmp.Diff(before, r.Sysctls); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		rests(t, k, want)
	})
}

func TestMissingSysctl(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		want := state.New()
		want.Sysctls["net/ipv4/conf/nowhere/rp_filter"] = "2"
		want.Sysctls["net/ipv6/conf/nowhere/accept_ra"] = "0" // the original ignores it too
		want.Sysctls["../../etc/passwd"] = "x"
		r, err := k.Apply(t.Context(), want, scope)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Errors) != 2 || r.Errors[1].Object != "net/ipv4/conf/nowhere/rp_filter" {
			t.Errorf("errors: %v", r.Errors)
		}
	})
}
