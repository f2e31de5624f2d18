package etcd_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/etcd"
)

func addrs(v4, v6 string) family.Pair[netip.Addr] {
	var p family.Pair[netip.Addr]
	if v4 != "" {
		p.V4 = netip.MustParseAddr(v4)
	}
	if v6 != "" {
		p.V6 = netip.MustParseAddr(v6)
	}
	return p
}

func receive(backend, v4, v6 string) []lease.Receiver {
	return []lease.Receiver{{Type: backend, Data: family.Pair[string]{V4: v4, V6: v6}}}
}

// What the original writes, byte for byte.
var golden = []struct {
	name  string
	lease lease.Lease
	value string
}{
	{"vxlan",
		lease.Lease{Public: addrs("10.77.0.1", ""), Receive: receive("vxlan", `{"VNI":1,"VtepMAC":"3e:a5:f7:4d:ec:f1"}`, "")},
		`{"PublicIP":"10.77.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"3e:a5:f7:4d:ec:f1"}}`},
	{"vxlan, dual stack",
		lease.Lease{Public: addrs("10.77.0.2", "fd77::2"), Receive: receive("vxlan", `{"VNI":1,"VtepMAC":"42:3a:69:01:ec:d7"}`, `{"VNI":1,"VtepMAC":"a6:6a:73:72:58:a5"}`)},
		`{"PublicIP":"10.77.0.2","PublicIPv6":"fd77::2","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"42:3a:69:01:ec:d7"},"BackendV6Data":{"VNI":1,"VtepMAC":"a6:6a:73:72:58:a5"}}`},
	{"host-gw",
		lease.Lease{Public: addrs("10.77.0.2", ""), Receive: receive("host-gw", "", "")},
		`{"PublicIP":"10.77.0.2","PublicIPv6":null,"BackendType":"host-gw"}`},
	{"udp and alloc",
		lease.Lease{Public: addrs("10.77.0.2", ""), Receive: receive("", "", "")},
		`{"PublicIP":"10.77.0.2","PublicIPv6":null}`},
	{"wireguard",
		lease.Lease{Public: addrs("10.77.0.2", ""), Receive: receive("wireguard", `{"PublicKey":"q+Yx/A==","Port":51820}`, "")},
		`{"PublicIP":"10.77.0.2","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"q+Yx/A==","Port":51820}}`},
	{"extension",
		lease.Lease{Public: addrs("10.77.0.2", ""), Receive: receive("extension", `"some text"`, "")},
		`{"PublicIP":"10.77.0.2","PublicIPv6":null,"BackendType":"extension","BackendData":"some text"}`},
	{"no public address",
		lease.Lease{Receive: receive("host-gw", "", "")},
		`{"PublicIP":"0.0.0.0","PublicIPv6":null,"BackendType":"host-gw"}`},
	{"several receivers: the first where the original looks",
		lease.Lease{Public: addrs("10.77.0.2", ""), Send: []lease.Key{"w", "vxlan/1/8472"}, Receive: []lease.Receiver{
			{Key: "vxlan/1/8472", Type: "vxlan", Data: family.Pair[string]{V4: `{"VNI":1}`}},
			{Key: "w", Type: "wireguard", Data: family.Pair[string]{V4: `{"Port":1}`, V6: `{"Port":2}`}},
		}},
		`{"PublicIP":"10.77.0.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1},"x-weft":{"receive":[{"key":"vxlan/1/8472","type":"vxlan"},{"key":"w","type":"wireguard","data":{"Port":1},"dataV6":{"Port":2}}],"send":["w","vxlan/1/8472"]}}`},
}

func TestValueIsWhatTheOriginalWrites(t *testing.T) {
	for _, c := range golden {
		t.Run(c.name, func(t *testing.T) {
			got, err := etcd.Encode(c.lease)
			if err != nil || string(got) != c.value {
				t.Errorf("got  %s, %v\nwant %s", got, err, c.value)
			}
			back, err := etcd.Decode(c.lease.Subnet, got)
			if err != nil || !back.Equal(c.lease) {
				t.Errorf("read back: %+v, %v", back, err)
			}
		})
	}
	spaced := lease.Lease{Receive: receive("vxlan", "{ \"VNI\": 1,\n \"VtepMAC\" : \"x\" }", "")}
	if got, err := etcd.Encode(spaced); err != nil || strings.ContainsAny(string(got), " \n") {
		t.Errorf("white space: got %s, %v", got, err)
	}
	if got, err := etcd.Encode(lease.Lease{Receive: receive("vxlan", "{", "")}); err == nil {
		t.Errorf("backend data that is no JSON: got %s", got)
	}
}

