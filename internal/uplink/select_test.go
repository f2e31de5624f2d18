package uplink

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weftnet/weft/internal/family"
)

func TestDefaultRoute(t *testing.T) {
	runSelect(t, []selectCase{
		{name: "the first in the listing", host: twoNICs(), on: v4only, want: "eth0 10.0.0.5 -"},
		{name: "IPv6 only", host: twoNICs(), on: v6only, want: "eth0 - fd00:a::5"},
		{name: "dual stack", host: twoNICs(), on: dual, want: "eth0 10.0.0.5 fd00:a::5"},
		{name: "dual stack through two devices", on: dual, wantErr: []string{"IPv4 leaves through eth0 and IPv6 through eth1", "--iface"},
			host: hostOf(dev("eth0", "10.0.0.5/24", "fd00:a::5/64"), dev("eth1", "10.1.0.5/24", "fd00:b::5/64")).via(family.V4, "eth0").via(family.V6, "eth1")},
		{name: "IPv6 without a default route follows IPv4", host: hostOf(dev("eth0", "10.0.0.5/24", "fd00:a::5/64")).via(family.V4, "eth0"), on: dual,
			want: "eth0 10.0.0.5 fd00:a::5"},
		{name: "IPv4 without a default route follows IPv6", host: hostOf(dev("eth0", "10.0.0.5/24", "fd00:a::5/64")).via(family.V6, "eth0"), on: dual,
			want: "eth0 10.0.0.5 fd00:a::5"},
		{name: "IPv6 without a default route, link-local only", host: hostOf(dev("eth0", "10.0.0.5/24", "fe80::1/64")).via(family.V4, "eth0"), on: dual,
			missing: "IPv6", wantErr: []string{"IPv6"}},
		{name: "no IPv6 address", host: hostOf(dev("eth0", "10.0.0.5/24")).via(family.V4, "eth0"), on: dual, missing: "IPv6"},
		{name: "no IPv4 address", host: hostOf(dev("eth0", "fd00::5/64")).via(family.V6, "eth0"), on: dual, missing: "IPv4"},
		{name: "a device without an address is passed over", host: hostOf(dev("tun0"), dev("eth0", "10.0.0.5/24")).via(family.V4, "tun0", "eth0"),
			on: v4only, want: "eth0 10.0.0.5 -"},
		{name: "none", host: hostOf(dev("eth0", "10.0.0.5/24")), on: v4only, wantErr: []string{"default route", "--iface", "eth0 (10.0.0.5)"}},
		{name: "none, and no device", host: hostOf(lo), on: v4only, wantErr: []string{"none with an address"}},
		{name: "Vagrant without a hint", host: vagrant(), on: v4only, want: "eth0 10.0.2.15 -"},
		{name: "Vagrant, known to the cluster by another address", host: vagrant(), opts: Options{NodeIP: ips("192.168.50.11", "")}, on: v4only,
			want: "eth1 192.168.50.11 -"},
		{name: "Vagrant, told", host: vagrant(), opts: Options{IfaceRegex: regexps(`^192\.168\.50\.`)}, on: v4only, want: "eth1 192.168.50.11 -"},
		{name: "known by an address that is not here", host: twoNICs(), opts: Options{NodeIP: ips("203.0.113.5", "")}, on: v4only, want: "eth0 10.0.0.5 -"},
		{name: "known by both addresses", host: twoNICs(), opts: Options{NodeIP: ips("192.168.1.5", "fd00:b::5")}, on: dual, want: "eth1 192.168.1.5 fd00:b::5"},
		{name: "known by an address of one family", host: twoNICs(), opts: Options{NodeIP: ips("", "fd00:b::5")}, on: dual, want: "eth1 192.168.1.5 fd00:b::5"},
	})
}

