package netconf

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
)

func TestAdditionalNetworks(t *testing.T) {
	v4, v6 := network("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0"), network("fd24::/48", 64, "fd24:0:0:1::", "fd24:0:0:ffff::")
	one := family.Pair[lease.Network]{V4: more(v4, "10.248.0.0/16")}
	bounded := network("10.244.0.0/16", 26, "10.244.7.0", "10.244.7.192")
	for _, tc := range []struct {
		name, in string
		store    Store
		want     family.Pair[lease.Network]
		warnings []string
	}{
		{"one", `"AdditionalNetworks":["10.248.0.0/16"]`, Etcd, one, nil},
		{"in any case", `"additionalnetworks":["10.248.0.0/16"]`, Etcd, one, nil},
		{"several, in their order", `"AdditionalNetworks":["10.248.0.0/16","10.9.0.0/22","10.8.0.0/16"]`, Etcd,
			family.Pair[lease.Network]{V4: more(v4, "10.248.0.0/16", "10.9.0.0/22", "10.8.0.0/16")}, nil},
		{"SubnetMin and SubnetMax concern Network only", `"SubnetLen":26,"SubnetMin":"10.244.7.0","SubnetMax":"10.244.7.192","AdditionalNetworks":["10.248.0.0/24"]`, Etcd,
			family.Pair[lease.Network]{V4: more(bounded, "10.248.0.0/24")}, nil},
		{"both families", `"AdditionalNetworks":["10.248.0.0/16"],"EnableIPv6":true,"IPv6Network":"fd24::/48","IPv6AdditionalNetworks":["fd42::/48","fd24:0:1::/48"]`, Etcd,
			family.Pair[lease.Network]{V4: one.V4, V6: more(v6, "fd42::/48", "fd24:0:1::/48")}, nil},
		{"none", `"AdditionalNetworks":[],"IPv6AdditionalNetworks":null`, Etcd, family.Pair[lease.Network]{V4: v4}, nil},
		{"the range beside Network", `"AdditionalNetworks":["10.245.0.0/16"]`, Etcd, family.Pair[lease.Network]{V4: more(v4, "10.245.0.0/16")}, nil},
		{"host bits are cleared, public space is named", `"AdditionalNetworks":["10.248.0.0/16","100.244.3.4/16"]`, Etcd,
			family.Pair[lease.Network]{V4: more(v4, "10.248.0.0/16", "100.244.0.0/16")}, []string{
				"AdditionalNetworks[1]: 100.244.3.4/16 has host bits, taken as 100.244.0.0/16",
				"AdditionalNetworks[1]: 100.244.0.0/16 is public address space: pods will not reach whoever has it on the Internet",
			}},
		{"a family that is off", `"IPv6AdditionalNetworks":["fd42::/48"]`, Etcd, family.Pair[lease.Network]{V4: v4},
			[]string{"IPv6AdditionalNetworks: has no effect: EnableIPv6 is off"}},
		{"given twice", `"AdditionalNetworks":["10.9.0.0/16"],"AdditionalNetworks":["10.248.0.0/16"]`, Etcd, one,
			[]string{"AdditionalNetworks: given more than once: the last one counts"}},
		{"a slip of the pen", `"AdditionalNetwork":["10.248.0.0/16"]`, Etcd, family.Pair[lease.Network]{V4: v4},
			[]string{"AdditionalNetwork: unknown, ignored: perhaps AdditionalNetworks is meant"}},
		{"Kubernetes cuts nothing", `"AdditionalNetworks":["10.248.0.0/25"]`, Kubernetes,
			family.Pair[lease.Network]{V4: more(lease.Network{Prefix: v4.Prefix}, "10.248.0.0/25")}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, warnings, err := Parse([]byte(`{"Network":"10.244.0.0/16",`+tc.in+`,"Backend":{"Type":"vxlan"}}`), tc.store)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got.Network, compareAddresses...); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(tc.warnings, lines(warnings)); diff != "" {
				t.Errorf("warnings (-want +got)\n%s", diff)
			}
			again, _, err := Parse(Render(got), tc.store)
			if err != nil || again != got {
				t.Errorf("rendered and parsed again: %+v, %v", again, err)
			}
		})
	}
}

