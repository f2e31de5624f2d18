package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
)

func sample(peers int) Snapshot {
	s := Snapshot{
		SavedAt:  time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Identity: "machine-1",
		Config:   json.RawMessage(`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}`),
		Self:     node(0),
		Sysctls:  map[string]string{"net/ipv4/conf/all/rp_filter": "1"},
		Settings: json.RawMessage(`{"Plan":{}}`),
		Peers:    []lease.Lease{},
	}
	for i := 1; i <= peers; i++ {
		s.Peers = append(s.Peers, node(i))
	}
	return s
}

func node(i int) lease.Lease {
	return lease.Lease{
		Node: fmt.Sprintf("node-%d", i),
		Subnet: family.Pair[netip.Prefix]{
			V4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24),
			V6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x24, 6: byte(i >> 8), 7: byte(i)}), 64),
		},
		Public: family.Pair[netip.Addr]{V4: netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})},
		Receive: []lease.Receiver{
			{Type: "vxlan", Data: family.Pair[string]{V4: `{"VNI":1,"VtepMAC":"3e:a5:f7:4d:ec:f1"}`}},
			{},
		},
	}
}

var compareAddresses = []cmp.Option{
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "var", "snapshot.json")
	want := sample(3)
	if changed, err := Write(path, want); err != nil || !changed {
		t.Fatalf("changed %t, error %v", changed, err)
	}
	got, err := Read(path, want.Identity)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compareAddresses...); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", info.Mode(), err)
	}
}

func TestWriteOnlyWhenMoreThanTheTimeDiffers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot.json")
	s := sample(2)
	step := func(name string, want bool) {
		t.Helper()
		if changed, err := Write(path, s); err != nil || changed != want {
			t.Errorf("%s: changed %t, error %v; want %t", name, changed, err, want)
		}
	}
	step("first", true)
	s.SavedAt = s.SavedAt.Add(time.Hour)
	step("later", false)
	s.Peers[1].Public.V4 = netip.MustParseAddr("192.168.7.7")
	step("peer moved", true)
	s.Identity = "machine-2"
	step("other identity", true)
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	step("over a torn file", true)
}

func TestWriteRefusesWhatCouldNotBeRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot.json")
	s := sample(1)
	s.Peers = append(s.Peers, s.Peers[0])
	if _, err := Write(path, s); err == nil {
		t.Error("wrote one peer twice")
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left a file: %v", err)
	}
}

