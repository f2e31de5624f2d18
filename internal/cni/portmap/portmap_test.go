package portmap

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/internal/cni/rules"
	"github.com/weftnet/weft/internal/family"
)

func TestRuleCounts(t *testing.T) {
	both := family.Pair[netip.Prefix]{V4: netip.MustParsePrefix("10.0.0.5/24"), V6: netip.MustParsePrefix("fd00::5/64")}
	count := func(c Config, table rules.Table, chain string) (n int) {
		for _, r := range Rules(c, both) {
			if r.Table == table && r.Chain == chain {
				n++
			}
		}
		return n
	}
	for _, c := range []struct {
		name, stdin          string
		v4, v6, masq4, masq6 int
	}{
		{"a port of both families", `{"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp"}]}}`, 3, 2, 1, 1},
		{"an IPv4 address of the host", `{"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"hostIP":"192.0.2.1"}]}}`, 3, 0, 1, 0},
		{"any IPv4 address of the host", `{"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"hostIP":"0.0.0.0"}]}}`, 3, 0, 1, 0},
		{"any IPv6 address of the host", `{"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"hostIP":"::"}]}}`, 0, 2, 0, 1},
		{"no SNAT", `{"snat":false,"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080}]}}`, 1, 1, 0, 0},
		{"everything masqueraded", `{"masqAll":true,"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080}]}}`, 2, 2, 1, 1},
		{"no hostPort", `{"runtimeConfig":{"portMappings":[{"containerPort":8080}]}}`, 0, 0, 0, 0},
		{"nothing", `{}`, 0, 0, 0, 0},
	} {
		conf, err := Parse([]byte(c.stdin))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := [4]int{count(conf, rules.V4, rules.HostPorts), count(conf, rules.V6, rules.HostPorts), count(conf, rules.V4, rules.PostRouting), count(conf, rules.V6, rules.PostRouting)}
		if got != [4]int{c.v4, c.v6, c.masq4, c.masq6} {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	_, err := Parse([]byte(`{"markMasqBit":32,"conditionsV4":["-d","1.2.3.4"],"runtimeConfig":{"portMappings":[
		{"hostPort":70000,"containerPort":80},{"hostPort":80,"containerPort":0},{"hostPort":80,"containerPort":80,"protocol":"icmp"},
		{"hostPort":80,"containerPort":80,"hostIP":"here"}]}}`))
	for _, want := range []string{"markMasqBit", "conditionsV4", "[0]: hostPort 70000", "[1]", "[2]: protocol", "[3]: hostIP"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

func TestPods(t *testing.T) {
	network := func(s string) net.IPNet {
		a, n, _ := net.ParseCIDR(s)
		return net.IPNet{IP: a, Mask: n.Mask}
	}
	pods := Pods(&types100.Result{
		Interfaces: []*types100.Interface{{Name: "cni0"}, {Name: "eth0", Sandbox: "/run/netns/a"}},
		IPs: []*types100.IPConfig{
			{Interface: types100.Int(0), Address: network("192.0.2.1/24")},
			{Interface: types100.Int(1), Address: network("10.0.0.5/24")},
			{Interface: types100.Int(9), Address: network("fd00::5/64")},
			{Address: network("10.0.0.6/24")},
		},
	})
	if pods.V4.String() != "10.0.0.5/24" || pods.V6.String() != "fd00::5/64" {
		t.Errorf("%v", pods)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"name":"n","snat":false,"markMasqBit":3,"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"UDP","hostIP":"::ffff:1.2.3.4"}]}}`))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		c, err := Parse(stdin)
		if err != nil {
			return
		}
		for _, m := range c.Mappings {
			if m.HostPort == 0 || m.ContainerPort == 0 || m.Protocol == 0 {
				t.Fatalf("%+v", m)
			}
		}
		Rules(c, family.Pair[netip.Prefix]{V4: netip.MustParsePrefix("10.0.0.5/24"), V6: netip.MustParsePrefix("fd00::5/64")})
	})
}
