package lab

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/netconf"
)

func TestOptionsReportEveryProblem(t *testing.T) {
	valid := func() Options {
		return Options{Segments: [][]string{{"A"}}, Weft: "/bin/true", Flanneld: "/bin/true", Flannel: "/bin/true"}
	}
	for _, c := range []struct {
		name   string
		change func(*Options)
		want   []string // parts of the error; none: accepted
	}{
		{"the smallest lab", func(*Options) {}, nil},
		{"no nodes", func(o *Options) { o.Segments = nil }, []string{"1 to 200 nodes"}},
		{"a name that is a path", func(o *Options) { o.Name = "../x" }, []string{`lab name "../x"`}},
		{"a node name too long for a device", func(o *Options) { o.Segments = [][]string{{"sixteen-letters-"}} }, []string{"node name"}},
		{"a node called router", func(o *Options) { o.Segments = [][]string{{"router"}} }, []string{"taken by the lab"}},
		{"one name twice", func(o *Options) { o.Segments = [][]string{{"A"}, {"A"}} }, []string{"occurs twice"}},
		{"several problems", func(o *Options) { o.Family, o.MTU, o.Config = "ipx", 70, "{" }, []string{"family", "mtu", "config"}},
		{"an agent for nobody", func(o *Options) { o.FlanneldOn = map[string]string{"X": "/bin/true"} }, []string{`no node is called "X"`}},
		{"a binary that is missing", func(o *Options) { o.Flannel = "/no/such/file" }, []string{"/no/such/file"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := valid()
			c.change(&o)
			_, err := o.withDefaults()
			if err == nil && len(c.want) > 0 || err != nil && len(c.want) == 0 {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
		})
	}
}

func TestPortsAreUnique(t *testing.T) {
	o := Options{Segments: [][]string{{"A", "B"}, {"C"}}, Family: Dual}
	ports := o.ports()
	for name, want := range map[string][2]string{
		"A":    {"172.31.0.10/24", "fd31::a/64"},
		"B":    {"172.31.0.11/24", "fd31::b/64"},
		"C":    {"172.31.1.12/24", "fd31:0:0:1::c/64"},
		"etcd": {"172.31.255.2/24", "fd31:0:0:ff::2/64"},
	} {
		p := ports[name]
		if p.Addr.V4 != netip.MustParsePrefix(want[0]) || p.Addr.V6 != netip.MustParsePrefix(want[1]) {
			t.Errorf("%s has %s and %s, want %s", name, p.Addr.V4, p.Addr.V6, want)
		}
		if !p.Addr.V4.Contains(p.Gateway.V4) || !p.Addr.V6.Contains(p.Gateway.V6) {
			t.Errorf("%s: gateways %s and %s are on another segment", name, p.Gateway.V4, p.Gateway.V6)
		}
	}
}

func TestDefaultConfigIsValid(t *testing.T) {
	for _, fam := range []string{IPv4, IPv6, Dual} {
		if !json.Valid([]byte(DefaultConfig(fam))) {
			t.Fatalf("%s: not JSON", fam)
		}
		if _, _, err := netconf.Parse([]byte(DefaultConfig(fam)), netconf.Etcd); err != nil {
			t.Errorf("%s: %v", fam, err)
		}
	}
}
