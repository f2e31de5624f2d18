package kube

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/ranges"
)

const (
	data4 = `{"VNI":1,"VtepMAC":"e2:5e:e5:02:97:48"}`
	data6 = `{"VNI":1,"VtepMAC":"6e:08:c4:ca:2f:18"}`
	wg4   = `{"PublicKey":"dGhpcyBpcyBhIGtleSBvZiAzMiBieXRlcyBpbiBhbGw=","Port":51820}`
	wg6   = `{"PublicKey":"dGhpcyBpcyBhIGtleSBvZiAzMiBieXRlcyBpbiBhbGw=","Port":51821}`
)

func published(kind, data, data6 string, public ...string) lease.Lease {
	l := lease.Lease{Receive: []lease.Receiver{{Type: kind, Data: family.Pair[string]{V4: data, V6: data6}}}}
	for _, p := range public {
		a := netip.MustParseAddr(p)
		*l.Public.Ref(family.Of(a)) = a
		bits := map[family.Family]int{family.V4: 24, family.V6: 64}[family.Of(a)]
		*l.Subnet.Ref(family.Of(a)) = netip.PrefixFrom(netip.MustParseAddr(map[family.Family]string{family.V4: "10.244.1.0", family.V6: "fd24:0:0:1::"}[family.Of(a)]), bits)
	}
	return l
}