func TestValueIsReadAsTheOriginalReadsIt(t *testing.T) {
	for _, c := range []struct {
		name, value string
		want        lease.Lease
	}{
		{"unknown members", `{"PublicIP":"10.0.0.1","PublicIPv6":null,"Future":{"a":[1]}}`, lease.Lease{Public: addrs("10.0.0.1", ""), Receive: receive("", "", "")}},
		{"other order and case", ` { "backendtype" : "host-gw", "publicip":"10.0.0.1"}`, lease.Lease{Public: addrs("10.0.0.1", ""), Receive: receive("host-gw", "", "")}},
		{"null data", `{"PublicIP":"10.0.0.1","BackendType":"host-gw","BackendData":null,"BackendV6Data":null}`, lease.Lease{Public: addrs("10.0.0.1", ""), Receive: receive("host-gw", "", "")}},
		{"no address", `{"PublicIP":"0.0.0.0","PublicIPv6":"::"}`, lease.Lease{Receive: receive("", "", "")}},
		{"empty", `{}`, lease.Lease{Receive: receive("", "", "")}},
		{"mapped address", `{"PublicIP":"::ffff:10.0.0.1"}`, lease.Lease{Public: addrs("10.0.0.1", ""), Receive: receive("", "", "")}},
		{"hostile data is the backend's matter", `{"PublicIP":"10.0.0.1","BackendType":"vxlan","BackendData":[[]]}`, lease.Lease{Public: addrs("10.0.0.1", ""), Receive: receive("vxlan", "[[]]", "")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, err := etcd.Decode(family.Pair[netip.Prefix]{}, []byte(c.value)); err != nil || !got.Equal(c.want) {
				t.Errorf("got %+v, %v, want %+v", got, err, c.want)
			}
		})
	}
	for name, value := range map[string]string{
		"nothing":        ``,
		"too long":       `{"PublicIP":"10.0.0.1","Future":"` + strings.Repeat("x", 16<<10) + `"}`,
		"null":           `null`,
		"array":          `[]`,
		"text":           `"10.0.0.1"`,
		"cut off":        `{"PublicIP":"10.0.0.1"`,
		"trailing":       `{"PublicIP":"10.0.0.1"}x`,
		"number":         `{"PublicIP":7}`,
		"no address":     `{"PublicIP":"node1"}`,
		"IPv6 as IPv4":   `{"PublicIP":"fd00::1"}`,
		"IPv4 as IPv6":   `{"PublicIPv6":"10.0.0.1"}`,
		"mapped as IPv6": `{"PublicIPv6":"::ffff:10.0.0.1"}`,
		"zone":           `{"PublicIPv6":"fe80::1%eth0"}`,
		"multicast":      `{"PublicIP":"224.0.0.1"}`,
		"broadcast":      `{"PublicIP":"255.255.255.255"}`,
		"multicast IPv6": `{"PublicIPv6":"ff02::1"}`,
		"type":           `{"BackendType":{}}`,
		"too many":       `{"x-weft":{"send":["a"],"receive":[` + strings.Repeat(`{"key":"a"},`, 40) + `{"key":"a"}]}}`,
	} {
		if got, err := etcd.Decode(family.Pair[netip.Prefix]{}, []byte(value)); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
}

// FuzzDecode: whatever is read can be written, and reads the same again.
func FuzzDecode(f *testing.F) {
	for _, c := range golden {
		f.Add([]byte(c.value))
	}
	f.Add([]byte(`{"PublicIP":"::ffff:1.2.3.4","BackendData":null,"x-weft":{"receive":[{"key":"\u0000"}],"send":["x"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := etcd.Decode(family.Pair[netip.Prefix]{}, b)
		if err != nil {
			return
		}
		value, err := etcd.Encode(l)
		if err != nil {
			t.Fatalf("%+v: %v", l, err)
		}
		normal, err := etcd.Decode(l.Subnet, value)
		if err != nil {
			t.Fatalf("%s: %v", value, err)
		}
		again, err := etcd.Encode(normal)
		if err != nil || string(again) != string(value) {
			t.Fatalf("%s becomes %s, %v", value, again, err)
		}
	})
}
