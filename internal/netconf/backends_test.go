package netconf

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/secret"
)

const (
	wgKey    = "l2tYz7w0nEM6pBnuFBEnTZ0w2RfMRNgyOKvJmQ3Xo0A="
	notBuilt = "is not built yet"
)

var longKey = strings.Repeat("0123456789abcdef", 6)

// parseBackend decodes a backend and leaves out the problem that it is not built.
func parseBackend(t *testing.T, raw string, enabled family.Pair[bool]) (Backend, []string, []string) {
	t.Helper()
	p := &parser{}
	b := p.backend(json.RawMessage(raw), enabled)
	var ps []string
	for _, problem := range lines(p.problems) {
		if !strings.Contains(problem, notBuilt) {
			ps = append(ps, problem)
		}
	}
	return b, ps, lines(p.warnings)
}

func TestBackends(t *testing.T) {
	v4 := family.Pair[bool]{V4: true}
	dual := family.Pair[bool]{V4: true, V6: true}
	for _, tc := range []struct {
		name, in string
		enabled  family.Pair[bool]
		want     Backend
		problems []string
		warnings []string
	}{
		{"udp with its default", `{"Type":"udp"}`, v4, UDP{Port: 8285}, nil, nil},
		{"udp on a port", `{"Type":"udp","Port":7890}`, v4, UDP{Port: 7890}, nil, nil},
		{"udp on no port", `{"Type":"udp","Port":0}`, v4, UDP{}, []string{"Backend.Port: 0 is not a port (1 to 65535)"}, nil},
		{"udp with IPv6", `{"Type":"udp"}`, dual, UDP{Port: 8285}, nil, nil},
		{"udp with switches", `{"Type":"udp","Queues":2,"DisableUDPSegment":true}`, v4, UDP{Port: 8285, Queues: 2, DisableUDPSegment: true}, nil, nil},
		{"udp with too many queues", `{"Type":"udp","Queues":65}`, v4, UDP{Port: 8285, Queues: 65}, []string{"Backend.Queues: 65 must be from 0 to 64"}, nil},
		{"udp on a port in quotes", `{"Type":"udp","Port":"7890"}`, v4, UDP{Port: 8285}, []string{"Backend.Port: must be a whole number, not string"}, nil},
		{"ipip", `{"Type":"ipip","DirectRouting":true}`, v4, IPIP{DirectRouting: true}, nil, nil},
		{"wireguard with its defaults", `{"Type":"wireguard"}`, dual,
			WireGuard{ListenPort: 51820, ListenPortV6: 51821, Mode: "separate"}, nil, nil},
		{"wireguard with everything", `{"Type":"wireguard","ListenPort":1,"ListenPortV6":65535,"MTU":1500,"PSK":"` + wgKey + `","PersistentKeepaliveInterval":25,"Mode":"auto"}`, dual,
			WireGuard{ListenPort: 1, ListenPortV6: 65535, MTU: 1500, PSK: secret.New(wgKey), Keepalive: 25 * time.Second, Mode: "auto"}, nil, nil},
		{"wireguard with nothing right", `{"Type":"wireguard","ListenPort":0,"ListenPortV6":-1,"MTU":100,"PSK":"geheim","PersistentKeepaliveInterval":65536,"Mode":"IPv4"}`, v4,
			WireGuard{ListenPortV6: -1, MTU: 100, PSK: secret.New("geheim"), Keepalive: 65536 * time.Second, Mode: "IPv4"}, []string{
				"Backend.ListenPort: 0 is not a port (1 to 65535)",
				"Backend.ListenPortV6: -1 is not a port (1 to 65535)",
				"Backend.PersistentKeepaliveInterval: 65536 must be from 0 to 65535",
				`Backend.Mode: "IPv4" is no mode: one of separate, auto, ipv4, ipv6`,
				"Backend.PSK: is not 32 bytes in base64, as wg genpsk prints them",
				"Backend.MTU: 100 must be from 148 to 65535",
			}, nil},
		{"wireguard with a key of 31 bytes", `{"Type":"wireguard","PSK":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="}`, v4,
			WireGuard{ListenPort: 51820, ListenPortV6: 51821, Mode: "separate", PSK: secret.New("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==")},
			[]string{"Backend.PSK: is not 32 bytes in base64, as wg genpsk prints them"}, nil},
		{"wireguard with two devices on one port", `{"Type":"wireguard","ListenPort":51821}`, dual,
			WireGuard{ListenPort: 51821, ListenPortV6: 51821, Mode: "separate"},
			[]string{"Backend.ListenPortV6: 51821 is ListenPort too, and mode separate has a device for each family"}, nil},
		{"wireguard with one device on one port", `{"Type":"wireguard","ListenPort":51821,"Mode":"ipv6"}`, dual,
			WireGuard{ListenPort: 51821, ListenPortV6: 51821, Mode: "ipv6"}, nil, nil},
		{"ipsec with its defaults", `{"Type":"ipsec","PSK":"` + longKey + `"}`, v4,
			IPsec{PSK: secret.New(longKey), ESPProposal: "aes128gcm16-sha256-prfsha256-ecp256"}, nil, nil},
		{"ipsec with a short key and no proposal", `{"Type":"ipsec","PSK":"` + longKey[1:] + `","UDPEncap":true,"ESPProposal":""}`, v4,
			IPsec{PSK: secret.New(longKey[1:]), UDPEncap: true}, []string{
				"Backend.PSK: has 95 characters: at least 96 are needed",
				"Backend.ESPProposal: empty: leave it out for the default",
			}, nil},
		{"ipsec without a key", `{"Type":"ipsec"}`, v4, IPsec{ESPProposal: "aes128gcm16-sha256-prfsha256-ecp256"},
			[]string{"Backend.PSK: has 0 characters: at least 96 are needed"}, nil},
		{"extension", `{"Type":"extension","PreStartupCommand":"a","PostStartupCommand":"b","SubnetAddCommand":"ip route replace $SUBNET via $PUBLIC_IP","SubnetRemoveCommand":"d","ShutdownCommand":"e"}`, dual,
			Extension{"a", "b", "ip route replace $SUBNET via $PUBLIC_IP", "d"}, nil,
			[]string{"Backend.ShutdownCommand: occurs in old samples and is not read"}},
		{"tencent-vpc", `{"Type":"tencent-vpc","AccessKeyID":"id","AccessKeySecret":"secret"}`, v4,
			TencentVPC{AccessKeyID: secret.New("id"), AccessKeySecret: secret.New("secret")}, nil, nil},
		{"vxlan with VNI 0", `{"Type":"vxlan","VNI":0}`, v4, VXLAN{}, nil, nil},
		{"vxlan with a negative VNI", `{"Type":"vxlan","VNI":-1,"MTU":65536}`, v4, VXLAN{VNI: -1, MTU: 65536},
			[]string{"Backend.VNI: -1 must be from 0 to 16777215", "Backend.MTU: 65536 must be from 118 to 65535"}, nil},
		{"host-gw with the keys of Windows", `{"Type":"host-gw","Name":"cbr0","DNSServerList":"10.0.0.10"}`, v4, HostGW{}, nil, nil},
		{"host-gw with keys of vxlan", `{"Type":"host-gw","vni":1}`, v4, HostGW{}, nil,
			[]string{"Backend.vni: ignored: VNI is not an option of host-gw"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, problems, warnings := parseBackend(t, tc.in, tc.enabled)
			if got != tc.want {
				t.Errorf("(-want +got)\n%s", cmp.Diff(tc.want, got, compareAddresses...))
			}
			if diff := cmp.Diff(tc.problems, problems); diff != "" {
				t.Errorf("problems (-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(tc.warnings, warnings); diff != "" {
				t.Errorf("warnings (-want +got)\n%s", diff)
			}
			if tc.problems == nil {
				again, _, _ := parseBackend(t, string(renderBackend(got)), tc.enabled)
				if again != got {
					t.Errorf("rendered as %s", renderBackend(got))
				}
			}
		})
	}
}

func TestTableOfBackends(t *testing.T) {
	if diff := cmp.Diff([]string{"alloc", "extension", "host-gw", "ipip", "ipsec", "tencent-vpc", "udp", "vxlan", "wireguard"}, Known()); diff != "" {
		t.Errorf("known (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"alloc", "host-gw", "udp", "vxlan"}, Built()); diff != "" {
		t.Errorf("built (-want +got)\n%s", diff)
	}
	for _, k := range kinds() {
		if b := k.decode(&parser{}, nil); b.Type() != k.name {
			t.Errorf("%s decodes to %s", k.name, b.Type())
		}
	}
}

func TestSecretsAreHidden(t *testing.T) {
	c := Config{Backend: WireGuard{PSK: secret.New(wgKey), Mode: "auto"}}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "psk", secret.New(wgKey), "config", c)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "psk", secret.New(wgKey), "config", c)
	fmt.Fprintf(&log, "%v %+v %#v %s %q %x", c, c, c, secret.New(wgKey), secret.New(wgKey), secret.New(wgKey))
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	log.Write(raw)
	log.Write(Render(c.Redacted()))
	if strings.Contains(log.String(), wgKey) || strings.Contains(log.String(), fmt.Sprintf("%x", wgKey)) {
		t.Errorf("revealed in: %s", log.String())
	}
	for _, b := range []Backend{IPsec{PSK: secret.New("geheim")}, TencentVPC{AccessKeyID: secret.New("geheim"), AccessKeySecret: secret.New("geheim")}} {
		if out := string(Render(Config{Backend: b}.Redacted())); strings.Contains(out, "geheim") || !strings.Contains(out, "(hidden)") {
			t.Errorf("revealed in: %s", out)
		}
	}
}