func TestReadIsAllOrNothing(t *testing.T) {
	whole, err := encode(sample(2))
	if err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) string {
		t.Helper()
		if !strings.Contains(string(whole), old) {
			t.Fatalf("%s is not in the sample", old)
		}
		return strings.Replace(string(whole), old, new, 1)
	}
	for _, tc := range []struct {
		name, content, want string
		peers               bool // it is the peers that are wrong
	}{
		{"an empty file", "", "EOF", false},
		{"a torn file", string(whole[:len(whole)/2]), "unexpected EOF", false},
		{"a file whose tail is zeroes", string(whole[:len(whole)-20]) + strings.Repeat("\x00", 20), "invalid character", false},
		{"two snapshots in one file", string(whole) + string(whole), "text after the snapshot", false},
		{"a newer version with members of its own", replace(`{"version":1,`, `{"version":2,"epoch":7,`), "version 2 is newer than 1", false},
		{"an unknown member", replace(`"node":`, `"knot":`), "unknown field", false},
		{"no version", replace(`"version":1,`, ``), "version 0", false},
		{"no time", replace(`"savedAt":"2026-01-02T03:04:05Z",`, ``), "savedAt is missing", false},
		{"another node's", replace(`"machine-1"`, `"machine-9"`), "belongs to another node", false},
		{"a configuration that is null", replace(`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}`, `null`), "config is not a JSON object", false},
		{"a configuration that is a text", replace(`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}`, `"x"`), "config is not a JSON object", false},
		{"a subnet that is none", replace(`10.0.1.0/24`, `10.0.1/24`), "netip.ParsePrefix", true},
		{"a subnet with host bits", replace(`10.0.1.0/24`, `10.0.1.1/24`), "peer 0: subnet 10.0.1.1/24 has host bits", true},
		{"a subnet of the other family", replace(`"subnet":"10.0.1.0/24"`, `"subnet":"fd00::/64"`), "peer 0: subnet fd00::/64", true},
		{"an address of the other family", replace(`"public":"192.168.0.1"`, `"public":"fd00::1"`), "is not IPv4", true},
		{"an IPv4 address dressed as IPv6", replace(`"public":"192.168.0.1"`, `"public6":"::ffff:1.2.3.4"`), "is not IPv6", true},
		{"one peer twice", replace(`"subnet":"10.0.2.0/24","subnet6":"fd24:0:0:2::/64"`, `"subnet":"10.0.1.0/24","subnet6":"fd24:0:0:1::/64"`), "is there twice", true},
		{"a sysctl outside of the network's", replace(`net/ipv4/conf/all/rp_filter`, `kernel/core_pattern`), "is not one of the network's", false},
		{"a sysctl outside of /proc/sys", replace(`net/ipv4/conf`, `net/../../../etc`), "is not one of the network's", false},
		{"self without a subnet", replace(`"subnet":"10.0.0.0/24","subnet6":"fd24::/64",`, ``), "self: no subnet", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "snapshot.json")
			if err := os.WriteFile(path, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := Read(path, "machine-1")
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
			if diff := cmp.Diff(Snapshot{}, got, compareAddresses...); diff != "" {
				t.Errorf("something came through:\n%s", diff)
			}
			self, err := ReadSelf(path, "machine-1")
			if none := self.Identity == "" && self.Settings == nil; (err != nil) != none || none == tc.peers {
				t.Errorf("without the peers: %+v, %v", self, err)
			}
		})
	}
}

func TestSelfIsReadWithoutThePeers(t *testing.T) {
	path, want := filepath.Join(t.TempDir(), "snapshot.json"), sample(3)
	if _, err := Write(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSelf(path, want.Identity)
	want.Peers = []lease.Lease{}
	if diff := cmp.Diff(want, got, compareAddresses...); err != nil || diff != "" {
		t.Errorf("%v, read (-want +got):\n%s", err, diff)
	}
}

func TestErrorsThatCallersTellApart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot.json")
	if _, err := Read(path, "machine-1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := Write(path, sample(1)); err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func(path, identity string) (Snapshot, error){"Read": Read, "ReadSelf": ReadSelf} {
		if _, err := read(path, "machine-2"); !errors.Is(err, ErrForeign) {
			t.Errorf("%s, other identity: %v", name, err)
		}
	}
}

func TestPath(t *testing.T) {
	for in, want := range map[string]string{
		"/run/flannel/subnet.env":     "/var/lib/flannel/run-flannel-subnet.env.snapshot.json",
		"/run/flannel//b/../blue.env": "/var/lib/flannel/run-flannel-blue.env.snapshot.json",
		"subnet.env":                  "/var/lib/flannel/subnet.env.snapshot.json",
	} {
		if got := Path(in); got != want {
			t.Errorf("Path(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	whole, err := encode(sample(2))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := decode(raw)
		if err != nil {
			return
		}
		if _, err := encode(s); err != nil {
			t.Errorf("read but cannot be written: %v", err)
		}
	})
}

func BenchmarkWriteUnchanged(b *testing.B) {
	path, s := filepath.Join(b.TempDir(), "snapshot.json"), sample(5000)
	for b.Loop() {
		if _, err := Write(path, s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead(b *testing.B) { benchmarkRead(b, Read) }

func BenchmarkReadSelf(b *testing.B) { benchmarkRead(b, ReadSelf) }

func benchmarkRead(b *testing.B, read func(path, identity string) (Snapshot, error)) {
	path, s := filepath.Join(b.TempDir(), "snapshot.json"), sample(5000)
	if _, err := Write(path, s); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := read(path, s.Identity); err != nil {
			b.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(info.Size()), "bytes/file")
}
