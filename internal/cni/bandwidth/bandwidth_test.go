package bandwidth

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	c, err := Parse([]byte(`{"name":"n","ingressRate":1,"runtimeConfig":{"bandwidth":{"ingressRate":8000,"ingressBurst":800,"egressRate":16000,"egressBurst":1600}}}`))
	if err != nil || c.Ingress != (Limit{8000, 800}) || c.Egress != (Limit{16000, 1600}) {
		t.Errorf("%+v, %v", c, err)
	}
	for stdin, want := range map[string]string{
		`{"ingressRate":1000}`:                       "ingressRate and ingressBurst",
		`{"egressBurst":1000}`:                       "egressRate and egressBurst",
		`{"egressRate":7,"egressBurst":1000}`:        "less than a byte",
		`{"egressRate":9,"egressBurst":1e11}`:        "",
		`{"egressRate":9,"egressBurst":99999999999}`: "more than the kernel counts",
		`{"unshapedSubnets":["10.0.0.0/8"]}`:         "not supported",
		`{"ingressRate":-1,"ingressBurst":1}`:        "",
	} {
		if _, err := Parse([]byte(stdin)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", stdin, err)
		}
	}
}

func TestDeviceName(t *testing.T) {
	a, b := DeviceName("cbr0", "a", "eth0"), DeviceName("cbr0", "a", "net1")
	if len(a) != 15 || len(b) != 15 || a == b {
		t.Errorf("%s, %s", a, b)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"runtimeConfig":{"bandwidth":{"ingressRate":8000,"ingressBurst":800}}}`))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		c, err := Parse(stdin)
		if err != nil {
			return
		}
		for _, l := range []Limit{c.Ingress, c.Egress} {
			if q := l; q != (Limit{}) && l.qdisc(1).Rate == 0 {
				t.Fatalf("%+v", l)
			}
		}
	})
}
