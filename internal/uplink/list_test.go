package uplink

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/netnstest"
)

// run runs iproute2 commands in the caller's namespace.
func run(t *testing.T, commands ...[]string) {
	t.Helper()
	for _, c := range commands {
		netnstest.Command(t, "ip", c...)
	}
}

func addVeth(t *testing.T, name string) {
	t.Helper()
	run(t, []string{"link", "add", name, "type", "veth", "peer", "name", name + "p"},
		[]string{"link", "set", name + "p", "up"}, []string{"link", "set", name, "up"})
}

func addAddr(t *testing.T, device string, args ...string) {
	t.Helper()
	run(t, append([]string{"addr", "add", "dev", device}, args...))
}

func list(t *testing.T, reach ...netip.Addr) Host {
	t.Helper()
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h, err := c.List(reach...)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// An answer that is lost must not hold up the agent, which could not even be stopped.
func TestListWaitsForNoLostAnswer(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		c, err := Open()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		sockets := reflect.ValueOf(c.nl).Elem().FieldByName("sockets")
		for _, key := range sockets.MapKeys() {
			socket := sockets.MapIndex(key).Elem().FieldByName("Socket").Elem()
			if wait := time.Duration(socket.FieldByName("receiveTimeout").Int()); wait == 0 || wait > 5*time.Second {
				t.Errorf("waits %s, and 0 is for ever", wait)
			}
		}
		if sockets.Len() == 0 {
			t.Error("no socket")
		}
	})
}

// ipLink is what `ip -j -d addr` prints of a link.
type ipLink struct {
	Index int      `json:"ifindex"`
	Name  string   `json:"ifname"`
	MTU   int      `json:"mtu"`
	Flags []string `json:"flags"`
	Info  struct {
		Kind string `json:"info_kind"`
	} `json:"linkinfo"`
	Master string   `json:"master"`
	Addrs  []ipAddr `json:"addr_info"`
}

type ipAddr struct {
	Local      string `json:"local"`
	Length     int    `json:"prefixlen"`
	Scope      string `json:"scope"`
	Dynamic    bool   `json:"dynamic"`
	Deprecated bool   `json:"deprecated"`
	Temporary  bool   `json:"temporary"`
	Secondary  bool   `json:"secondary"`
	Tentative  bool   `json:"tentative"`
	DADFailed  bool   `json:"dadfailed"`
}

// asIPShows reads the links with the ip command.
func asIPShows(t *testing.T) []Link {
	t.Helper()
	var raw []ipLink
	if err := json.Unmarshal([]byte(netnstest.Command(t, "ip", "-j", "-d", "addr")), &raw); err != nil {
		t.Fatal(err)
	}
	index := map[string]int{}
	for _, l := range raw {
		index[l.Name] = l.Index
	}
	scopes := map[string]int{"global": unix.RT_SCOPE_UNIVERSE, "link": unix.RT_SCOPE_LINK, "host": unix.RT_SCOPE_HOST}
	var out []Link
	for _, l := range raw {
		link := Link{Index: l.Index, Name: l.Name, Kind: l.Info.Kind, Master: index[l.Master], MTU: l.MTU}
		for _, f := range l.Flags {
			link.Up = link.Up || f == "UP"
			link.Loopback = link.Loopback || f == "LOOPBACK"
		}
		for _, a := range l.Addrs {
			link.Addrs = append(link.Addrs, Address{
				Prefix: netip.MustParsePrefix(fmt.Sprintf("%s/%d", a.Local, a.Length)), Scope: scopes[a.Scope],
				Permanent: !a.Dynamic, Deprecated: a.Deprecated, Temporary: a.Temporary || a.Secondary,
				Tentative: a.Tentative && !a.DADFailed, Duplicate: a.DADFailed,
			})
		}
		out = append(out, link)
	}
	return out
}

