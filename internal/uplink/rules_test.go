package uplink

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/ranges"
)

func TestIface(t *testing.T) {
	runSelect(t, []selectCase{
		{name: "a name", host: twoNICs(), opts: Options{Iface: []string{"eth1"}}, on: v4only, want: "eth1 192.168.1.5 -"},
		{name: "a name, dual stack", host: twoNICs(), opts: Options{Iface: []string{"eth1"}}, on: dual, want: "eth1 192.168.1.5 fd00:b::5"},
		{name: "an address", host: twoNICs(), opts: Options{Iface: []string{"192.168.1.5"}}, on: v4only, want: "eth1 192.168.1.5 -"},
		{name: "an IPv4 address finds the device for both families", host: twoNICs(), opts: Options{Iface: []string{"192.168.1.5"}},
			on: dual, want: "eth1 192.168.1.5 fd00:b::5"},
		{name: "so does an IPv6 address", host: twoNICs(), opts: Options{Iface: []string{"fd00:b::5"}}, on: dual, want: "eth1 192.168.1.5 fd00:b::5"},
		{name: "an IPv6 address, IPv6 only", host: twoNICs(), opts: Options{Iface: []string{"fd00:b::5"}}, on: v6only, want: "eth1 - fd00:b::5"},
		{name: "an IPv4 address, IPv6 only", host: twoNICs(), opts: Options{Iface: []string{"192.168.1.5"}}, on: v6only, want: "eth1 - fd00:b::5"},
		{name: "the second of two addresses", host: hostOf(dev("eth0", "10.0.0.5/24", "10.0.0.6/24 temporary")),
			opts: Options{Iface: []string{"10.0.0.6"}}, on: v4only, want: "eth0 10.0.0.6 -"},
		{name: "the first that exists", host: twoNICs(), opts: Options{Iface: []string{"eth9", "10.9.9.9", "eth1", "eth0"}}, on: v4only,
			want: "eth1 192.168.1.5 -"},
		{name: "the first that has both families", host: hostOf(dev("eth0", "10.0.0.5/24"), dev("eth1", "10.1.0.5/24", "fd00::5/64")),
			opts: Options{Iface: []string{"eth0", "eth1"}}, on: dual, want: "eth1 10.1.0.5 fd00::5"},
		{name: "before regular expressions and reachability", host: twoNICs().reaching("10.0.0.9", "eth0", "10.0.0.5"),
			opts: Options{Iface: []string{"eth1"}, IfaceRegex: regexps("eth0"), CanReach: ip("10.0.0.9")}, on: v4only, want: "eth1 192.168.1.5 -"},
		{name: "an address that is also on the loopback", on: v4only, want: "eth0 10.1.1.1 -",
			host: hostOf(dev("lo", "127.0.0.1/8 host", "10.1.1.1/32"), dev("eth0", "10.1.1.1/32")), opts: Options{Iface: []string{"10.1.1.1"}}},
		{name: "a device of the pod network, named", host: hostOf(dev("cni0", "10.244.1.1/24")), opts: Options{Iface: []string{"cni0"}},
			on: v4only, want: "cni0 10.244.1.1 -"},
		{name: "none exists", host: twoNICs(), opts: Options{Iface: []string{"eth8", "10.9.9.9"}}, on: v4only,
			wantErr: []string{"--iface=eth8: no such device", "--iface=10.9.9.9", "correct the flag", "eth1 (192.168.1.5, fd00:b::5, fe80::2)"}},
		{name: "a device that is down", host: hostOf(with(dev("eth0", "10.0.0.5/24"), func(l *Link) { l.Up = false })),
			opts: Options{Iface: []string{"eth0"}}, on: v4only, wantErr: []string{"--iface=eth0", "down"}},
		{name: "MTU 0", host: hostOf(with(dev("eth0", "10.0.0.5/24"), func(l *Link) { l.MTU = 0 })),
			opts: Options{Iface: []string{"eth0"}}, on: v4only, wantErr: []string{"--iface=eth0", "MTU 0"}},
		{name: "no family enabled", host: twoNICs(), wantErr: []string{"neither IPv4 nor IPv6"}},
		{name: "no address of the second family", host: hostOf(dev("eth0", "10.0.0.5/24")), opts: Options{Iface: []string{"eth0"}}, on: dual,
			missing: "IPv6", wantErr: []string{"no usable IPv6 address"}},
		{name: "no address of the first family", host: hostOf(dev("eth0", "fd00::5/64")), opts: Options{Iface: []string{"eth0"}}, on: dual,
			missing: "IPv4", wantErr: []string{"no usable IPv4 address"}},
		{name: "no address at all", host: hostOf(dev("eth0")), opts: Options{Iface: []string{"eth0"}}, on: dual, wantErr: []string{"no usable IPv4"}},
	})
}

