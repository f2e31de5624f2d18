package uplink

import (
	"errors"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// hostOf builds a Host: devices are numbered from 1 in the order given.
func hostOf(links ...Link) Host {
	h := Host{Reach: map[netip.Addr]Reachability{}}
	for i, l := range links {
		l.Index = i + 1
		h.Links = append(h.Links, l)
	}
	return h
}

// dev builds a device that is up. An address is "10.0.0.1/24", followed by words such as "dynamic".
func dev(name string, addrs ...string) Link {
	l := Link{Name: name, MTU: 1500, Up: true, Loopback: name == "lo"}
	for _, text := range addrs {
		words := strings.Fields(text)
		has := func(w string) bool { return slices.Contains(words, w) }
		a := Address{
			Prefix: netip.MustParsePrefix(words[0]), Permanent: !has("dynamic"), Deprecated: has("deprecated"),
			Temporary: has("temporary"), Tentative: has("tentative"), Duplicate: has("duplicate"),
		}
		if has("host") {
			a.Scope = unix.RT_SCOPE_HOST
		}
		l.Addrs = append(l.Addrs, a)
	}
	return l
}

func with(l Link, change func(*Link)) Link { change(&l); return l }

// via adds default routes through the named devices.
func (h Host) via(f family.Family, names ...string) Host {
	for _, n := range names {
		l, _ := h.linkNamed(n)
		*h.Defaults.Ref(f) = append(h.Defaults.Of(f), l.Index)
	}
	return h
}

func (h Host) reaching(to, device, src string) Host {
	l, _ := h.linkNamed(device)
	h.Reach[netip.MustParseAddr(to)] = Reachability{Index: l.Index, Src: ip(src)}
	return h
}

// ip parses an address; "" is none.
func ip(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func ips(v4, v6 string) family.Pair[netip.Addr] {
	return family.Pair[netip.Addr]{V4: ip(v4), V6: ip(v6)}
}

func regexps(exprs ...string) []*regexp.Regexp {
	var out []*regexp.Regexp
	for _, e := range exprs {
		out = append(out, regexp.MustCompile(e))
	}
	return out
}

// using is the part of an Uplink that stickiness looks at.
func using(name, v4, v6 string) Uplink { return Uplink{Name: name, Addr: ips(v4, v6)} }

var (
	v4only = family.Pair[bool]{V4: true}
	v6only = family.Pair[bool]{V6: true}
	dual   = family.Pair[bool]{V4: true, V6: true}
	lo     = dev("lo", "127.0.0.1/8 host", "::1/128 host")
)

// A selectCase wants "device v4 v6", with - for no address, or an error containing all of wantErr.
type selectCase struct {
	name    string
	host    Host
	opts    Options
	on      family.Pair[bool]
	current Uplink
	want    string
	public  string // as the addresses in want; empty: the same
	wantErr []string
	missing string // the family of a FamilyError
}

func runSelect(t *testing.T, cases []selectCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			u, d, err := Select(c.host, c.opts, c.on, c.current)
			if len(c.wantErr) > 0 || c.missing != "" {
				checkError(t, c, err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			addrs := text(u.Addr)
			if diff := cmp.Diff(c.want, u.Name+" "+addrs); diff != "" {
				t.Errorf("uplink (-want +got)\n%s\n%+v", diff, d)
			}
			public := c.public
			if public == "" {
				public = addrs
			}
			if diff := cmp.Diff(public, text(u.Public)); diff != "" {
				t.Errorf("public (-want +got)\n%s", diff)
			}
			if d.Chosen != u || d.Rule == "" || d.Reason == "" {
				t.Errorf("decision is incomplete: %+v", d)
			}
			again, _, err := Select(c.host, c.opts, c.on, u)
			if err != nil || again != u {
				t.Errorf("selecting again moves from %+v to %+v, %v", u, again, err)
			}
		})
	}
}

func checkError(t *testing.T, c selectCase, err error) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range c.wantErr {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error lacks %q: %v", part, err)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error of several lines: %q", err)
	}
	got := ""
	if fe, ok := errors.AsType[*FamilyError](err); ok {
		got = fe.Family.String()
	}
	if got != c.missing {
		t.Errorf("missing family %q, want %q: %v", got, c.missing, err)
	}
}

func text(p family.Pair[netip.Addr]) string {
	word := func(a netip.Addr) string {
		if !a.IsValid() {
			return "-"
		}
		return a.String()
	}
	return word(p.V4) + " " + word(p.V6)
}

// vagrant is a host with the same NAT address as all its peers behind the default route.
func vagrant() Host {
	return hostOf(lo, dev("eth0", "10.0.2.15/24 dynamic"), dev("eth1", "192.168.50.11/24")).via(family.V4, "eth0")
}

func twoNICs() Host {
	return hostOf(lo,
		dev("eth0", "10.0.0.5/24", "fd00:a::5/64", "fe80::1/64"),
		dev("eth1", "192.168.1.5/24", "fd00:b::5/64", "fe80::2/64")).
		via(family.V4, "eth0", "eth1").via(family.V6, "eth0")
}