func TestAddressPreference(t *testing.T) {
	on := func(addrs ...string) Host {
		return hostOf(dev("eth0", addrs...)).via(family.V4, "eth0").via(family.V6, "eth0")
	}
	runSelect(t, []selectCase{
		{name: "the first of two", host: on("10.0.0.5/24", "10.0.0.6/24"), on: v4only, want: "eth0 10.0.0.5 -"},
		{name: "global before link-local", host: on("169.254.1.1/16", "10.0.0.5/24 dynamic"), on: v4only, want: "eth0 10.0.0.5 -"},
		{name: "IPv6 global before link-local", host: on("fe80::1/64", "2001:db8::1/64 dynamic temporary"), on: v6only, want: "eth0 - 2001:db8::1"},
		{name: "link-local only", host: on("fe80::1/64"), on: v6only, want: "eth0 - fe80::1"},
		{name: "permanent before dynamic", host: on("2001:db8::1/64 dynamic", "2001:db8::2/64"), on: v6only, want: "eth0 - 2001:db8::2"},
		{name: "stable before temporary", host: on("2001:db8::1/64 dynamic temporary", "2001:db8::2/64 dynamic"), on: v6only, want: "eth0 - 2001:db8::2"},
		{name: "permanent weighs more than temporary", host: on("2001:db8::1/64 dynamic", "2001:db8::2/64 temporary"), on: v6only, want: "eth0 - 2001:db8::2"},
		{name: "not deprecated", host: on("2001:db8::1/64 deprecated", "2001:db8::2/64 dynamic temporary"), on: v6only, want: "eth0 - 2001:db8::2"},
		{name: "not tentative", host: on("2001:db8::1/64 tentative", "2001:db8::2/64 dynamic"), on: v6only, want: "eth0 - 2001:db8::2"},
		{name: "not a duplicate", host: on("2001:db8::1/64 duplicate", "2001:db8::2/64 dynamic"), on: v6only, want: "eth0 - 2001:db8::2"},
		{name: "not of host scope", host: on("10.0.0.1/32 host", "10.0.0.5/24"), on: v4only, want: "eth0 10.0.0.5 -"},
		{name: "a link-local address is not taken while a global one is coming", host: on("fe80::1/64", "2001:db8::1/64 tentative"), on: v6only,
			wantErr: []string{"eth0: no usable IPv6 address", "2001:db8::1: duplicate"}},
		{name: "still tentative", host: on("2001:db8::1/64 tentative"), on: v6only, wantErr: []string{"2001:db8::1: duplicate address detection is still running"}},
	})
}

func TestTheCurrentChoiceIsKept(t *testing.T) {
	on := func(addrs ...string) Host {
		return hostOf(dev("eth0", addrs...)).via(family.V4, "eth0").via(family.V6, "eth0")
	}
	eth0 := using("eth0", "10.0.0.5", "")
	six := using("eth0", "", "2001:db8::5")
	runSelect(t, []selectCase{
		{name: "an address is added before it", host: on("10.0.0.100/32", "10.0.0.5/24 dynamic"), on: v4only, current: eth0, want: "eth0 10.0.0.5 -"},
		{name: "it is gone", host: on("10.0.0.100/32", "10.0.0.6/24"), on: v4only, current: eth0, want: "eth0 10.0.0.100 -"},
		{name: "it is tentative again after a link flap", host: on("2001:db8::5/64 tentative", "2001:db8::6/64"), on: v6only, current: six, want: "eth0 - 2001:db8::5"},
		{name: "it is deprecated", host: on("2001:db8::5/64 deprecated", "2001:db8::6/64 dynamic"), on: v6only, current: six, want: "eth0 - 2001:db8::6"},
		{name: "it is deprecated and there is no other", host: on("2001:db8::5/64 deprecated", "fe80::1/64 deprecated"), on: v6only, current: six,
			want: "eth0 - 2001:db8::5"},
		{name: "another host has it", host: on("2001:db8::5/64 duplicate", "2001:db8::6/64 dynamic"), on: v6only, current: six, want: "eth0 - 2001:db8::6"},
		{name: "a global address comes after a link-local one", host: on("fe80::1/64", "2001:db8::5/64 dynamic"), on: v6only,
			current: using("eth0", "", "fe80::1"), want: "eth0 - 2001:db8::5"},
		{name: "a default route comes before its own", host: twoNICs(), on: v4only, current: using("eth1", "192.168.1.5", ""), want: "eth1 192.168.1.5 -"},
		{name: "its default route is gone", host: hostOf(dev("eth0", "10.0.0.5/24"), dev("eth1", "10.1.0.5/24")).via(family.V4, "eth1"), on: v4only,
			current: eth0, want: "eth1 10.1.0.5 -"},
		{name: "all default routes are gone", host: hostOf(dev("eth0", "10.0.0.5/24"), dev("eth1", "10.1.0.5/24")), on: v4only, current: eth0, want: "eth0 10.0.0.5 -"},
		{name: "all default routes and the address are gone", host: hostOf(dev("eth0", "10.0.0.6/24")), on: v4only, current: eth0, wantErr: []string{"default route"}},
		{name: "one family moves to another device", host: twoNICs(), on: dual, current: using("eth1", "192.168.1.5", "fd00:b::5"), want: "eth0 10.0.0.5 fd00:a::5"},
		{name: "a flag names another device", host: twoNICs(), opts: Options{Iface: []string{"eth1"}}, on: v4only, current: eth0, want: "eth1 192.168.1.5 -"},
		{name: "a flag names another address", host: on("10.0.0.5/24", "10.0.0.6/24"), opts: Options{Iface: []string{"10.0.0.6"}}, on: v4only,
			current: eth0, want: "eth0 10.0.0.6 -"},
		{name: "a device named earlier has come", host: twoNICs(), opts: Options{Iface: []string{"eth1", "eth0"}}, on: v4only, current: eth0, want: "eth1 192.168.1.5 -"},
		{name: "it matches as well as an earlier one", host: twoNICs(), opts: Options{IfaceRegex: regexps("eth|^1")}, on: v4only,
			current: using("eth1", "192.168.1.5", ""), want: "eth1 192.168.1.5 -"},
		{name: "it does not match", host: twoNICs(), opts: Options{IfaceRegex: regexps("^192")}, on: v4only, current: eth0, want: "eth1 192.168.1.5 -"},
		{name: "the cluster knows the node by another address", host: on("10.0.0.5/24", "10.0.0.6/24"), opts: Options{NodeIP: ips("10.0.0.6", "")}, on: v4only,
			current: eth0, want: "eth0 10.0.0.6 -"},
		{name: "the device was made again and has another number", host: on("10.0.0.5/24"), on: v4only,
			current: Uplink{Name: "eth0", Index: 77, Addr: ips("10.0.0.5", "")}, want: "eth0 10.0.0.5 -"},
	})
}

