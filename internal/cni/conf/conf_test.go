package conf

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/subnetfile"
)

const dual = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.0.1/24\nFLANNEL_IPV6_NETWORK=fd24::/48\n" +
	"FLANNEL_IPV6_SUBNET=fd24::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"

func lists(t testing.TB, text string) subnetfile.Lists {
	t.Helper()
	env, err := subnetfile.ParseLists([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func TestDelegateConfig(t *testing.T) {
	for _, c := range []struct{ name, stdin, env, want string }{
		{
			"the sample of the contract",
			`{"name":"cbr0","cniVersion":"1.1.0","type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}}`, dual,
			`{"cniVersion":"1.1.0","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.0.0/24"}],[{"subnet":"fd24::/64"}]],"routes":[{"dst":"10.244.0.0/16"},{"dst":"fd24::/48"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}`,
		},
		{
			"two networks, one family, own values win",
			`{"name":"n","type":"flannel","delegate":{"mtu":9000,"ipMasq":true,"isGateway":false},"ipam":{"routes":[{"dst":"1.2.3.0/24"}],"dataDir":"/x","ranges":"replaced"}}`,
			"FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0/16,10.1.0.0/16\nFLANNEL_SUBNET=10.1.5.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=false\n",
			`{"ipMasq":true,"ipam":{"dataDir":"/x","ranges":[[{"subnet":"10.1.5.0/24"}]],"routes":[{"dst":"1.2.3.0/24"},{"dst":"10.1.0.0/16"},{"dst":"10.2.0.0/16"}],"type":"host-local"},"isGateway":false,"mtu":9000,"name":"n","type":"bridge"}`,
		},
		{
			"another type is not told to be a gateway",
			`{"name":"n","type":"flannel","delegate":{"type":"ptp"},"runtimeConfig":{"x":1},"prevResult":{}}`, dual,
			`{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.0.0/24"}],[{"subnet":"fd24::/64"}]],"routes":[{"dst":"10.244.0.0/16"},{"dst":"fd24::/48"}],"type":"host-local"},"mtu":1450,"name":"n","runtimeConfig":{"x":1},"type":"ptp"}`,
		},
	} {
		f, err := ParseFlannel([]byte(c.stdin))
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.DelegateConfig(lists(t, c.env))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(c.want, string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestParseBridge(t *testing.T) {
	b, err := ParseBridge([]byte(`{"name":"n","cniVersion":"1.0.0","type":"bridge","isDefaultGateway":true,"ipMasq":true,"mtu":1400,
		"hairpinMode":true,"macspoofchk":true,"vlanTrunk":[],"runtimeConfig":{"ips":["10.0.0.9/24"]},
		"ipam":{"type":"host-local","subnet":"10.0.0.0/24","rangeStart":"10.0.0.5","rangeEnd":"10.0.0.20","gateway":"10.0.0.254"}}`), "MAC=02:00:00:00:00:01;IP=10.0.0.8")
	if err != nil {
		t.Fatal(err)
	}
	type want struct {
		Device, MAC                           string
		Gateway, Default, Masq, Hairpin, MAC2 bool
		Range                                 Range
		Requested                             []netip.Addr
		Dir                                   string
	}
	got := want{b.Device, b.MAC.String(), b.Gateway, b.DefaultRoute, b.Masquerade, b.Hairpin, b.AntiSpoof, b.IPAM.Sets[0][0], b.IPAM.Requested, b.IPAM.Dir}
	a := netip.MustParseAddr
	if diff := cmp.Diff(want{
		"cni0", "02:00:00:00:00:01", true, true, true, true, true,
		Range{netip.MustParsePrefix("10.0.0.0/24"), a("10.0.0.5"), a("10.0.0.20"), a("10.0.0.254")},
		[]netip.Addr{a("10.0.0.9"), a("10.0.0.8")}, "/var/lib/cni/networks/n",
	}, got, cmp.Comparer(func(x, y netip.Addr) bool { return x == y }), cmp.Comparer(func(x, y netip.Prefix) bool { return x == y })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRangesThatMakeNoSense(t *testing.T) {
	for ranges, want := range map[string]string{
		`[[{"subnet":"10.0.0.0/31"}]]`:                                               "too small",
		`[[{"subnet":"10.0.0.5/24"}]]`:                                               "host bits",
		`[[{"subnet":"ten"}]]`:                                                       "not a prefix",
		`[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.1"}]]`:                       "rangeStart",
		`[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}]]`: "after",
		`[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.0.0.0/25"}]]`:                    "overlaps",
		`[[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]]`:                        "mixes",
		`[[]]`: "empty",
		`[]`:   "none",
	} {
		_, err := ParseBridge([]byte(`{"name":"n","type":"bridge","ipam":{"type":"host-local","ranges":`+ranges+`}}`), "")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, not %q", ranges, err, want)
		}
	}
}

func TestLastAddress(t *testing.T) {
	for subnet, want := range map[string]string{
		"10.0.0.0/24": "10.0.0.254", "10.0.0.0/30": "10.0.0.2", "fd00::/126": "fd00::3", "fd00::/64": "fd00::ffff:ffff:ffff:ffff",
	} {
		if got := last(netip.MustParsePrefix(subnet)); got.String() != want {
			t.Errorf("%s ends at %s, not %s", subnet, got, want)
		}
	}
}

// Whatever arrives on stdin, in the environment and in subnet.env: no panic, and what comes out is what
// the other half of the package accepts or turns down in a sentence.
func FuzzStdin(f *testing.F) {
	f.Add([]byte(`{"name":"cbr0","cniVersion":"1.0.0","type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}}`), "IP=10.0.0.1", []byte(dual))
	f.Add([]byte(`{"name":"n","delegate":{"type":"ptp","mtu":1e9},"ipam":{"routes":[{"dst":"::/0"}],"rangeStart":5}}`), "MAC=;IP", []byte("FLANNEL_SUBNET=10.0.0.1/31,"))
	f.Add([]byte(`{"name":"n","delegate":null,"runtimeConfig":{"ips":["::ffff:1.2.3.4"],"ipRanges":[[{}]]}}`), ";;=", []byte("export FLANNEL_MTU='7'\n"))
	f.Fuzz(func(t *testing.T, stdin []byte, args string, env []byte) {
		fl, err := ParseFlannel(stdin)
		if err != nil {
			return
		}
		l, err := subnetfile.ParseLists(env)
		if err != nil {
			return
		}
		raw, err := fl.DelegateConfig(l)
		if err != nil {
			return
		}
		if !json.Valid(raw) {
			t.Fatalf("not JSON: %s", raw)
		}
		if _, err := fl.Bare(); err != nil {
			t.Fatalf("nothing could be deleted: %v", err)
		}
		b, err := ParseBridge(raw, args)
		if err != nil {
			return
		}
		if _, err := ReadBridge(raw); err != nil {
			t.Fatalf("could be added, cannot be deleted: %v", err)
		}
		for _, set := range b.IPAM.Sets {
			for _, r := range set {
				if !r.Subnet.Contains(r.First) || !r.Subnet.Contains(r.Last) || r.Last.Less(r.First) ||
					family.Of(r.First) != family.Of(r.Subnet.Addr()) {
					t.Fatalf("range %v", r)
				}
			}
		}
	})
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 1.1.1.1\n# x\nsearch a b\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if dns := ParseResolvConf(raw); slices.Contains(dns.Nameservers, "") {
			t.Fatal("an empty nameserver")
		}
	})
}