func TestRegex(t *testing.T) {
	pods := hostOf(lo,
		dev("cni0", "10.244.1.1/24"), dev("flannel.1", "10.244.1.0/32"),
		with(dev("pods", "10.244.1.1/24"), func(l *Link) { l.Kind = "bridge" }),
		with(dev("vethabc", "10.9.0.1/24"), func(l *Link) { l.Kind, l.Master = "veth", 2 }),
		dev("eth0", "10.0.0.5/24"))
	network := family.Pair[ranges.List]{V4: ranges.Of(netip.MustParsePrefix("10.248.0.0/16"), netip.MustParsePrefix("10.244.0.0/16"))}
	runSelect(t, []selectCase{
		{name: "an address", host: twoNICs(), opts: Options{IfaceRegex: regexps(`^192\.168\.`)}, on: v4only, want: "eth1 192.168.1.5 -"},
		{name: "unanchored", host: twoNICs(), opts: Options{IfaceRegex: regexps(`68\.1`)}, on: v4only, want: "eth1 192.168.1.5 -"},
		{name: "the address that matches, not the preferred one", host: hostOf(dev("eth0", "10.0.0.5/24", "172.16.0.5/24")),
			opts: Options{IfaceRegex: regexps(`^172\.`)}, on: v4only, want: "eth0 172.16.0.5 -"},
		{name: "an address of a later device before the name of an earlier one", on: v4only, want: "eth1 10.0.0.1 -",
			host: hostOf(dev("nic10.0", "192.168.0.1/24"), dev("eth1", "10.0.0.1/24")), opts: Options{IfaceRegex: regexps(`10\.0`)}},
		{name: "a name", host: twoNICs(), opts: Options{IfaceRegex: regexps(`h1$`)}, on: v4only, want: "eth1 192.168.1.5 -"},
		{name: "the first name with an address", host: hostOf(dev("eth0"), dev("eth1", "10.0.0.5/24")), opts: Options{IfaceRegex: regexps("eth")},
			on: v4only, want: "eth1 10.0.0.5 -"},
		{name: "dual stack: both addresses must match", host: twoNICs(), opts: Options{IfaceRegex: regexps(`^(10\.0|192\.168|fd00:b)`)}, on: dual,
			want: "eth1 192.168.1.5 fd00:b::5"},
		{name: "dual stack: one address is not enough, so it is taken as a name", host: twoNICs(), on: dual,
			opts: Options{IfaceRegex: regexps(`^192\.168`)}, wantErr: []string{`--iface-regex=^192\.168: no device fits`}, missing: "IPv6"},
		{name: "IPv6 only", host: twoNICs(), opts: Options{IfaceRegex: regexps(`^fd00:b`)}, on: v6only, want: "eth1 - fd00:b::5"},
		{name: "the second expression", host: twoNICs(), opts: Options{IfaceRegex: regexps("^wlan", "eth1")}, on: v4only, want: "eth1 192.168.1.5 -"},
		{name: "after --iface", host: twoNICs(), opts: Options{Iface: []string{"eth9"}, IfaceRegex: regexps("eth1")}, on: v4only, want: "eth1 192.168.1.5 -"},
		{name: "not the pod network's devices", host: pods, opts: Options{IfaceRegex: regexps(`^10\.`), Networks: network}, on: v4only, want: "eth0 10.0.0.5 -"},
		{name: "not the loopback", host: hostOf(lo, dev("solo", "10.0.0.5/24")), opts: Options{IfaceRegex: regexps("lo|^1")}, on: v4only, want: "solo 10.0.0.5 -"},
		{name: "a deprecated address does not match", host: hostOf(dev("eth0", "fd00::1/64 deprecated"), dev("eth1", "fd00::2/64")),
			opts: Options{IfaceRegex: regexps("^fd00")}, on: v6only, want: "eth1 - fd00::2"},
		{name: "nothing", host: vagrant(), opts: Options{IfaceRegex: regexps("^wlan", "^172")}, on: v4only,
			wantErr: []string{"--iface-regex=^wlan", "--iface-regex=^172", "eth0 (10.0.2.15), eth1 (192.168.50.11)"}},
	})
}

