package cni

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/internal/cni/bridge"
	"github.com/weftnet/weft/internal/cni/hostlocal"
	"github.com/weftnet/weft/internal/cni/install"
)

func TestDead(t *testing.T) {
	a := netip.MustParseAddr
	ours, theirs := hostlocal.Owner{ContainerID: "ours", IfName: "eth0"}, hostlocal.Owner{ContainerID: "theirs", IfName: "eth0"}
	port := bridge.Attachment{ContainerID: "ours", IfName: "eth0"}.PortName()
	both := map[netip.Addr]hostlocal.Owner{a("10.0.0.2"): ours, a("10.0.0.3"): theirs}
	for _, c := range []struct {
		name  string
		ports []bridge.LivePort
		want  string
	}{
		{"nothing lives", nil, "[10.0.0.2 10.0.0.3]"},
		{"both live", []bridge.LivePort{{Name: port, Ours: true, Addrs: []netip.Addr{a("10.0.0.2")}}, {Name: "veth1", Addrs: []netip.Addr{a("10.0.0.3")}}}, "[]"},
		{"our port is there, its address is not", []bridge.LivePort{{Name: port, Ours: true}}, "[10.0.0.3]"},
		{"a port of the other plugin without address: it may be about to get one", []bridge.LivePort{{Name: "veth1"}}, "[10.0.0.2]"},
		{"a port leads elsewhere", []bridge.LivePort{{Name: "veth1", Addrs: []netip.Addr{a("192.0.2.1")}}}, "[10.0.0.2 10.0.0.3]"},
	} {
		got := dead(both, c.ports, func(o hostlocal.Owner) bool { return o == ours })
		if fmt.Sprint(got) != c.want {
			t.Errorf("%s: %s, not %s", c.name, got, c.want)
		}
	}
}

func TestDrained(t *testing.T) {
	prefixes := func(texts ...string) (all []netip.Prefix) {
		for _, p := range texts {
			all = append(all, netip.MustParsePrefix(p))
		}
		return all
	}
	networks := prefixes("10.244.0.0/16", "fd24::/48", "0.0.0.0/0")
	for _, c := range []struct {
		name  string
		extra []netip.Prefix
		held  []netip.Addr
		want  string
	}{
		{"gateway of a former subnet", prefixes("10.244.1.1/24", "fd24:0:0:1::1/64"), nil, "[10.244.1.1/24 fd24:0:0:1::1/64]"},
		{"a pod lives there", prefixes("10.244.1.1/24"), []netip.Addr{netip.MustParseAddr("10.244.1.77")}, "[]"},
		{"no gateway's address", prefixes("10.244.1.2/24"), nil, "[]"},
		{"outside the network", prefixes("192.168.1.1/24"), nil, "[]"},
		{"the network itself", prefixes("10.244.0.1/16"), nil, "[]"},
	} {
		if got := drained(c.extra, networks, c.held); fmt.Sprint(got) != c.want {
			t.Errorf("%s: %s, not %s", c.name, got, c.want)
		}
	}
}

func TestOwners(t *testing.T) {
	v := validOwners([]types.GCAttachment{{ContainerID: "a", IfName: "eth0"}})
	for o, want := range map[hostlocal.Owner]bool{{ContainerID: "a", IfName: "eth0"}: true, {ContainerID: "a", IfName: "net1"}: false, {ContainerID: "a"}: true, {ContainerID: "b"}: false} {
		if v.has(o) != want {
			t.Errorf("%v: %v", o, !want)
		}
	}
}

func TestBuiltInConflist(t *testing.T) {
	for _, name := range append(install.Links(), "flannel") {
		if _, ok := plugins(name); !ok {
			t.Errorf("%s is linked and not built in", name)
		}
	}
}
