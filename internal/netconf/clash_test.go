package netconf

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/state"
)

func config(v4, v6 string) Config {
	var c Config
	if v4 != "" {
		c.Network.V4 = lease.Network{Prefix: netip.MustParsePrefix(v4)}
	}
	if v6 != "" {
		c.Network.V6 = lease.Network{Prefix: netip.MustParsePrefix(v6)}
	}
	return c
}

func host(prefix, dev, what string) HostPrefix {
	return HostPrefix{Prefix: netip.MustParsePrefix(prefix), Dev: dev, What: what}
}

func TestClashes(t *testing.T) {
	for _, tc := range []struct {
		name   string
		config Config
		host   []HostPrefix
		want   []string
	}{
		{"nothing in common", config("10.244.0.0/16", "fd24::/48"),
			[]HostPrefix{host("192.168.1.7/24", "eth0", HostAddress), host("fd00::7/64", "eth0", HostAddress)}, nil},
		{"docker0 has the pod network", config("172.17.0.0/16", ""),
			[]HostPrefix{host("172.17.0.1/16", "docker0", HostAddress), host("172.17.0.0/16", "docker0", HostRoute)},
			[]string{"pod network 172.17.0.0/16 overlaps the address 172.17.0.1/16 of docker0: choose another Network, or give Docker other ranges (bip, default-address-pools)"}},
		{"the underlay lies inside the pod network", config("10.0.0.0/8", ""), []HostPrefix{host("10.1.2.3/24", "eth0", HostAddress)},
			[]string{"pod network 10.0.0.0/8 overlaps the address 10.1.2.3/24 of eth0: choose another Network, or renumber or remove eth0"}},
		{"the pod network lies inside the underlay, away from this host", config("10.244.0.0/16", ""), []HostPrefix{host("10.1.2.3/8", "eth0", HostAddress)},
			[]string{"pod network 10.244.0.0/16 lies inside the address 10.1.2.3/8 of eth0, whose hosts in the pod network are out of reach: choose another Network, or renumber or remove eth0"}},
		{"the host's own address lies in the pod network", config("10.244.0.0/16", ""), []HostPrefix{host("10.0.0.0/8", "eth0", HostRoute), host("10.244.2.3/8", "eth0", HostAddress)},
			[]string{"pod network 10.244.0.0/16 overlaps the address 10.244.2.3/8 of eth0: choose another Network, or renumber or remove eth0"}},
		{"a static route into the pod network", config("10.244.0.0/16", ""), []HostPrefix{host("10.244.9.0/24", "tun0", HostRoute)},
			[]string{"pod network 10.244.0.0/16 overlaps the route 10.244.9.0/24 of tun0: choose another Network, or remove the route"}},
		{"services around and inside the pod network, severe ones first", config("10.96.0.0/16", "fd24::/48"),
			[]HostPrefix{host("10.0.0.0/8", "tun0", HostRoute), host("fd24::/112", "", ServiceRange), host("10.96.0.0/12", "", ServiceRange)},
			[]string{
				"pod network 10.96.0.0/16 overlaps the service range 10.96.0.0/12: choose another Network, or another range for services (--service-cluster-ip-range)",
				"pod network fd24::/48 overlaps the service range fd24::/112: choose another IPv6Network, or another range for services (--service-cluster-ip-range)",
				"pod network 10.96.0.0/16 lies inside the route 10.0.0.0/8 of tun0, whose hosts in the pod network are out of reach: choose another Network, or remove the route",
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, c := range Clashes(tc.config, nil, tc.host...) {
				got = append(got, c.String())
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestHostPrefixesLeaveOutThePodNetworksOwn(t *testing.T) {
	netnstest.Need(t, "ip", "iproute2")
	netnstest.Run(t, func(t *testing.T) {
		ip := func(args ...string) { t.Helper(); netnstest.Command(t, "ip", args...) }
		for dev, addr := range map[string]string{
			"eth0": "192.168.1.7/24", "docker0": "172.17.0.1/16", "cni0": "10.244.7.1/24", "flannel.1": "10.244.7.0/32",
			"podbr": "10.244.7.9/25", "eth1": "10.244.99.1/30",
		} {
			ip("link", "add", dev, "type", "bridge")
			ip("link", "set", dev, "up")
			ip("addr", "add", addr, "dev", dev)
		}
		ip("addr", "add", "fd00::7/64", "dev", "eth0", "nodad")
		ip("addr", "add", "fd24:0:0:7::1/64", "dev", "cni0", "nodad")
		ip("addr", "add", "127.0.0.9/8", "dev", "lo")
		ip("route", "add", "default", "via", "192.168.1.1")
		ip("-6", "route", "add", "default", "via", "fd00::1")
		ip("route", "add", "10.244.8.0/24", "via", "10.244.8.0", "dev", "flannel.1", "onlink")                             // the original's vxlan
		ip("route", "add", "10.244.9.0/24", "via", "192.168.1.9")                                                          // the original's host-gw
		ip("route", "add", "10.244.10.0/24", "via", "192.168.1.10", "protocol", fmt.Sprint(state.Protocol), "metric", "7") // ours
		ip("route", "add", "10.248.9.0/24", "via", "192.168.1.9")                                                          // the original's, in the other range
		ip("-6", "route", "add", "fd24:0:0:9::/64", "via", "fd00::9", "protocol", fmt.Sprint(state.Protocol))              // ours
		ip("route", "add", "blackhole", "10.244.7.0/24", "metric", "9")                                                    // ours
		ip("route", "add", "10.244.11.0/24", "dev", "eth0")                                                                // no gateway: somebody's
		ip("route", "add", "10.244.12.0/24", "via", "192.168.1.12", "protocol", "static")                                  // somebody's
		ip("route", "add", "10.0.0.0/8", "nexthop", "via", "192.168.1.2", "dev", "eth0", "nexthop", "via", "192.168.1.3")  // somebody's
		ip("route", "add", "10.13.0.0/16", "dev", "eth0", "table", "99")                                                   // not in the main table

		h, err := netlink.NewHandle()
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		own := family.Pair[netip.Prefix]{V4: netip.MustParsePrefix("10.244.7.0/24"), V6: netip.MustParsePrefix("fd24:0:0:7::/64")}
		c := config("10.244.0.0/16", "fd24::/48")
		c.Network.V4 = more(c.Network.V4, "10.248.0.0/16")
		got, err := HostPrefixes(h, c, own)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, p := range got {
			seen[fmt.Sprintf("%s %s %s", p.What, p.Prefix, p.Dev)] = true
		}
		want := map[string]bool{
			"address 192.168.1.7/24 eth0": true, "route 192.168.1.0/24 eth0": true,
			"address 172.17.0.1/16 docker0": true, "route 172.17.0.0/16 docker0": true,
			"address 10.244.99.1/30 eth1": true, "route 10.244.99.0/30 eth1": true,
			"address fd00::7/64 eth0": true, "route fd00::/64 eth0": true,
			"route 10.244.11.0/24 eth0": true, "route 10.244.12.0/24 eth0": true, "route 10.0.0.0/8 eth0": true,
		}
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}