func TestCanReach(t *testing.T) {
	local := twoNICs()
	local.Reach[ip("10.0.0.5")] = Reachability{Index: 1, Local: true}
	unreachable := twoNICs()
	unreachable.Reach[ip("10.9.9.9")] = Reachability{Err: unix.ENETUNREACH}
	runSelect(t, []selectCase{
		{name: "device and source address of the route", opts: Options{CanReach: ip("192.168.1.9")}, on: v4only, want: "eth1 192.168.1.6 -",
			host: hostOf(dev("eth1", "192.168.1.5/24", "192.168.1.6/24")).reaching("192.168.1.9", "eth1", "192.168.1.6")},
		{name: "the other family is chosen on that device", host: twoNICs().reaching("192.168.1.9", "eth1", "192.168.1.5"),
			opts: Options{CanReach: ip("192.168.1.9")}, on: dual, want: "eth1 192.168.1.5 fd00:b::5"},
		{name: "an IPv6 target", host: twoNICs().reaching("fd00:b::9", "eth1", "fd00:b::5"), opts: Options{CanReach: ip("fd00:b::9")}, on: dual,
			want: "eth1 192.168.1.5 fd00:b::5"},
		{name: "after --iface-regex", host: twoNICs().reaching("192.168.1.9", "eth1", "192.168.1.5"),
			opts: Options{IfaceRegex: regexps("^wlan"), CanReach: ip("192.168.1.9")}, on: v4only, want: "eth1 192.168.1.5 -"},
		{name: "through the pod network", host: hostOf(dev("flannel.1", "10.244.1.0/32")).reaching("10.244.2.1", "flannel.1", "10.244.1.0"),
			opts: Options{CanReach: ip("10.244.2.1")}, on: v4only, wantErr: []string{"--iface-can-reach=10.244.2.1", "pod network"}},
		{name: "this host itself", host: local, opts: Options{CanReach: ip("10.0.0.5")}, on: v4only, wantErr: []string{"--iface-can-reach=10.0.0.5", "this host"}},
		{name: "no route", host: unreachable, opts: Options{CanReach: ip("10.9.9.9")}, on: v4only, wantErr: []string{"--iface-can-reach=10.9.9.9", "no route"}},
		{name: "not looked up", host: twoNICs(), opts: Options{CanReach: ip("10.9.9.9")}, on: v4only, wantErr: []string{"not looked up"}},
	})
}