// TestEncode holds what the original was seen to write; "-" stands for an annotation that is not there.
func TestEncode(t *testing.T) {
	const p4, p6 = "192.0.2.1", "2001:db8::1"
	for _, c := range []struct {
		name                                      string
		lease                                     lease.Lease
		kind, data, public, dataV6, publicV6, and string
	}{
		{"vxlan, IPv4", published("vxlan", data4, "", p4), "vxlan", data4, p4, "-", "-", "-"},
		{"vxlan, dual", published("vxlan", data4, data6, p4, p6), "vxlan", data4, p4, data6, p6, "-"},
		{"vxlan, IPv6", published("vxlan", "", data6, p6), "vxlan", "-", "-", data6, p6, "-"},
		{"host-gw, IPv4", published("host-gw", "", "", p4), "host-gw", "null", p4, "-", "-", "-"},
		{"host-gw, dual", published("host-gw", "", "", p4, p6), "host-gw", "null", p4, "null", p6, "-"},
		{"host-gw, IPv6", published("host-gw", "", "", p6), "host-gw", "null", "0.0.0.0", "null", p6, "-"},
		{"wireguard, dual", published("wireguard", wg4, wg6, p4, p6), "wireguard", wg4, p4, wg6, p6, "-"},
		{"wireguard, IPv6", published("wireguard", "", wg6, p6), "wireguard", "-", "-", wg6, p6, "-"},
		{"ipip", published("ipip", "", "", p4), "ipip", "null", p4, "-", "-", "-"},
		{"ipsec", published("ipsec", "", "", p4), "ipsec", "null", p4, "-", "-", "-"},
		{"udp and alloc", published("", "", "", p4), "", "null", p4, "-", "-", "-"},
		{"extension without data", published("extension", "", "", p4), "extension", "", p4, "-", "-", "-"},
		{"extension, dual", published("extension", `"hello"`, `"hello"`, p4, p6), "extension", `"hello"`, p4, `"hello"`, p6, "-"},
		{"two backends", func() lease.Lease {
			l := published("vxlan", data4, "", p4)
			l.Receive[0].Key, l.Send = "vxlan/1/8472", []lease.Key{"host-gw", "vxlan/1/8472"}
			l.Receive = append(l.Receive, lease.Receiver{Key: "host-gw", Type: "host-gw"}, lease.Receiver{Key: "wireguard/51820", Type: "wireguard", Data: family.Pair[string]{V4: wg4}})
			return l
		}(), "vxlan", data4, p4, "-", "-", `{"receive":[{"key":"vxlan/1/8472","type":"vxlan"},{"key":"host-gw","type":"host-gw"},{"key":"wireguard/51820","type":"wireguard","data":` + wg4 + `}],"send":["host-gw","vxlan/1/8472"]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := map[string]string{
				manager: "true", backendType: c.kind, "backend-data": c.data, "public-ip": c.public,
				"backend-v6-data": c.dataV6, "public-ipv6": c.publicV6, further: c.and,
			}
			annotations, err := encode(c.lease)
			if err != nil {
				t.Fatal(err)
			}
			got, have := map[string]string{}, map[string]string{}
			for name, v := range annotations {
				got[name] = "-"
				if v != nil {
					got[name], have[name] = *v, *v
				}
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			n := node{annotations: have, podCIDRs: []string{"10.244.1.0/24", "fd24:0:0:1::/64"}}
			if back, err := n.lease(); err != nil || !back.Equal(c.lease) {
				t.Errorf("read back: %+v, %v, want %+v", back, err, c.lease)
			}
			if len(differ(annotations, have)) != 0 {
				t.Error("what was written would be written again")
			}
		})
	}
}

func TestPatches(t *testing.T) {
	annotations, err := encode(published("vxlan", data4, "", "10.77.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"metadata":{"annotations":{` +
		`"flannel.alpha.coreos.com/backend-data":"{\"VNI\":1,\"VtepMAC\":\"e2:5e:e5:02:97:48\"}",` +
		`"flannel.alpha.coreos.com/backend-type":"vxlan",` +
		`"flannel.alpha.coreos.com/kube-subnet-manager":"true",` +
		`"flannel.alpha.coreos.com/public-ip":"10.77.0.1"}}}`
	if got := string(testKeys.patch(differ(annotations, nil))); got != want {
		t.Errorf("annotations:\ngot  %s\nwant %s", got, want)
	}
	have := map[string]string{manager: "true", backendType: "vxlan", "backend-data": data4, "public-ip": "10.77.0.1", "public-ipv6": "::1"}
	if got := string(testKeys.patch(differ(annotations, have))); got != `{"metadata":{"annotations":{"flannel.alpha.coreos.com/public-ipv6":null}}}` {
		t.Errorf("removal: got %s", got)
	}
	const wantCondition = `{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False","lastHeartbeatTime":"2026-01-02T03:04:05Z",` +
		`"lastTransitionTime":"2026-01-02T03:04:05Z","reason":"FlannelIsUp","message":"Flannel is running on this node"}]}}`
	if got := string(condition(time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC))); got != wantCondition {
		t.Errorf("condition:\ngot  %s\nwant %s", got, wantCondition)
	}
}

func TestReadLease(t *testing.T) {
	good := map[string]string{manager: "true", backendType: "vxlan", "backend-data": data4, "public-ip": "192.0.2.1", "backend-v6-data": data6, "public-ipv6": "2001:db8::1"}
	both := []string{"10.244.1.0/24", "fd24:0:0:1::/64"}
	for _, c := range []struct {
		name        string
		cidrs       []string
		cidr        string
		annotations map[string]string
		v4, v6      bool
		problem     string
	}{
		{"both families", both, "", nil, true, true, ""},
		{"the old field alone", nil, "10.244.1.0/24", nil, true, false, ""},
		{"no podCIDR", nil, "", nil, false, false, ""},
		{"IPv4 podCIDR only", both[:1], "", nil, true, false, ""},
		{"IPv6 podCIDR only", both[1:], "", nil, false, true, ""},
		{"host bits are cleared", []string{"10.244.1.7/24"}, "", nil, true, false, ""},
		{"no IPv6 address", both, "", map[string]string{"public-ipv6": ""}, true, false, ""},
		{"unspecified IPv4 address", both, "", map[string]string{"public-ip": "0.0.0.0"}, false, true, ""},
		{"bad IPv6 address costs IPv6 alone", both, "", map[string]string{"public-ipv6": "x"}, true, false, "public-ipv6"},
		{"address of the other family", both, "", map[string]string{"public-ip": "2001:db8::1"}, false, true, "public-ip"},
		{"mapped IPv6 address", both, "", map[string]string{"public-ipv6": "::ffff:192.0.2.1"}, true, false, "public-ipv6"},
		{"shell text", both, "", map[string]string{"public-ip": "$(reboot)"}, false, true, "public-ip"},
		{"endless data", both, "", map[string]string{"backend-data": strings.Repeat("x", maxAnnotation+1)}, false, false, "longer"},
		{"three podCIDRs", append(both, "10.9.0.0/24"), "", nil, false, false, "3 entries"},
		{"two of one family", []string{"10.244.1.0/24", "10.244.2.0/24"}, "", nil, false, false, "one family"},
		{"no prefix", []string{"x"}, "", nil, false, false, "no prefix"},
		{"further receivers that are none", both, "", map[string]string{further: "{"}, true, true, further},
		{"too many further receivers", both, "", map[string]string{further: `{"send":["a"],"receive":[` + strings.Repeat(`{"key":"a"},`, 20) + `{"key":"a"}]}`}, true, true, "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := node{podCIDR: c.cidr, podCIDRs: c.cidrs, annotations: clone(good, c.annotations)}
			l, err := n.lease()
			if l.Has(family.V4) != c.v4 || l.Has(family.V6) != c.v6 {
				t.Errorf("got %+v", l)
			}
			if (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
				t.Errorf("got problem %v, want %q", err, c.problem)
			}
			for _, f := range family.All() {
				if !l.Has(f) && (l.Public.Of(f).IsValid() || len(l.Receive) > 0 && l.Receive[0].Data.Of(f) != "") {
					t.Errorf("%s is off, but in %+v", f, l)
				}
			}
		})
	}
}