func TestTheDecisionNamesWhatWasRejected(t *testing.T) {
	h := hostOf(lo, dev("eth0", "10.0.0.5/24", "10.0.0.6/24 temporary", "10.0.0.7/24 dynamic", "169.254.3.3/16"), dev("eth1", "192.168.1.5/24"),
		dev("cni0", "10.244.1.1/24"), dev("wg0")).via(family.V4, "wg0", "eth0")
	u, d, err := Select(h, Options{NodeIP: ips("10.9.9.9", "")}, v4only, Uplink{})
	if err != nil {
		t.Fatal(err)
	}
	want := Decision{Chosen: u, Rule: "default route", Reason: "a default route leaves through it", Rejected: []Rejection{
		{"node address 10.9.9.9", "the address is on no device of this host"},
		{"wg0", "no usable IPv4 address"},
		{"eth1", "no default route leaves through it"},
		{"10.0.0.6 on eth0", "temporary or secondary; 10.0.0.5 is neither"},
		{"10.0.0.7 on eth0", "has a lifetime; 10.0.0.5 is permanent"},
		{"169.254.3.3 on eth0", "link-local; 10.0.0.5 is global"},
	}}
	if diff := cmp.Diff(want, d, cmpopts.EquateComparable(Uplink{})); diff != "" {
		t.Errorf("decision (-want +got)\n%s", diff)
	}
	got := d.LogValue().String()
	for _, part := range []string{"dev=eth0", "mtu=1500", "ipv4=10.0.0.5", "ipv4_public=10.0.0.5", "rule=default route", "eth1: no default route"} {
		if !strings.Contains(got, part) {
			t.Errorf("log value lacks %q: %s", part, got)
		}
	}
}

func TestTheDecisionSaysThatAnAddressWasKept(t *testing.T) {
	h := hostOf(dev("eth0", "10.0.0.100/32", "10.0.0.5/24 dynamic")).via(family.V4, "eth0")
	_, d, err := Select(h, Options{}, v4only, using("eth0", "10.0.0.5", ""))
	if err != nil {
		t.Fatal(err)
	}
	want := []Rejection{{"10.0.0.100 on eth0", "10.0.0.5 is in use already"}}
	if diff := cmp.Diff(want, d.Rejected); diff != "" {
		t.Errorf("rejected (-want +got)\n%s", diff)
	}
}