func TestPublicAddress(t *testing.T) {
	runSelect(t, []selectCase{
		{name: "chooses the device that carries it", host: twoNICs(), opts: Options{Public: ips("192.168.1.5", "")}, on: v4only, want: "eth1 192.168.1.5 -"},
		{name: "IPv6, IPv6 only", host: twoNICs(), opts: Options{Public: ips("", "fd00:b::5")}, on: v6only, want: "eth1 - fd00:b::5"},
		{name: "IPv6 alone, dual stack", host: twoNICs(), opts: Options{Public: ips("", "fd00:b::5")}, on: dual, want: "eth1 192.168.1.5 fd00:b::5"},
		{name: "both, on one device", on: dual, want: "eth1 192.168.1.6 fd00:b::6", opts: Options{Public: ips("192.168.1.6", "fd00:b::6")},
			host: hostOf(dev("eth1", "192.168.1.5/24", "192.168.1.6/24", "fd00:b::5/64", "fd00:b::6/64"))},
		{name: "both, on two devices", host: twoNICs(), opts: Options{Public: ips("192.168.1.5", "fd00:a::5")}, on: dual,
			wantErr: []string{"--public-ipv6=fd00:a::5 is on eth0", "eth1"}},
		{name: "of a family that is off", host: twoNICs(), opts: Options{Public: ips("", "fd00:b::5")}, on: v4only, want: "eth0 10.0.0.5 -"},
		{name: "on no device", host: twoNICs(), opts: Options{Public: ips("203.0.113.5", "")}, on: v4only,
			wantErr: []string{"--public-ip=203.0.113.5", "--iface-can-reach", "public-ip-overwrite"}},
		{name: "IPv6 on no device", host: twoNICs(), opts: Options{Public: ips("10.0.0.5", "2001:db8::5")}, on: dual,
			wantErr: []string{"--public-ipv6=2001:db8::5", "--iface"}, missing: "IPv6"},
		{name: "behind NAT, with a device", host: twoNICs(), opts: Options{Public: ips("203.0.113.5", ""), Iface: []string{"eth1"}}, on: v4only,
			want: "eth1 192.168.1.5 -", public: "203.0.113.5 -"},
		{name: "behind NAT, with an address, both families", host: twoNICs(), on: dual, want: "eth1 192.168.1.5 fd00:b::5",
			opts: Options{Public: ips("203.0.113.5", "2001:db8::5"), Iface: []string{"192.168.1.5"}}, public: "203.0.113.5 2001:db8::5"},
		{name: "an address, and the public IPv6 address elsewhere", host: twoNICs(), on: dual,
			opts: Options{Iface: []string{"192.168.1.5"}, Public: ips("", "fd00:a::5")}, wantErr: []string{"must be on the same device"}},
		{name: "an address, and the public IPv6 address on the same device", on: dual, want: "eth1 192.168.1.5 fd00:b::6",
			host: hostOf(dev("eth1", "192.168.1.5/24", "fd00:b::5/64", "fd00:b::6/64")),
			opts: Options{Iface: []string{"192.168.1.5"}, Public: ips("", "fd00:b::6")}},
		{name: "the annotation is stronger than the flag", host: twoNICs(), on: v4only, want: "eth1 192.168.1.5 -",
			opts: Options{Public: ips("10.0.0.5", ""), NodePublic: ips("192.168.1.5", "")}},
		{name: "an annotation on no device", host: twoNICs(), on: v4only, opts: Options{NodePublic: ips("203.0.113.5", "")},
			wantErr: []string{"annotation node-public-ip 203.0.113.5"}},
		{name: "overwritten", host: twoNICs(), opts: Options{Overwrite: ips("203.0.113.5", "")}, on: dual,
			want: "eth0 10.0.0.5 fd00:a::5", public: "203.0.113.5 fd00:a::5"},
		{name: "overwriting is stronger than everything", host: twoNICs(), on: v4only, want: "eth1 192.168.1.5 -", public: "203.0.113.5 -",
			opts: Options{Overwrite: ips("203.0.113.5", ""), NodePublic: ips("192.168.1.5", ""), Public: ips("10.0.0.5", "")}},
		{name: "deprecated, but asked for", host: hostOf(dev("eth0", "fd00::1/64", "fd00::2/64 deprecated")), opts: Options{Public: ips("", "fd00::2")},
			on: v6only, want: "eth0 - fd00::2"},
	})
}