func TestListSeesWhatIPShows(t *testing.T) {
	netnstest.Need(t, "ip", "iproute2")
	netnstest.Run(t, func(t *testing.T) {
		addVeth(t, "eth0")
		addVeth(t, "eth1")
		run(t, []string{"link", "set", "eth0", "mtu", "1400"},
			[]string{"link", "add", "br0", "type", "bridge"}, []string{"link", "set", "eth1p", "master", "br0"})
		addAddr(t, "eth0", "10.0.0.5/24")
		addAddr(t, "eth0", "10.0.0.6/24")
		addAddr(t, "eth0", "169.254.7.7/16", "scope", "link")
		addAddr(t, "eth0", "10.9.0.1", "peer", "10.9.0.2/32")
		addAddr(t, "eth0", "10.1.0.5/24", "valid_lft", "600", "preferred_lft", "600")
		addAddr(t, "eth0", "fd00:a::5/64", "nodad")
		addAddr(t, "eth0", "fd00:a::6/64", "nodad", "valid_lft", "600", "preferred_lft", "0")
		addAddr(t, "br0", "fd00:c::1/64") // the bridge is down, so this stays tentative
		addAddr(t, "lo", "10.200.0.1/32")
		want := asIPShows(t)
		// Link-local addresses of links that just came up leave their tentative state when they like.
		settled := cmp.Transformer("settled", func(as []Address) []Address {
			var out []Address
			for _, a := range as {
				if !a.Prefix.Addr().IsLinkLocalUnicast() || a.Prefix.Addr().Is4() {
					out = append(out, a)
				}
			}
			return out
		})
		opts := cmp.Options{cmpopts.EquateComparable(netip.Prefix{}), cmp.FilterPath(func(p cmp.Path) bool {
			return p.Last().String() == ".Addrs"
		}, settled)}
		if diff := cmp.Diff(want, list(t).Links, opts); diff != "" {
			t.Errorf("links (-ip +list)\n%s", diff)
		}
	})
}

func TestListSeesDefaultRoutes(t *testing.T) {
	netnstest.Need(t, "ip", "iproute2")
	netnstest.Run(t, func(t *testing.T) {
		for i, name := range []string{"eth0", "eth1", "eth2"} {
			addVeth(t, name)
			addAddr(t, name, fmt.Sprintf("10.0.%d.5/24", i))
			addAddr(t, name, fmt.Sprintf("fd00:%d::5/64", i), "nodad")
		}
		run(t, []string{"route", "add", "default", "via", "10.0.1.1", "metric", "200"},
			[]string{"route", "add", "default", "via", "10.0.0.1", "metric", "100"},
			[]string{"route", "add", "unreachable", "default", "metric", "1"},
			[]string{"route", "add", "default", "via", "10.0.2.1", "table", "100"},
			[]string{"route", "add", "0.0.0.0/1", "via", "10.0.2.1"},
			[]string{"route", "add", "default", "metric", "300", "nexthop", "via", "10.0.1.1", "nexthop", "via", "10.0.2.1"},
			[]string{"-6", "route", "add", "default", "via", "fd00:2::1", "metric", "50"},
			[]string{"-6", "route", "add", "unreachable", "default", "metric", "10"},
			[]string{"-6", "route", "add", "default", "via", "fd00:1::1", "metric", "40"})
		h := list(t)
		names := func(f family.Family) (out []string) {
			for _, i := range h.Defaults.Of(f) {
				l, _ := h.linkAt(i)
				out = append(out, l.Name)
			}
			return out
		}
		if diff := cmp.Diff([]string{"eth0", "eth1", "eth1", "eth2"}, names(family.V4)); diff != "" {
			t.Errorf("IPv4 (-want +got)\n%s", diff)
		}
		if diff := cmp.Diff([]string{"eth1", "eth2"}, names(family.V6)); diff != "" {
			t.Errorf("IPv6 (-want +got)\n%s", diff)
		}
	})
}

func TestListLooksUpRoutes(t *testing.T) {
	netnstest.Need(t, "ip", "iproute2")
	netnstest.Run(t, func(t *testing.T) {
		addVeth(t, "eth0")
		addAddr(t, "eth0", "10.0.0.5/24")
		addAddr(t, "eth0", "10.0.0.6/24")
		addAddr(t, "eth0", "fd00::5/64", "nodad")
		run(t, []string{"route", "add", "172.16.0.0/12", "via", "10.0.0.1", "src", "10.0.0.6"})
		h := list(t, ip("172.16.0.1"), ip("fd00::9"), ip("10.0.0.5"), ip("192.0.2.1"), netip.Addr{})
		eth0, _ := h.linkNamed("eth0")
		lo, _ := h.linkNamed("lo")
		want := map[netip.Addr]Reachability{
			ip("172.16.0.1"): {Index: eth0.Index, Src: ip("10.0.0.6")},
			ip("fd00::9"):    {Index: eth0.Index, Src: ip("fd00::5")},
			ip("10.0.0.5"):   {Index: lo.Index, Src: ip("10.0.0.5"), Local: true},
			ip("192.0.2.1"):  {Err: unix.ENETUNREACH},
		}
		if diff := cmp.Diff(want, h.Reach, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateErrors()); diff != "" {
			t.Errorf("routes (-want +got)\n%s", diff)
		}
	})
}