func FuzzLease(f *testing.F) {
	f.Add("10.244.1.0/24", "true", "vxlan", data4, "192.0.2.1", `{"receive":[{"key":"vxlan/1/8472","type":"vxlan"},{"key":"host-gw"}],"send":["host-gw"]}`)
	f.Fuzz(func(t *testing.T, cidr, member, kind, data, public, further string) {
		n := &node{name: "n", podCIDR: cidr, annotations: map[string]string{
			manager: member, backendType: kind, "backend-data": data, "public-ip": public, lease.FurtherName: further,
		}}
		r := newRecord(n)
		if !r.takesPart() {
			return
		}
		if l := r.lease; !l.Has(family.V4) && !l.Has(family.V6) || l.Subnet.V4.IsValid() && l.Subnet.V4 != l.Subnet.V4.Masked() {
			t.Errorf("got %+v", l)
		}
		if r.problem == "" {
			if _, err := encode(r.lease); err != nil && json.Valid([]byte(further)) {
				t.Errorf("what was read cannot be written: %v", err)
			}
		}
	})
}

func TestAssigned(t *testing.T) {
	networks := func(v4, v6 string) (n family.Pair[lease.Network]) {
		if v4 != "" {
			n.V4.Prefix = netip.MustParsePrefix(v4)
		}
		if v6 != "" {
			n.V6.Prefix = netip.MustParsePrefix(v6)
		}
		return n
	}
	more := func(n family.Pair[lease.Network]) family.Pair[lease.Network] {
		n.V4.Additional, n.V6.Additional = ranges.Of(netip.MustParsePrefix("10.248.0.0/16")), ranges.Of(netip.MustParsePrefix("fd42::/48"))
		return n
	}
	for _, c := range []struct {
		name     string
		cidrs    []string
		networks family.Pair[lease.Network]
		want     string
		problem  string
	}{
		{"inside", []string{"10.244.1.0/24"}, networks("10.244.0.0/16", ""), "10.244.1.0-24", ""},
		{"dual", []string{"10.244.1.0/24", "fd24:0:0:1::/64"}, networks("10.244.0.0/16", "fd24::/48"), "10.244.1.0-24&fd24:0:0:1::-64", ""},
		{"IPv6 not enabled", []string{"10.244.1.0/24", "fd24:0:0:1::/64"}, networks("10.244.0.0/16", ""), "10.244.1.0-24", ""},
		{"IPv6 not assigned", []string{"10.244.1.0/24"}, networks("10.244.0.0/16", "fd24::/48"), "10.244.1.0-24", ""},
		{"nothing assigned", nil, networks("10.244.0.0/16", ""), "", "no podCIDR"},
		{"only the other family", []string{"10.244.1.0/24"}, networks("", "fd24::/48"), "", "does not enable"},
		{"outside", []string{"100.244.1.0/24"}, networks("10.244.0.0/16", ""), "", "not inside Network 10.244.0.0/16"},
		{"IPv6 outside", []string{"10.244.1.0/24", "fd25::/64"}, networks("10.244.0.0/16", "fd24::/48"), "", "not inside Network fd24::/48"},
		{"in an additional range", []string{"10.248.1.0/24", "fd42:0:0:1::/64"}, more(networks("10.244.0.0/16", "fd24::/48")), "10.248.1.0-24&fd42:0:0:1::-64", ""},
		{"an additional range", []string{"10.248.0.0/16"}, more(networks("10.244.0.0/16", "")), "", "not inside Network 10.244.0.0/16,10.248.0.0/16"},
		{"the whole network", []string{"10.244.0.0/16"}, networks("10.244.0.0/16", ""), "", "not inside"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := assigned(&node{name: "n1", podCIDRs: c.cidrs}, c.networks)
			if (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
				t.Fatalf("got %v, %v, want problem %q", got, err, c.problem)
			}
			if err == nil && lease.Name(got) != c.want {
				t.Errorf("got %s, want %s", lease.Name(got), c.want)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	member := func(subnet, public string, created int64, addrs ...string) *record {
		r := &record{created: created, lease: lease.Lease{
			Subnet: family.Pair[netip.Prefix]{V4: netip.MustParsePrefix(subnet)}, Public: family.Pair[netip.Addr]{V4: netip.MustParseAddr(public)}}}
		for _, a := range addrs {
			r.addrs = append(r.addrs, netip.MustParseAddr(a))
		}
		return r
	}
	const a, b = "192.0.2.1", "192.0.2.2"
	for _, c := range []struct {
		name    string
		nodes   map[string]*record
		refused map[string]string
	}{
		{"everyone is honest", map[string]*record{"a": member("10.0.1.0/24", a, 1, a), "b": member("10.0.2.0/24", b, 2, b)}, nil},
		{"behind NAT, nobody's status has the address", map[string]*record{"a": member("10.0.1.0/24", a, 1, "10.9.9.9"), "b": member("10.0.2.0/24", b, 2, "10.9.9.9")}, nil},
		{"an older node claims the address of another", map[string]*record{"a": member("10.0.1.0/24", b, 1, a), "b": member("10.0.2.0/24", b, 2, b)},
			map[string]string{"a": "public address 192.0.2.2 is an address of node b"}},
		{"the address of a node that takes no part", map[string]*record{"a": member("10.0.1.0/24", b, 1, a), "b": {created: 2, addrs: []netip.Addr{netip.MustParseAddr(b)}}},
			map[string]string{"a": "public address 192.0.2.2 is an address of node b"}},
		{"two announce one address that neither has", map[string]*record{"z": member("10.0.1.0/24", a, 1), "b": member("10.0.2.0/24", a, 2)},
			map[string]string{"b": "public address 192.0.2.1 is announced by node z too"}},
		{"a new node has the address of a dead one", map[string]*record{"z": member("10.0.1.0/24", a, 1, a), "b": member("10.0.2.0/24", a, 2, a)},
			map[string]string{"z": "public address 192.0.2.1 is announced by node b too"}},
		{"a younger node with the same subnet and address", map[string]*record{"a": member("10.0.1.0/24", a, 2, a), "b": member("10.0.1.0/24", b, 1, a, b)},
			map[string]string{"a": "subnet 10.0.1.0/24 overlaps that of node b"}},
		{"a younger node with the same subnet", map[string]*record{"a": member("10.0.1.0/24", a, 2, a), "b": member("10.0.1.0/24", b, 1, b)},
			map[string]string{"a": "subnet 10.0.1.0/24 overlaps that of node b"}},
		{"a younger node with a wider subnet", map[string]*record{"a": member("10.0.0.0/16", a, 2, a), "b": member("10.0.1.0/24", b, 1, b)},
			map[string]string{"a": "subnet 10.0.0.0/16 overlaps that of node b"}},
		{"the address of the API server", map[string]*record{"a": member("10.0.1.0/24", "10.96.0.1", 2, a)},
			map[string]string{"a": "public address 10.96.0.1 is in 10.96.0.1/32, which is for services"}},
		{"another service's address", map[string]*record{"a": member("10.0.1.0/24", "10.111.0.9", 2, "10.111.0.9")},
			map[string]string{"a": "public address 10.111.0.9 is in 10.110.0.0/15, which is for services"}},
		{"the services' range", map[string]*record{"a": member("10.96.0.0/24", a, 2, a)},
			map[string]string{"a": "subnet 10.96.0.0/24 overlaps the services of the cluster, 10.96.0.1/32"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for name, r := range c.nodes {
				r.lease.Node = name
			}
			got := map[string]string{}
			for _, l := range judge(c.nodes, []netip.Prefix{netip.MustParsePrefix("10.96.0.1/32"), netip.MustParsePrefix("10.110.0.0/15")}) {
				if l.Refused != "" {
					got[l.Node] = l.Refused
				}
			}
			if c.refused == nil {
				c.refused = map[string]string{}
			}
			if d := cmp.Diff(c.refused, got); d != "" {
				t.Errorf("refused (-want +got):\n%s", d)
			}
		})
	}
}

func TestNodeOfToken(t *testing.T) {
	for token, want := range map[string]string{
		"e30.eyJrdWJlcm5ldGVzLmlvIjp7Im5hbWVzcGFjZSI6Imt1YmUtZmxhbm5lbCIsIm5vZGUiOnsibmFtZSI6Im4xIiwidWlkIjoieCJ9fX0.c2ln\n": "n1",
		"e30.e30.c2ln": "", "": "", "x": "", "a.b.c": "", "e30.!!!.c2ln": "",
	} {
		if got := nodeOfToken(token); got != want {
			t.Errorf("%q: got %q, want %q", token, got, want)
		}
	}
}
