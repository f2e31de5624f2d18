package cni

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/netnstest"
)

func mappings(list ...map[string]any) map[string]any { return map[string]any{"portMappings": list} }

func mapped(host, container int, protocol string) map[string]any {
	return map[string]any{"hostPort": host, "containerPort": container, "protocol": protocol}
}

// outside makes a machine on the node's wire, which has 192.0.2.1 and 2001:db8::1 there.
func outside(t *testing.T) pod {
	t.Helper()
	client := newPod(t, "outside")
	netnstest.Command(t, "ip", "link", "add", "wire0", "type", "veth", "peer", "name", "eth0", "netns", client.path)
	netnstest.Command(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "wire0")
	netnstest.Command(t, "ip", "addr", "add", "2001:db8::1/64", "dev", "wire0", "nodad")
	netnstest.Command(t, "sysctl", "-qw", "net.ipv6.conf.wire0.accept_dad=0")
	netnstest.Command(t, "nsenter", "--net="+client.path, "sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0")
	netnstest.Command(t, "ip", "link", "set", "wire0", "up")
	client.ip(t, "addr", "add", "192.0.2.2/24", "dev", "eth0")
	client.ip(t, "addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
	client.ip(t, "link", "set", "eth0", "up")
	return client
}

func TestHostPorts(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, dualEnv)
	client, a, b := outside(t), newPod(t, "a"), newPod(t, "b")
	ports := call{pod: a, caps: mappings(
		mapped(8080, 80, "tcp"), mapped(8080, 80, "udp"),
		map[string]any{"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
		map[string]any{"hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "203.0.113.9"})}
	r := n.add(ports)
	rb := n.add(call{pod: b})
	for _, version := range []int{4, 6} {
		serve(t, a.do, netip.AddrPortFrom(address(t, r, version), 80))
	}
	node4, node6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	gw4, gw6 := netip.MustParseAddr("10.244.3.1"), netip.MustParseAddr("fd24:0:0:3::1")
	cases := []struct {
		name string
		from func(func() error) error
		to   netip.Addr
		port uint16
		want netip.Addr // whom the server sees; zero: it must not answer
	}{
		{"outside, IPv4: the client's address is kept", client.do, node4, 8080, netip.MustParseAddr("192.0.2.2")},
		{"outside, IPv6: the client's address is kept", client.do, node6, 8080, netip.MustParseAddr("2001:db8::2")},
		{"outside, by the hostIP that was asked for", client.do, node4, 8081, netip.MustParseAddr("192.0.2.2")},
		{"own host, IPv4", here, node4, 8080, node4},
		{"own host, IPv6", here, node6, 8080, node6},
		{"own host, by localhost", here, netip.MustParseAddr("127.0.0.1"), 8080, gw4},
		{"own host, by IPv6 localhost, which the kernel does not allow", here, netip.IPv6Loopback(), 8080, netip.Addr{}},
		{"own pod, IPv4", a.do, node4, 8080, gw4},
		{"own pod, IPv6", a.do, node6, 8080, gw6},
		{"other pod of the node, IPv4", b.do, node4, 8080, gw4},
		{"other pod of the node, IPv6", b.do, node6, 8080, gw6},
		{"a port without mapping", client.do, node4, 8083, netip.Addr{}},
		{"another hostIP than asked for", client.do, node4, 8082, netip.Addr{}},
		{"other pod, directly", b.do, address(t, r, 4), 80, address(t, rb, 4)},
	}
	for _, c := range cases {
		networks := []string{"tcp", "udp"}
		if c.port != 8080 {
			networks = networks[:1]
		}
		for _, network := range networks {
			seen, err := ask(c.from, network, netip.AddrPortFrom(c.to, c.port))
			switch {
			case c.want.IsValid() && err != nil:
				t.Errorf("%s, %s: %v", c.name, network, err)
			case seen != c.want:
				t.Errorf("%s, %s: the server sees %s, not %s", c.name, network, seen, c.want)
			}
		}
	}
	if t.Failed() {
		t.Log(netnstest.Command(t, "nft", "list", "ruleset"))
	}
	modernPorts := ports
	modernPorts.list = modern
	n.del(ports)
	if _, err := ask(client.do, "tcp", netip.AddrPortFrom(node4, 8080)); err == nil {
		t.Error("the port still answers after DEL")
	}
	n.del(call{pod: b})
	n.wantClean()
}

// The next pod with the same hostPort gets it, even if a former one was never deleted, and UDP clients that
// never fell silent reach it.
func TestHostPortMovesToTheNextPod(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, v4Env)
	client, a, b := outside(t), newPod(t, "a"), newPod(t, "b")
	caps := mappings(mapped(5353, 53, "udp"))
	ra := n.add(call{pod: a, caps: caps})
	serve(t, a.do, netip.AddrPortFrom(address(t, ra, 4), 53))
	to := netip.MustParseAddrPort("192.0.2.1:5353")
	if _, err := ask(client.do, "udp", to); err != nil {
		t.Fatal(err)
	}
	rb := n.add(call{pod: b, caps: caps})
	serve(t, b.do, netip.AddrPortFrom(address(t, rb, 4), 53))
	n.del(call{pod: a, caps: caps})
	if _, err := ask(client.do, "udp", to); err != nil {
		t.Error(err)
	}
	// A client that goes on sending must not reach whoever gets the address next.
	n.del(call{pod: b, caps: caps})
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	must(t, err)
	for _, f := range flows {
		if f.Forward.Protocol == unix.IPPROTO_UDP && f.Forward.DstPort == 5353 {
			t.Errorf("conntrack still knows %s", f)
		}
	}
}

func TestGuardOfLocalnet(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, v4Env)
	a, b := newPod(t, "a"), newPod(t, "b")
	n.add(call{pod: a, caps: mappings(mapped(8080, 80, "tcp"))})
	n.add(call{pod: b})
	serve(t, here, netip.MustParseAddrPort("127.0.0.1:9999"))
	b.ip(t, "route", "add", "127.0.0.1", "via", "10.244.3.1", "dev", "eth0", "table", "99")
	b.ip(t, "rule", "add", "pref", "0", "table", "99")
	b.ip(t, "rule", "add", "pref", "1", "lookup", "local")
	b.ip(t, "rule", "del", "pref", "0", "lookup", "local")
	netnstest.Command(t, "nsenter", "--net="+b.path, "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
	if seen, err := ask(b.do, "tcp", netip.MustParseAddrPort("127.0.0.1:9999")); err == nil {
		t.Errorf("a pod reaches the node's localhost, as %s", seen)
	}
}

func TestMasqueradeAndAntiSpoof(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, strings.Replace(dualEnv, "IPMASQ=true", "IPMASQ=false", 1))
	client, a := outside(t), newPod(t, "a")
	list := strings.Replace(modern, `"hairpinMode":true`, `"hairpinMode":true,"macspoofchk":true`, 1)
	c := call{pod: a, list: list}
	n.add(c)
	client.ip(t, "route", "add", "10.244.0.0/16", "via", "192.0.2.1")
	for _, to := range []string{"192.0.2.2:7000", "[2001:db8::2]:7000"} {
		addr := netip.MustParseAddrPort(to)
		serve(t, client.do, addr)
		seen, err := ask(a.do, "tcp", addr)
		if err != nil {
			t.Error(err)
		}
		if want := map[bool]string{true: "192.0.2.1", false: "2001:db8::1"}[addr.Addr().Is4()]; seen.String() != want {
			t.Errorf("%s sees %s, not %s", to, seen, want)
		}
	}
	must(t, n.check(c))
	a.ip(t, "link", "set", "eth0", "address", "02:00:00:00:00:01")
	if _, err := ask(a.do, "tcp", netip.MustParseAddrPort("192.0.2.2:7000")); err == nil {
		t.Error("a pod with another MAC than its own gets through")
	}
	n.del(c)
	n.wantClean()
}

// What is in the tables reads as it should.
func TestRulesAsNftPrintsThem(t *testing.T) {
	if !asNode(t) {
		return
	}
	netnstest.Need(t, "nft", "nftables")
	n := newNode(t, dualEnv)
	n.add(call{pod: newPod(t, "a"), caps: mappings(mapped(8080, 80, "tcp"))})
	got := netnstest.Command(t, "nft", "list", "table", "ip", "weft-cni")
	want := []string{
		`type nat hook prerouting priority dstnat + 5; policy accept;`,
		`type nat hook postrouting priority srcnat - 5; policy accept;`,
		`fib daddr type local jump hostports`,
		`tcp dport 8080 dnat to 10.244.3.2:80 comment "portmap cbr0/a/eth0"`,
		`ip saddr 127.0.0.0/8 tcp dport 8080 meta mark set meta mark | 0x00002000 comment "portmap cbr0/a/eth0"`,
		`ip saddr 10.244.3.0/24 tcp dport 8080 meta mark set meta mark | 0x00002000 comment "portmap cbr0/a/eth0"`,
		`ip daddr 10.244.3.2 meta mark & 0x00002000 == 0x00002000 masquerade comment "portmap cbr0/a/eth0"`,
		`iifname != "lo" ip daddr 127.0.0.0/8 drop`,
	}
	lines := strings.Split(got, "\n")
	for _, w := range want {
		if !slices.ContainsFunc(lines, func(l string) bool { return strings.TrimSpace(l) == w }) {
			t.Errorf("missing: %s", w)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
	fmt.Fprintln(t.Output(), len(lines), "lines")
}
