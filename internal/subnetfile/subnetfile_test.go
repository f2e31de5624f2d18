package subnetfile

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/ranges"
)

func pfx(s string) netip.Prefix {
	if s == "" {
		return netip.Prefix{}
	}
	return netip.MustParsePrefix(s)
}

func pair(v4, v6 string) family.Pair[netip.Prefix] {
	return family.Pair[netip.Prefix]{V4: pfx(v4), V6: pfx(v6)}
}

// networks is a pair of comma-separated lists.
func networks(v4, v6 string) family.Pair[ranges.List] {
	list := func(text string) ranges.List {
		var ps []netip.Prefix
		for s := range strings.SplitSeq(text, ",") {
			ps = append(ps, pfx(s))
		}
		return ranges.Of(ps...)
	}
	return family.Pair[ranges.List]{V4: list(v4), V6: list(v6)}
}

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestRender(t *testing.T) {
	for _, tc := range []struct {
		name string
		file File
		want string
	}{
		{"dual stack", File{networks("10.244.0.0/16", "fd24::/48"), pair("10.244.0.0/24", "fd24::/64"), 1450, true},
			"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.0.1/24\n" +
				"FLANNEL_IPV6_NETWORK=fd24::/48\nFLANNEL_IPV6_SUBNET=fd24::1/64\n" +
				"FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"},
		{"several networks", File{networks("10.244.0.0/16,10.248.0.0/16", "fd24::/48,fd42::/48"), pair("10.248.7.0/24", "fd24::/64"), 1430, true},
			"FLANNEL_NETWORK=10.244.0.0/16,10.248.0.0/16\nFLANNEL_SUBNET=10.248.7.1/24\n" +
				"FLANNEL_IPV6_NETWORK=fd24::/48,fd42::/48\nFLANNEL_IPV6_SUBNET=fd24::1/64\n" +
				"FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"},
		{"IPv4 only", File{networks("10.5.0.0/16", ""), pair("10.5.72.0/24", ""), 1500, false},
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"},
		{"IPv6 only", File{networks("", "fd42::/112"), pair("", "fd42::4000/114"), 1430, true},
			"FLANNEL_IPV6_NETWORK=fd42::/112\nFLANNEL_IPV6_SUBNET=fd42::4001/114\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"},
		{"prefixes with host bits", File{networks("10.5.1.1/16", ""), pair("10.5.72.9/24", ""), 1500, false},
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, string(tc.file.Render())); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     File
		wantErr  string // of ParseLists
	}{
		{"what Render writes",
			"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.0.1/24\nFLANNEL_IPV6_NETWORK=fd24::/48\n" +
				"FLANNEL_IPV6_SUBNET=fd24::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
			File{networks("10.244.0.0/16", "fd24::/48"), pair("10.244.0.0/24", "fd24::/64"), 1450, true}, ""},
		{"an empty file", "", File{}, ""},
		{"several networks", "FLANNEL_NETWORK=10.2.0.0/16,10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\n",
			File{Network: networks("10.2.0.0/16,10.1.0.0/16", ""), Subnet: pair("10.1.2.0/24", "")}, ""},
		{"several subnets count as none for the agent", "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24,10.1.3.1/24\n",
			File{Network: networks("10.1.0.0/16", "")}, ""},
		{"one network written twice is one network", "FLANNEL_NETWORK=10.1.0.0/16,10.1.9.9/16\n", File{Network: networks("10.1.0.0/16", "")}, ""},
		{"what does not parse counts as none", "FLANNEL_NETWORK=10.1.0.0/33\nFLANNEL_SUBNET=10.1.2.1\nFLANNEL_MTU=-1\nFLANNEL_IPMASQ=yes\n",
			File{}, "FLANNEL_NETWORK: \"10.1.0.0/33\" is not an IPv4 prefix\nFLANNEL_SUBNET: \"10.1.2.1\" is not an IPv4 prefix\nFLANNEL_MTU: \"-1\" is not a number"},
		{"an MTU beyond any number is not a number", "FLANNEL_MTU=99999999999999999999\n", File{}, "FLANNEL_MTU: \"99999999999999999999\" is not a number"},
		{"a family in the other one's key", "FLANNEL_SUBNET=fd24::1/64\nFLANNEL_IPV6_SUBNET=10.1.2.1/24\n", File{},
			"FLANNEL_SUBNET: \"fd24::1/64\" is not an IPv4 prefix\nFLANNEL_IPV6_SUBNET: \"10.1.2.1/24\" is not an IPv6 prefix"},
		{"an IPv4 prefix dressed as IPv6", "FLANNEL_IPV6_SUBNET=::ffff:10.1.2.1/120\n", File{},
			"FLANNEL_IPV6_SUBNET: \"::ffff:10.1.2.1/120\" is not an IPv6 prefix"},
		{"a list that ends in a comma", "FLANNEL_NETWORK=10.1.0.0/16,\n", File{}, "FLANNEL_NETWORK: \"\" is not an IPv4 prefix"},
		{"what people add by hand", "# mine\r\nexport FLANNEL_MTU=\"1400\"\r\nFLANNEL_IPMASQ='true'\r\n OTHER=1\n#FLANNEL_MTU=1\nnonsense\n",
			File{MTU: 1400, IPMasq: true}, ""},
		{"the last of several equal keys counts", "FLANNEL_MTU=1400\nFLANNEL_MTU=1300", File{MTU: 1300}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, Parse([]byte(tc.in)), comparePrefixes); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			_, err := ParseLists([]byte(tc.in))
			if got := errorText(err); got != tc.wantErr {
				t.Errorf("ParseLists: got %q, want %q", got, tc.wantErr)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestListsKeepEveryNetworkInOrderOnce(t *testing.T) {
	got, err := ParseLists([]byte("FLANNEL_NETWORK=10.2.0.0/16, 10.1.0.0/16,10.2.0.0/16\nFLANNEL_IPMASQ=false\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := Lists{HasIPMasq: true}
	want.Network.V4 = []netip.Prefix{pfx("10.2.0.0/16"), pfx("10.1.0.0/16")}
	if diff := cmp.Diff(want, got, comparePrefixes); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "flannel", "subnet.env")
	f := File{networks("10.5.0.0/16", ""), pair("10.5.72.0/24", ""), 1450, true}
	write := func(f File, want bool) fs.FileInfo {
		t.Helper()
		if changed, err := Write(path, f); err != nil || changed != want {
			t.Fatalf("changed %t, error %v; want %t", changed, err, want)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	first := write(f, true)
	if first.Mode().Perm() != 0o644 {
		t.Errorf("mode %v", first.Mode())
	}
	if same := write(f, false); !os.SameFile(first, same) {
		t.Error("equal content made a new file")
	}
	f.MTU = 1400
	if renamed := write(f, true); os.SameFile(first, renamed) {
		t.Error("the file was written in place")
	}
	got, err := Read(path)
	if err != nil || got != f {
		t.Errorf("read back %+v, %v", got, err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestReadOfAMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	if f, err := Read(path); err != nil || f != (File{}) {
		t.Errorf("the agent reads %+v, %v; want nothing", f, err)
	}
	if _, err := ReadLists(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the plugin gets %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"))
	f.Add([]byte("FLANNEL_IPV6_NETWORK=fd24::/48\nFLANNEL_IPV6_SUBNET=\"fd24::1/64\"\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		file := Parse(raw)
		for _, fam := range family.All() { // Render leaves out half a family
			if file.Network.Of(fam).Empty() || !file.Subnet.Of(fam).IsValid() {
				*file.Network.Ref(fam), *file.Subnet.Ref(fam) = ranges.List{}, netip.Prefix{}
			}
		}
		if again := Parse(file.Render()); again != file {
			t.Errorf("%+v became %+v", file, again)
		}
	})
}