func TestProblemsOfAdditionalNetworks(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		store    Store
		want     []string
	}{
		{"no list", `"AdditionalNetworks":"10.248.0.0/16"`, Etcd,
			[]string{`AdditionalNetworks: must be a list of IPv4 prefixes in quotes, such as ["10.244.0.0/16"]`}},
		{"too many", `"AdditionalNetworks":[` + strings.Repeat(`"10.248.0.0/16",`, 8) + `""]`, Etcd, []string{"AdditionalNetworks: has 9 entries: 8 at most"}},
		{"what is no prefix of the family, even where it is off", `"AdditionalNetworks":["10.248.0.0","fd42::/48",7,null,""],"IPv6AdditionalNetworks":["10.1.0.0/16","::ffff:10.1.0.0/112"]`, Etcd, []string{
			`AdditionalNetworks[0]: "10.248.0.0" is not an IPv4 prefix such as 10.244.0.0/16`,
			`AdditionalNetworks[1]: "fd42::/48" is not an IPv4 prefix such as 10.244.0.0/16`,
			`AdditionalNetworks[2]: must be an IPv4 prefix in quotes, such as "10.244.0.0/16"`,
			`AdditionalNetworks[3]: must be an IPv4 prefix in quotes, such as "10.244.0.0/16"`,
			`AdditionalNetworks[4]: must be an IPv4 prefix in quotes, such as "10.244.0.0/16"`,
			`IPv6AdditionalNetworks[0]: "10.1.0.0/16" is not an IPv6 prefix such as fd24::/48`,
			`IPv6AdditionalNetworks[1]: "::ffff:10.1.0.0/112" is not an IPv6 prefix such as fd24::/48`,
		}},
		{"not routed, and every address", `"AdditionalNetworks":["127.1.0.0/16","0.0.0.0/0"]`, Kubernetes, []string{
			"AdditionalNetworks[0]: 127.1.0.0/16 overlaps 127.0.0.0/8, which is not routed: choose a range such as 10.244.0.0/16",
			"AdditionalNetworks[1]: 0.0.0.0/0 is every address there is: give the range of the pods, such as 10.244.0.0/16",
			"AdditionalNetworks[1]: 0.0.0.0/0 overlaps Network, 10.244.0.0/16",
			"AdditionalNetworks[1]: 0.0.0.0/0 overlaps AdditionalNetworks[0], 127.1.0.0/16",
		}},
		{"overlaps", `"AdditionalNetworks":["10.244.0.0/16","10.248.0.0/15","10.249.0.0/16"],"EnableIPv6":true,"IPv6Network":"fd24::/48","IPv6AdditionalNetworks":["fd24::/32"]`, Etcd, []string{
			"AdditionalNetworks[0]: 10.244.0.0/16 overlaps Network, 10.244.0.0/16",
			"AdditionalNetworks[2]: 10.249.0.0/16 overlaps AdditionalNetworks[1], 10.248.0.0/15",
			"IPv6AdditionalNetworks[0]: fd24::/32 overlaps IPv6Network, fd24::/48",
		}},
		{"too small for subnets", `"AdditionalNetworks":["10.248.0.0/22","10.9.0.0/23","10.8.0.0/28"]`, Etcd, []string{
			"AdditionalNetworks[1]: 10.9.0.0/23 is too small for subnets of /24: /22 or shorter is needed",
			"AdditionalNetworks[2]: 10.8.0.0/28 is too small for subnets of /24: /22 or shorter is needed",
		}},
		{"problems elsewhere hide none here", `"SubnetMin":7,"AdditionalNetworks":["10.244.0.0/16",1]`, Etcd, []string{
			`SubnetMin: 7 is not an IPv4 address in quotes, such as "10.244.0.0"`,
			`AdditionalNetworks[1]: must be an IPv4 prefix in quotes, such as "10.244.0.0/16"`,
			"AdditionalNetworks[0]: 10.244.0.0/16 overlaps Network, 10.244.0.0/16",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, _, err := Parse([]byte(`{"Network":"10.244.0.0/16",`+tc.in+`,"Backend":{"Type":"vxlan"}}`), tc.store)
			if diff := cmp.Diff(tc.want, problems(t, err)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if c != (Config{}) {
				t.Errorf("something came through: %+v", c)
			}
		})
	}
}

// Whatever a network is compared with, all of its ranges are.
func TestClashesOfAdditionalNetworks(t *testing.T) {
	c := config("10.244.0.0/16", "fd24::/48")
	c.Network.V4, c.Network.V6 = more(c.Network.V4, "172.18.0.0/16", "172.17.0.0/16"), more(c.Network.V6, "fd42::/48")
	var got []string
	for _, clash := range Clashes(c, []HostPrefix{
		host("172.17.0.1/16", "docker0", HostAddress), host("fd42::/112", "", ServiceRange), host("172.16.0.0/12", "tun0", HostRoute),
	}) {
		got = append(got, clash.String())
	}
	want := []string{
		"pod network 172.17.0.0/16 overlaps the address 172.17.0.1/16 of docker0: choose another range for AdditionalNetworks[1], or give Docker other ranges (bip, default-address-pools)",
		"pod network fd42::/48 overlaps the service range fd42::/112: choose another range for IPv6AdditionalNetworks[0], or another range for services (--service-cluster-ip-range)",
		"pod network 172.17.0.0/16 lies inside the route 172.16.0.0/12 of tun0, whose hosts in the pod network are out of reach: choose another range for AdditionalNetworks[1], or remove the route",
		"pod network 172.18.0.0/16 lies inside the route 172.16.0.0/12 of tun0, whose hosts in the pod network are out of reach: choose another range for AdditionalNetworks[0], or remove the route",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestConfigsWithOtherRangesDiffer(t *testing.T) {
	c := config("10.244.0.0/16", "")
	other := c
	other.Network.V4 = more(c.Network.V4, "10.248.0.0/16")
	if c == other || other.Network.V4.Ranges().Prefixes()[1] != netip.MustParsePrefix("10.248.0.0/16") {
		t.Errorf("%+v equals %+v", c, other)
	}
}