func TestSelectOnARealHost(t *testing.T) {
	netnstest.Need(t, "ip", "iproute2")
	netnstest.Run(t, func(t *testing.T) {
		addVeth(t, "eth0")
		addVeth(t, "eth1")
		addAddr(t, "eth0", "10.0.2.15/24", "valid_lft", "600", "preferred_lft", "600")
		addAddr(t, "eth0", "fd00:a::5/64", "nodad")
		addAddr(t, "eth1", "192.168.50.11/24")
		addAddr(t, "eth1", "fd00:b::5/64", "nodad")
		run(t, []string{"link", "add", "cni0", "type", "bridge"}, []string{"link", "set", "cni0", "up"},
			[]string{"addr", "add", "192.168.77.1/24", "dev", "cni0"},
			[]string{"route", "add", "default", "via", "10.0.2.2"},
			[]string{"-6", "route", "add", "default", "via", "fd00:a::1"})
		for _, c := range []struct {
			name string
			opts Options
			on   family.Pair[bool]
			want string
		}{
			{"default route", Options{}, v4only, "eth0 10.0.2.15 -"},
			{"default route, IPv6 only", Options{}, v6only, "eth0 - fd00:a::5"},
			{"default route, dual stack", Options{}, dual, "eth0 10.0.2.15 fd00:a::5"},
			{"--iface with a name", Options{Iface: []string{"eth1"}}, dual, "eth1 192.168.50.11 fd00:b::5"},
			{"--iface with an address", Options{Iface: []string{"fd00:b::5"}}, v6only, "eth1 - fd00:b::5"},
			{"--iface-regex by address", Options{IfaceRegex: regexps(`^(192\.168|fd00)`)}, dual, "eth1 192.168.50.11 fd00:b::5"},
			{"--iface-regex by name", Options{IfaceRegex: regexps(`^eth1$`)}, v4only, "eth1 192.168.50.11 -"},
			{"--iface-can-reach", Options{CanReach: ip("192.168.50.99")}, dual, "eth1 192.168.50.11 fd00:b::5"},
			{"--iface-can-reach, IPv6", Options{CanReach: ip("fd00:b::99")}, dual, "eth1 192.168.50.11 fd00:b::5"},
			{"--public-ip", Options{Public: ips("192.168.50.11", "")}, v4only, "eth1 192.168.50.11 -"},
			{"--public-ipv6", Options{Public: ips("", "fd00:b::5")}, dual, "eth1 192.168.50.11 fd00:b::5"},
			{"node address", Options{NodeIP: ips("192.168.50.11", "")}, v4only, "eth1 192.168.50.11 -"},
		} { // no subtests: they would run on other threads, outside the namespace
			h := list(t, c.opts.CanReach)
			u, _, err := Select(h, c.opts, c.on, Uplink{})
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			if got := u.Name + " " + text(u.Addr); got != c.want || u.MTU != 1500 {
				t.Errorf("%s: got %s, MTU %d; want %s", c.name, got, u.MTU, c.want)
			}
		}
	})
}

func TestAnAddressAddedFirstDoesNotMoveTheNode(t *testing.T) {
	netnstest.Need(t, "ip", "iproute2")
	netnstest.Run(t, func(t *testing.T) {
		addVeth(t, "eth0")
		addAddr(t, "eth0", "10.0.0.5/24", "valid_lft", "600", "preferred_lft", "600")
		run(t, []string{"route", "add", "default", "via", "10.0.0.1"})
		before, _, err := Select(list(t), Options{}, v4only, Uplink{})
		if err != nil {
			t.Fatal(err)
		}
		addAddr(t, "eth0", "10.0.0.100/32") // permanent, so it would be preferred
		after, _, err := Select(list(t), Options{}, v4only, before)
		if err != nil || after != before {
			t.Errorf("moved from %+v to %+v, %v", before, after, err)
		}
		run(t, []string{"addr", "del", "10.0.0.5/24", "dev", "eth0"}, []string{"link", "set", "eth0", "mtu", "1400"})
		after, _, err = Select(list(t), Options{Iface: []string{"eth0"}}, v4only, before)
		if want := ip("10.0.0.100"); err != nil || after.Addr.V4 != want || after.MTU != 1400 {
			t.Errorf("after the address went: %+v, %v; want %s and MTU 1400", after, err, want)
		}
	})
}