func TestPodMTU(t *testing.T) {
	v4, dual := config("10.244.0.0/16", ""), config("10.244.0.0/16", "fd24::/48")
	with := func(c Config, b Backend) Config { c.Backend = b; return c }
	for _, tc := range []struct {
		c    Config
		want int
	}{
		{with(v4, VXLAN{}), 0}, {with(v4, HostGW{}), 0},
		{with(v4, VXLAN{MTU: 1500}), 1450}, {with(dual, VXLAN{MTU: 1500}), 1430}, {with(dual, WireGuard{MTU: 1500}), 1420},
	} {
		if got := PodMTU(tc.c); got != tc.want {
			t.Errorf("%+v: got %d, want %d", tc.c, got, tc.want)
		}
	}
}

func TestRender(t *testing.T) {
	c := Config{
		Network: family.Pair[lease.Network]{
			V4: more(network("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0"), "10.248.0.0/16", "10.9.0.0/22"),
			V6: more(network("fd24::/48", 64, "fd24:0:0:1::", "fd24:0:0:ffff::"), "fd42::/48"),
		},
		Backend: VXLAN{VNI: 1, DirectRouting: true},
	}
	want := `{
  "EnableIPv4": true,
  "EnableIPv6": true,
  "EnableNFTables": false,
  "Network": "10.244.0.0/16",
  "SubnetLen": 24,
  "SubnetMin": "10.244.1.0",
  "SubnetMax": "10.244.255.0",
  "AdditionalNetworks": [
    "10.248.0.0/16",
    "10.9.0.0/22"
  ],
  "IPv6Network": "fd24::/48",
  "IPv6SubnetLen": 64,
  "IPv6SubnetMin": "fd24:0:0:1::",
  "IPv6SubnetMax": "fd24:0:0:ffff::",
  "IPv6AdditionalNetworks": [
    "fd42::/48"
  ],
  "Backend": {
    "Type": "vxlan",
    "VNI": 1,
    "Port": 0,
    "MTU": 0,
    "GBP": false,
    "Learning": false,
    "DirectRouting": true
  }
}
`
	if diff := cmp.Diff(want, string(Render(c))); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestCapacity(t *testing.T) {
	for _, tc := range []struct {
		n    lease.Network
		want string // lines
	}{
		{network("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0"), "10.244.0.0/16 in /24s: 255 nodes, 253 pods each"},
		{network("192.168.9.16/28", 30, "192.168.9.20", "192.168.9.28"), "192.168.9.16/28 in /30s: 3 nodes, 1 pod each"},
		{network("10.244.0.0/16", 24, "10.244.7.0", "10.244.7.0"), "10.244.0.0/16 in /24s: 1 node, 253 pods each"},
		{network("10.0.0.0/8", 20, "10.0.16.0", "10.255.240.0"), "10.0.0.0/8 in /20s: 4095 nodes, 4093 pods each"},
		{network("fd42::/48", 64, "fd42:0:0:1::", "fd42:0:0:ffff::"), "fd42::/48 in /64s: 65535 nodes, about 2^64 pods each"},
		{network("fd42::/112", 114, "fd42::4000", "fd42::c000"), "fd42::/112 in /114s: 3 nodes, 16382 pods each"},
		{network("fc00::/7", 126, "fc00::4", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffc"), "fc00::/7 in /126s: about 2^119 nodes, 2 pods each"},
		{more(network("10.244.0.0/16", 24, "10.244.1.0", "10.244.2.0"), "10.248.0.0/16", "10.9.0.0/22"),
			"10.244.0.0/16 in /24s: 2 nodes, 253 pods each\n" +
				"10.248.0.0/16 in /24s: 255 nodes, 253 pods each\n" +
				"10.9.0.0/22 in /24s: 3 nodes, 253 pods each\n" +
				"10.244.0.0/16,10.248.0.0/16,10.9.0.0/22 together: 260 nodes"},
		{more(network("fc00::/8", 126, "fc00::4", "fcff:ffff:ffff:ffff:ffff:ffff:ffff:fffc"), "fd00::/8"),
			"fc00::/8 in /126s: about 2^118 nodes, 2 pods each\nfd00::/8 in /126s: about 2^118 nodes, 2 pods each"},
		{lease.Network{}, ""},
		{more(lease.Network{Prefix: network("10.244.0.0/16", 0, "::", "::").Prefix}, "10.248.0.0/17"),
			"10.244.0.0/16: cut by kube-controller-manager; in /24s, its default, 256 nodes, 253 pods each\n" +
				"10.248.0.0/17: cut by kube-controller-manager; in /24s, its default, 128 nodes, 253 pods each"},
		{lease.Network{Prefix: network("10.244.0.0/16", 0, "::", "::").Prefix},
			"10.244.0.0/16: cut by kube-controller-manager; in /24s, its default, 256 nodes, 253 pods each"},
		{lease.Network{Prefix: network("10.244.0.0/26", 0, "::", "::").Prefix}, "10.244.0.0/26: cut by kube-controller-manager"},
		{lease.Network{Prefix: network("fd42::/48", 0, "::", "::").Prefix},
			"fd42::/48: cut by kube-controller-manager; in /64s, its default, 65536 nodes, about 2^64 pods each"},
	} {
		if got := strings.Join(Capacity(tc.n), "\n"); got != tc.want {
			t.Errorf("got  %s\nwant %s", got, tc.want)
		}
	}
}
