package frame

import (
	"encoding/hex"
	"strings"
	"testing"
)

func frameHex(t *testing.T, parts ...string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(strings.Join(parts, ""), " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// An echo from 10.244.1.2 to 10.244.2.3, and the outer headers of a tunnel from 172.31.0.10 to 172.31.1.12.
const (
	macs      = "020000000002 020000000001"
	bareIPv4  = macs + "0800" + "45000054 00004000 3f01 0000 0af40102 0af40203" + "0800 0000 0001 0001"
	bareIPv6  = macs + "86dd" + "60000000 0010 3a 40 fd240000000000010000000000000002 fd240000000000020000000000000003" + "8100 0000 0001 0001"
	vxlanIPv4 = macs + "0800" + "45000072 00000000 4011 0000 ac1f000a ac1f010c" + "c350 2118 005e 0000" + "08000000 00000100"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name, frame, want string
	}{
		{"bare IPv4", bareIPv4, "10.244.1.2 > 10.244.2.3: ICMP echo request"},
		{"bare IPv6", bareIPv6, "fd24:0:0:1::2 > fd24:0:0:2::3: ICMP echo reply"},
		{"VXLAN", vxlanIPv4 + bareIPv4,
			"172.31.0.10 > 172.31.1.12: UDP port 8472, VXLAN, vni 1: [ 10.244.1.2 > 10.244.2.3: ICMP echo request ]"},
		{"VXLAN with IPv6 inside", vxlanIPv4 + bareIPv6,
			"172.31.0.10 > 172.31.1.12: UDP port 8472, VXLAN, vni 1: [ fd24:0:0:1::2 > fd24:0:0:2::3: ICMP echo reply ]"},
		{"VXLAN cut off", vxlanIPv4, "172.31.0.10 > 172.31.1.12: UDP port 8472"},
		{"later fragment", macs + "0800" + "45000054 00000001 3f11 0000 0af40102 0af40203" + "c350 2118 0000 0000",
			"10.244.1.2 > 10.244.2.3: UDP port 0"},
		{"ARP", macs + "0806" + "0001", ""},
		{"empty", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, ok := Parse(frameHex(t, c.frame), 8472)
			if ok != (c.want != "") {
				t.Fatalf("understood: %v", ok)
			}
			if ok && p.String() != c.want {
				t.Errorf("got  %s\nwant %s", p, c.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{bareIPv4, bareIPv6, vxlanIPv4 + bareIPv4} {
		b, _ := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := Parse(b, 8472)
		if ok && (!p.Src.IsValid() || !p.Dst.IsValid() || p.String() == "") {
			t.Errorf("accepted, but without addresses: %+v", p)
		}
		if p.VXLAN != nil && p.VXLAN.Inner.VXLAN != nil {
			t.Error("a tunnel inside a tunnel")
		}
	})
}
