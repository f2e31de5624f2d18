package netconf

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/ranges"
	"github.com/weftnet/weft/internal/secret"
)

var compareAddresses = []cmp.Option{
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b secret.Text) bool { return a == b }), // cmp prints what String says
}

// network is a test's short form: prefix, length, first and last subnet.
func network(prefix string, length int, first, last string) lease.Network {
	return lease.Network{
		Prefix: netip.MustParsePrefix(prefix), SubnetLen: length,
		Min: netip.MustParseAddr(first), Max: netip.MustParseAddr(last),
	}
}

// more adds ranges to a network.
func more(n lease.Network, texts ...string) lease.Network {
	var ps []netip.Prefix
	for _, text := range texts {
		ps = append(ps, netip.MustParsePrefix(text))
	}
	n.Additional = ranges.Of(ps...)
	return n
}

// lines turns what Parse returns into one text line per problem or warning.
func lines[T ~[]Problem](ps T) []string {
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return out
}

func problems(t *testing.T, err error) []string {
	t.Helper()
	var ps Problems
	if err != nil && !errors.As(err, &ps) {
		t.Fatalf("%T is no Problems: %v", err, err)
	}
	return lines(ps)
}

func TestNetworksAreCut(t *testing.T) {
	for _, tc := range []struct {
		in     string
		want   lease.Network
		family family.Family
	}{
		{`"Network":"10.244.0.0/16"`, network("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0"), family.V4},
		{`"Network":"172.20.0.0/22"`, network("172.20.0.0/22", 24, "172.20.1.0", "172.20.3.0"), family.V4},
		{`"Network":"172.20.0.0/23"`, network("172.20.0.0/23", 25, "172.20.0.128", "172.20.1.128"), family.V4},
		{`"Network":"192.168.9.16/28"`, network("192.168.9.16/28", 30, "192.168.9.20", "192.168.9.28"), family.V4},
		{`"Network":"10.0.0.0/8","SubnetLen":20`, network("10.0.0.0/8", 20, "10.0.16.0", "10.255.240.0"), family.V4},
		{`"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.16.0.0","SubnetMax":"10.31.240.0"`,
			network("10.0.0.0/8", 20, "10.16.0.0", "10.31.240.0"), family.V4},
		{`"Network":"10.244.0.0/16","SubnetLen":0,"SubnetMin":"0.0.0.0","SubnetMax":"0.0.0.0"`,
			network("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0"), family.V4},
		{`"Network":"10.244.0.0/16","SubnetMin":"10.244.0.0"`, network("10.244.0.0/16", 24, "10.244.0.0", "10.244.255.0"), family.V4},
		{`"Network":"10.244.0.0/16","SubnetMin":"10.244.7.0","SubnetMax":"10.244.7.0"`,
			network("10.244.0.0/16", 24, "10.244.7.0", "10.244.7.0"), family.V4},
		{`"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd42::/48"`,
			network("fd42::/48", 64, "fd42:0:0:1::", "fd42:0:0:ffff::"), family.V6},
		{`"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd42::/112"`,
			network("fd42::/112", 114, "fd42::4000", "fd42::c000"), family.V6},
		{`"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd42::/48","IPv6SubnetMin":null,"IPv6SubnetMax":"::"`,
			network("fd42::/48", 64, "fd42:0:0:1::", "fd42:0:0:ffff::"), family.V6},
		{`"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd42::/62"`,
			network("fd42::/62", 64, "fd42:0:0:1::", "fd42:0:0:3::"), family.V6},
		{`"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd42::/63"`,
			network("fd42::/63", 65, "fd42:0:0:0:8000::", "fd42:0:0:1:8000::"), family.V6},
		{`"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd42::/124"`,
			network("fd42::/124", 126, "fd42::4", "fd42::c"), family.V6},
	} {
		t.Run(tc.in, func(t *testing.T) {
			c, _, err := Parse([]byte(`{`+tc.in+`,"Backend":{"Type":"vxlan"}}`), Etcd)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, c.Network.Of(tc.family), compareAddresses...); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestParse(t *testing.T) {
	v4 := family.Pair[lease.Network]{V4: network("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0")}
	kube := family.Pair[lease.Network]{V4: lease.Network{Prefix: netip.MustParsePrefix("10.244.0.0/16")}}
	kube6 := family.Pair[lease.Network]{V6: lease.Network{Prefix: netip.MustParsePrefix("fd24::/48")}}
	for _, tc := range []struct {
		name, in string
		store    Store
		want     Config
		warnings []string
	}{
		{"the stock manifest's", `{"Network":"10.244.0.0/16","EnableNFTables":false,"Backend":{"Type":"vxlan"}}`, Etcd,
			Config{Network: v4, Backend: VXLAN{VNI: 1}}, nil},
		{"dual stack beside Windows",
			`{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd24::/48","Backend":{"Type":"vxlan","VNI":4096,"Port":4789,"DirectRouting":true}}`, Etcd,
			Config{Network: family.Pair[lease.Network]{V4: v4.V4, V6: network("fd24::/48", 64, "fd24:0:0:1::", "fd24:0:0:ffff::")},
				Backend: VXLAN{VNI: 4096, Port: 4789, DirectRouting: true}}, nil},
		{"every key of vxlan", `{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan","VNI":7,"Port":8473,"MTU":9000,"GBP":true,"Learning":true,"DirectRouting":true}}`, Etcd,
			Config{Network: v4, NFTables: true, Backend: VXLAN{VNI: 7, Port: 8473, MTU: 9000, GBP: true, Learning: true, DirectRouting: true}}, nil},
		{"keys in any case", `{"network":"10.244.0.0/16","ENABLENFTABLES":true,"backend":{"type":"VXLAN","vni":2,"directrouting":true}}`, Etcd,
			Config{Network: v4, NFTables: true, Backend: VXLAN{VNI: 2, DirectRouting: true}}, nil},
		{"the last duplicate counts", `{"Network":"10.9.0.0/16","Backend":{"Type":"vxlan","VNI":2,"vni":3},"network":"10.244.0.0/16"}`, Etcd,
			Config{Network: v4, Backend: VXLAN{VNI: 3}},
			[]string{"Network: given more than once: the last one counts", "Backend.VNI: given more than once: the last one counts"}},
		{"null leaves the default", `{"EnableIPv4":null,"EnableIPv6":null,"SubnetLen":null,"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":null}}`, Etcd,
			Config{Network: v4, Backend: VXLAN{VNI: 1}}, nil},
		{"host-gw", `{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}`, Etcd, Config{Network: v4, Backend: HostGW{}}, nil},
		{"alloc", `{"Network":"10.244.0.0/16","Backend":{"Type":"alloc"}}`, Etcd, Config{Network: v4, Backend: Alloc{}}, nil},
		{"host bits are cleared", `{"Network":"10.244.3.4/16","Backend":{"Type":"vxlan"}}`, Etcd, Config{Network: v4, Backend: VXLAN{VNI: 1}},
			[]string{"Network: 10.244.3.4/16 has host bits, taken as 10.244.0.0/16"}},
		{"Kubernetes computes nothing", `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`, Kubernetes,
			Config{Network: kube, Backend: VXLAN{VNI: 1}}, nil},
		{"Kubernetes has no use for lengths", `{"Network":"10.244.0.0/16","SubnetLen":31,"SubnetMin":"192.168.0.0","Backend":{"Type":"vxlan"}}`, Kubernetes,
			Config{Network: kube, Backend: VXLAN{VNI: 1}},
			[]string{"Network: length, first and last subnet have no effect with the Kubernetes store: kube-controller-manager cuts the subnets (--node-cidr-mask-size)"}},
		{"IPv6 only on Kubernetes", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd24::/48","Backend":{"Type":"vxlan"}}`, Kubernetes,
			Config{Network: kube6, Backend: VXLAN{VNI: 1}}, nil},
		{"a family that is off", `{"Network":"10.244.0.0/16","IPv6Network":"fd24::/48","Backend":{"Type":"vxlan"}}`, Etcd,
			Config{Network: v4, Backend: VXLAN{VNI: 1}}, []string{"IPv6Network: has no effect: EnableIPv6 is off"}},
		{"slips of the pen", `{"Network":"10.244.0.0/16","EnableIpv_6":true,"SubnetLength":24,"VNI":5,"Comment":"mine","Backend":{"Type":"vxlan","DirectRoute":true,"ListenPort":1,"SubnetLen":24,"x":1}}`, Etcd,
			Config{Network: v4, Backend: VXLAN{VNI: 1}}, []string{
				"EnableIpv_6: unknown, ignored: perhaps EnableIPv6 is meant",
				"SubnetLength: unknown, ignored: perhaps SubnetLen is meant",
				"VNI: ignored here: VNI belongs into Backend",
				"Backend.DirectRoute: unknown, ignored: perhaps DirectRouting is meant",
				"Backend.ListenPort: ignored: ListenPort is not an option of vxlan",
				"Backend.SubnetLen: ignored here: SubnetLen belongs beside Backend",
			}},
		{"keys that Windows nodes read", `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":4096,"Port":4789,"Name":"flannel.4096","MacPrefix":"0E-2A"}}`, Etcd,
			Config{Network: v4, Backend: VXLAN{VNI: 4096, Port: 4789}}, nil},
		{"what Windows nodes refuse", `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","MacPrefix":"0E-2A","DirectRouting":true,"GBP":true}}`, Etcd,
			Config{Network: v4, Backend: VXLAN{VNI: 1, DirectRouting: true, GBP: true}}, []string{
				"Backend.VNI: 1: Windows nodes need 4096 or more",
				"Backend.Port: 0: Windows nodes need 4789",
				"Backend.DirectRouting: must be off for Windows nodes",
				"Backend.GBP: must be off for Windows nodes",
			}},
		{"pods in someone's public addresses", `{"Network":"100.244.0.0/16","Backend":{"Type":"vxlan"}}`, Kubernetes,
			Config{Network: family.Pair[lease.Network]{V4: lease.Network{Prefix: netip.MustParsePrefix("100.244.0.0/16")}}, Backend: VXLAN{VNI: 1}},
			[]string{"Network: 100.244.0.0/16 is public address space: pods will not reach whoever has it on the Internet"}},
		{"a backend without IPv6 in a dual-stack network", `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd24::/48","Backend":{"Type":"alloc"}}`, Kubernetes,
			Config{Network: family.Pair[lease.Network]{V4: kube.V4, V6: kube6.V6}, Backend: Alloc{}},
			[]string{"Backend.Type: alloc is IPv4 only: it does nothing for IPv6"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, warnings, err := Parse([]byte(tc.in), tc.store)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, compareAddresses...); diff != "" {
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

func TestProblems(t *testing.T) {
	const built = "one of alloc, host-gw, udp, vxlan"
	for _, tc := range []struct {
		name, in string
		store    Store
		want     []string
	}{
		{"nothing", ``, Etcd, []string{"not JSON: unexpected end of JSON input"}},
		{"a comma too many", "{\"Network\":\"10.244.0.0/16\",\n  }", Etcd,
			[]string{"not JSON: line 2, column 3: invalid character '}' looking for beginning of object key string"}},
		{"text after the object", `{"Network":"10.244.0.0/16"} x`, Etcd,
			[]string{"not JSON: line 1, column 29: invalid character 'x' after top-level value"}},
		{"two objects", `{"Network":"10.244.0.0/16"}{}`, Etcd,
			[]string{"not JSON: line 1, column 28: invalid character '{' after top-level value"}},
		{"null", `null`, Etcd, []string{`not a JSON object: the configuration is one object, {"Network": ...}`}},
		{"a list", `[]`, Etcd, []string{`not a JSON object: the configuration is one object, {"Network": ...}`}},
		{"everything at once", `{"Network":"10.244.0.0","EnableIPv6":"yes","SubnetLen":-1,"SubnetMin":null,"Backend":{"Type":"vxlan","VNI":16777216,"Port":70000,"MTU":20,"GBP":1}}`, Etcd,
			[]string{
				"EnableIPv6: must be true or false, not string",
				"SubnetLen: must be a whole number, not negative, not number -1",
				`Network: "10.244.0.0" is not an IPv4 prefix such as 10.244.0.0/16`,
				`SubnetMin: null is not an IPv4 address in quotes, such as "10.244.0.0"`,
				"Backend.GBP: must be true or false, not number",
				"Backend.VNI: 16777216 must be from 0 to 16777215",
				"Backend.Port: 70000 is not a port (1 to 65535, or 0: the kernel's choice, 8472)",
				"Backend.MTU: 20 must be from 118 to 65535",
			}},
		{"no network", `{"Backend":{"Type":"vxlan"}}`, Etcd, []string{`Network: missing: the range of all pods, such as 10.244.0.0/16, or "EnableIPv4": false`}},
		{"no network on Kubernetes", `{"EnableIPv6":true,"Backend":{"Type":"vxlan"}}`, Kubernetes, []string{
			`Network: missing: the range of all pods, such as 10.244.0.0/16, or "EnableIPv4": false`,
			`IPv6Network: missing: the range of all pods, such as fd24::/48, or "EnableIPv6": false`}},
		{"both families off", `{"EnableIPv4":false,"Backend":{"Type":"vxlan"}}`, Etcd, []string{"EnableIPv4: IPv4 and IPv6 are both off: at least one must be on"}},
		{"an IPv4 network in the IPv6 key", `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}`, Etcd,
			[]string{`IPv6Network: "10.1.0.0/16" is not an IPv6 prefix such as fd24::/48`}},
		{"an IPv4 network dressed as IPv6", `{"Network":"10.244.0.0/16","IPv6Network":"::ffff:10.1.0.0/112","Backend":{"Type":"vxlan"}}`, Etcd,
			[]string{`IPv6Network: "::ffff:10.1.0.0/112" is not an IPv6 prefix such as fd24::/48`}},
		{"an IPv6 network in the IPv4 key", `{"Network":"fd24::/48","Backend":{"Type":"vxlan"}}`, Kubernetes,
			[]string{`Network: "fd24::/48" is not an IPv4 prefix such as 10.244.0.0/16`}},
		{"a network that is null", `{"Network":null,"Backend":{"Type":"vxlan"}}`, Etcd,
			[]string{`Network: must be an IPv4 prefix in quotes, such as "10.244.0.0/16"`}},
		{"a network that is every address", `{"Network":"0.0.0.0/0","Backend":{"Type":"vxlan"}}`, Kubernetes,
			[]string{"Network: 0.0.0.0/0 is every address there is: give the range of the pods, such as 10.244.0.0/16"}},
		{"a network that is not routed", `{"Network":"127.1.0.0/16","EnableIPv6":true,"IPv6Network":"fe80::/64","Backend":{"Type":"vxlan"}}`, Etcd, []string{
			"Network: 127.1.0.0/16 overlaps 127.0.0.0/8, which is not routed: choose a range such as 10.244.0.0/16",
			"IPv6Network: fe80::/64 overlaps fe80::/10, which is not routed: choose a range such as fd24::/48"}},
		{"a network too small to cut", `{"Network":"10.244.0.0/29","EnableIPv6":true,"IPv6Network":"fd24::/125","Backend":{"Type":"vxlan"}}`, Etcd, []string{
			"Network: 10.244.0.0/29 is too small to cut: /28 or shorter is needed",
			"IPv6Network: fd24::/125 is too small to cut: /124 or shorter is needed"}},
		{"subnets too small", `{"Network":"10.244.0.0/16","SubnetLen":31,"EnableIPv6":true,"IPv6Network":"fd24::/48","IPv6SubnetLen":127,"Backend":{"Type":"vxlan"}}`, Etcd, []string{
			"SubnetLen: 31 must be from 18 (network length + 2) to 30",
			"IPv6SubnetLen: 127 must be from 50 (network length + 2) to 126"}},
		{"subnets too large", `{"Network":"10.244.0.0/16","SubnetLen":17,"EnableIPv6":true,"IPv6Network":"fd24::/48","IPv6SubnetLen":49,"Backend":{"Type":"vxlan"}}`, Etcd, []string{
			"SubnetLen: 17 must be from 18 (network length + 2) to 30",
			"IPv6SubnetLen: 49 must be from 50 (network length + 2) to 126"}},
		{"a length that is no length", `{"Network":"10.244.0.0/16","SubnetLen":24.5,"Backend":{"Type":"vxlan"}}`, Kubernetes,
			[]string{"SubnetLen: must be a whole number, not negative, not number 24.5"}},
		{"first and last outside", `{"Network":"10.244.0.0/16","SubnetMin":"10.243.0.0","SubnetMax":"10.245.0.0","Backend":{"Type":"vxlan"}}`, Etcd, []string{
			"SubnetMin: 10.243.0.0 lies outside of 10.244.0.0/16", "SubnetMax: 10.245.0.0 lies outside of 10.244.0.0/16"}},
		{"first and last off the boundary", `{"Network":"10.244.0.0/16","SubnetLen":22,"SubnetMin":"10.244.5.0","SubnetMax":"10.244.20.1","Backend":{"Type":"vxlan"}}`, Etcd, []string{
			"SubnetMin: 10.244.5.0 is not where a /22 begins: 10.244.4.0 is", "SubnetMax: 10.244.20.1 is not where a /22 begins: 10.244.20.0 is"}},
		{"first after last", `{"Network":"10.244.0.0/16","SubnetMin":"10.244.9.0","SubnetMax":"10.244.8.0","Backend":{"Type":"vxlan"}}`, Etcd,
			[]string{"SubnetMin: 10.244.9.0 is above SubnetMax, 10.244.8.0: no subnet could be leased"}},
		{"first of the wrong family", `{"Network":"10.244.0.0/16","SubnetMin":"::","EnableIPv6":true,"IPv6Network":"fd24::/48","IPv6SubnetMin":"10.0.0.0","Backend":{"Type":"vxlan"}}`, Etcd, []string{
			`SubnetMin: "::" is not an IPv4 address in quotes, such as "10.244.0.0"`,
			`IPv6SubnetMin: "10.0.0.0" is not an IPv6 address in quotes, such as "fd24::"`}},
		{"a backend that is null", `{"Network":"10.244.0.0/16","Backend":null}`, Etcd, []string{`Backend: must be an object such as {"Type": "vxlan"}`}},
		{"a backend that is a text", `{"Network":"10.244.0.0/16","Backend":"vxlan"}`, Etcd, []string{`Backend: must be an object such as {"Type": "vxlan"}`}},
		{"a backend without a type", `{"Network":"10.244.0.0/16","Backend":{"VNI":1}}`, Etcd, []string{"Backend.Type: missing: " + built}},
		{"a type that is null", `{"Network":"10.244.0.0/16","Backend":{"Type":null}}`, Etcd, []string{"Backend.Type: missing: " + built}},
		{"a type that is a number", `{"Network":"10.244.0.0/16","Backend":{"Type":1}}`, Etcd, []string{"Backend.Type: must be a text in quotes, not number"}},
		{"a type that nobody knows", `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan "}}`, Etcd, []string{`Backend.Type: "vxlan " is no backend: ` + built}},
		{"a type that is not built", `{"Network":"10.244.0.0/16","Backend":{"Type":"WireGuard","Mode":"Auto"}}`, Etcd, []string{
			`Backend.Type: "wireguard" is not built yet: ` + built, `Backend.Mode: "Auto" is no mode: one of separate, auto, ipv4, ipv6`}},
		{"IPv4 only without IPv4", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd24::/48","Backend":{"Type":"alloc"}}`, Kubernetes,
			[]string{"Backend.Type: alloc is IPv4 only, and IPv4 is off"}},
		{"an MTU that leaves too little for IPv6", `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd24::/48","Backend":{"Type":"vxlan","MTU":1349}}`, Etcd,
			[]string{"Backend.MTU: 1349 must be from 1350 to 65535"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, _, err := Parse([]byte(tc.in), tc.store)
			if diff := cmp.Diff(tc.want, problems(t, err)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if c != (Config{}) {
				t.Errorf("something came through: %+v", c)
			}
		})
	}
}

func TestAnAbsentBackendIsNamed(t *testing.T) {
	_, warnings, err := Parse([]byte(`{"Network":"10.244.0.0/16"}`), Etcd)
	want := []string{"Backend: absent, which selects udp (the manual of flannel says vxlan, flanneld takes udp): say which is meant"}
	if diff := cmp.Diff(want, lines(warnings)); diff != "" || err != nil {
		t.Errorf("error %v, warnings (-want +got)\n%s", err, diff)
	}
}

func TestProblemsAreOneLine(t *testing.T) {
	_, _, err := Parse([]byte(`{"Network":"x","SubnetLen":-1,"Backend":{"Type":"vxlan"}}`), Etcd)
	if err == nil || strings.Contains(err.Error(), "\n") || strings.Count(err.Error(), "; ") != 1 {
		t.Errorf("%v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"Network":"10.244.0.0/16","EnableNFTables":false,"Backend":{"Type":"vxlan"}}`,
		`{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd24::/48","Backend":{"Type":"host-gw","VNI":4096}}`,
		`{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.16.0.0","SubnetMax":"10.31.240.0","Backend":{"Type":"alloc"}}`,
		`{"Network":"10.244.0.0/16","AdditionalNetworks":["10.248.0.0/16","10.9.0.0/20"],"IPv6AdditionalNetworks":[],"Backend":{"Type":"vxlan"}}`,
		`{"network":"10.0.0.0/8","IPv6SubnetMin":null,"Backend":{"type":"wireguard","PSK":"","Mode":"auto"}}`,
	} {
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, raw []byte, etcd bool) {
		store := Kubernetes
		if etcd {
			store = Etcd
		}
		c, _, err := Parse(raw, store)
		if err != nil {
			var ps Problems
			if !errors.As(err, &ps) || len(ps) == 0 {
				t.Fatalf("refused without a problem: %v", err)
			}
			return
		}
		again, _, err := Parse(Render(c), store)
		if err != nil || again != c {
			t.Errorf("%+v was rendered and read as %+v, %v", c, again, err)
		}
		for _, f := range family.All() {
			if n := c.Network.Of(f); n.Enabled() && store == Etcd && Subnets(n) < 1 {
				t.Errorf("%+v has no subnet", n)
			}
		}
	})
}

func TestIPv6OnlyOnEtcdIsPossibleAmongOurselves(t *testing.T) {
	c, warnings, err := Parse([]byte(`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd24::/48","Backend":{"Type":"vxlan"}}`), Etcd)
	if err != nil || c.Network.V4.Enabled() || !c.Network.V6.Enabled() || len(warnings) != 1 || warnings[0].Field != "EnableIPv4" {
		t.Errorf("config %+v, warnings %v, error %v", c, warnings, err)
	}
}
