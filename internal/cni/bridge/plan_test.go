package bridge

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/internal/cni/conf"
)

func route(dst, gw string) *types.Route {
	_, n, _ := net.ParseCIDR(dst)
	return &types.Route{Dst: *n, GW: net.ParseIP(gw)}
}

func ip(addr, gw string) IP {
	i := IP{Addr: netip.MustParsePrefix(addr)}
	if gw != "" {
		i.Gateway = netip.MustParseAddr(gw)
	}
	return i
}

// line prints what matters of a plan.
func line(p Plan) string {
	var s []string
	s = append(s, fmt.Sprint("bridge ", p.Bridge.Name, " ", p.Bridge.MAC, " ", p.Bridge.Addrs, " forward ", p.Bridge.Forward))
	s = append(s, fmt.Sprint("pod ", p.Pod.Name, " ", p.Pod.Addrs))
	for _, r := range p.Pod.Routes {
		s = append(s, fmt.Sprint("route ", r.Dst, " via ", r.Via))
	}
	return strings.Join(s, "\n")
}

func TestPlan(t *testing.T) {
	flannel := conf.Bridge{Network: "cbr0", Device: "cni0", Gateway: true, DefaultRoute: true, MTU: 1450, Hairpin: true}
	plain := conf.Bridge{Network: "n", Device: "br1"}
	for _, c := range []struct {
		name  string
		conf  conf.Bridge
		given Addressing
		want  string
	}{
		{"both families as flannel has it", flannel, Addressing{
			IPs:    []IP{ip("10.244.3.7/24", "10.244.3.1"), ip("fd24:0:0:3::7/64", "fd24:0:0:3::1")},
			Routes: []*types.Route{route("10.244.0.0/16", ""), route("fd24::/48", "")},
		}, `bridge cni0 0a:58:0a:f4:03:01 [10.244.3.1/24 fd24:0:0:3::1/64] forward [IPv4 IPv6]
pod eth0 [10.244.3.7/24 fd24:0:0:3::7/64]
route 10.244.0.0/16 via 10.244.3.1
route fd24::/48 via fd24:0:0:3::1
route 0.0.0.0/0 via 10.244.3.1
route ::/0 via fd24:0:0:3::1`},
		{"IPv6 only", flannel, Addressing{IPs: []IP{ip("fd24:0:0:3::7/64", "fd24:0:0:3::1")}},
			`bridge cni0 0a:58:7c:ac:f6:8a [fd24:0:0:3::1/64] forward [IPv6]
pod eth0 [fd24:0:0:3::7/64]
route ::/0 via fd24:0:0:3::1`},
		{"a default route of IPAM's stays the only one", flannel, Addressing{
			IPs: []IP{ip("10.244.3.7/24", "10.244.3.1")}, Routes: []*types.Route{route("0.0.0.0/0", "10.244.3.9")},
		}, `bridge cni0 0a:58:0a:f4:03:01 [10.244.3.1/24] forward [IPv4]
pod eth0 [10.244.3.7/24]
route 0.0.0.0/0 via 10.244.3.9`},
		{"no gateway, routes on the link", plain, Addressing{
			IPs: []IP{ip("192.0.2.7/24", "")}, Routes: []*types.Route{route("198.51.100.0/24", "")},
		}, `bridge br1  [] forward []
pod eth0 [192.0.2.7/24]
route 198.51.100.0/24 via invalid IP`},
		{"layer 2 only", plain, Addressing{}, `bridge br1  [] forward []
pod eth0 []`},
	} {
		p, err := New(c.conf, Attachment{"a", "eth0"}, c.given)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(c.want, line(p)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
	if _, err := New(flannel, Attachment{"a", "eth0"}, Addressing{IPs: []IP{ip("10.0.0.1/24", "10.0.0.1")}}); err == nil {
		t.Error("the gateway's address for a pod")
	}
}

func TestPortNames(t *testing.T) {
	seen := map[string]Attachment{}
	for _, id := range []string{"a", "b", "ab", strings.Repeat("f", 64)} {
		for _, ifName := range []string{"eth0", "net1", "b", ""} {
			a := Attachment{id, ifName}
			name := a.PortName()
			if len(name) != 15 || !strings.HasPrefix(name, "veth") {
				t.Errorf("%v: %q", a, name)
			}
			if other, taken := seen[name]; taken {
				t.Errorf("%v and %v share %s", a, other, name)
			}
			seen[name] = a
		}
	}
	// Pods of a running node would lose theirs if this changed.
	if got := (Attachment{"p1", "eth0"}).PortName(); got != "veth7a8ba62b53f" {
		t.Errorf("the name of a known attachment is now %s", got)
	}
}

func TestAListThatChangesIsMadeAgain(t *testing.T) {
	tries := 0
	all, err := whole(func() ([]int, error) {
		if tries++; tries < 3 {
			return nil, netlink.ErrDumpInterrupted
		}
		return []int{1}, nil
	})
	if err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
	if _, err := whole(func() ([]int, error) { return nil, netlink.ErrDumpInterrupted }); err == nil {
		t.Error("a list that never was whole is taken for one")
	}
}

func FuzzParseAddress(f *testing.F) {
	f.Add([]byte{2, 24, 128, 0, 1, 0, 0, 0, 8, 0, 1, 0, 10, 0, 0, 1, 8, 0, 2, 0, 10, 0, 0, 2})
	f.Add([]byte{10, 64, 0, 0, 1, 0, 0, 0, 3, 0, 1, 0})
	f.Fuzz(func(t *testing.T, m []byte) {
		if a, ok := parseAddress(m); ok != a.IsValid() {
			t.Fatalf("%v, %v", a, ok)
		}
	})
}
