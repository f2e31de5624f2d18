package hostlocal

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/weftnet/weft/internal/cni/conf"
)

var addr = netip.MustParseAddr

func ranges(texts ...[3]string) []conf.Range {
	var set []conf.Range
	for _, t := range texts {
		set = append(set, conf.Range{
			Subnet: netip.MustParsePrefix(t[0]), First: addr(t[1]), Last: addr(t[2]), Gateway: netip.MustParsePrefix(t[0]).Addr().Next(),
		})
	}
	return set
}

func TestNext(t *testing.T) {
	one := ranges([3]string{"10.0.0.0/24", "10.0.0.1", "10.0.0.4"})
	two := ranges([3]string{"10.0.0.0/24", "10.0.0.2", "10.0.0.3"}, [3]string{"10.0.1.0/24", "10.0.1.9", "10.0.1.9"})
	for _, c := range []struct {
		name  string
		set   []conf.Range
		last  string
		taken []string
		want  string // "" for none
	}{
		{"empty directory: the gateway is skipped", one, "", nil, "10.0.0.2"},
		{"after the last", one, "10.0.0.2", nil, "10.0.0.3"},
		{"round the end", one, "10.0.0.4", nil, "10.0.0.2"},
		{"over taken ones", one, "10.0.0.2", []string{"10.0.0.3", "10.0.0.4"}, "10.0.0.2"},
		{"last is outside: from the beginning", one, "192.0.2.1", nil, "10.0.0.2"},
		{"full", one, "10.0.0.3", []string{"10.0.0.2", "10.0.0.3", "10.0.0.4"}, ""},
		{"into the next range", two, "10.0.0.3", nil, "10.0.1.9"},
		{"from the last range to the first", two, "10.0.1.9", nil, "10.0.0.2"},
		{"before last in its own range", two, "10.0.0.3", []string{"10.0.1.9"}, "10.0.0.2"},
	} {
		var last netip.Addr
		if c.last != "" {
			last = addr(c.last)
		}
		_, got, ok := Next(c.set, last, func(a netip.Addr) bool { return slices.Contains(c.taken, a.String()) })
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("%s: %s, %v", c.name, got, ok)
		}
	}
}

func open2(t testing.TB, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestAllocate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "net")
	d := open2(t, path)
	c := conf.HostLocal{Sets: [][]conf.Range{
		ranges([3]string{"10.0.0.0/24", "10.0.0.1", "10.0.0.3"}), ranges([3]string{"fd00::/64", "fd00::1", "fd00::9"}),
	}}
	a := Owner{"a", "eth0"}
	given, hold, err := d.Allocate(c, a)
	if err != nil || fmt.Sprint(given) != "[{10.0.0.2/24 10.0.0.1} {fd00::2/64 fd00::1}]" {
		t.Fatalf("%v, %v", given, err)
	}
	if !d.InFlight(addr("10.0.0.2")) {
		t.Error("the ADD that runs does not show")
	}
	if _, _, err := d.Allocate(c, a); err == nil {
		t.Error("a second ADD of the same interface at the same time gets the same address")
	}
	hold.Close()
	if d.InFlight(addr("10.0.0.2")) {
		t.Error("the ADD is over and still shows")
	}
	again, hold, err := d.Allocate(c, a)
	if err != nil || fmt.Sprint(again) != fmt.Sprint(given) {
		t.Errorf("the same attachment again: %v, %v", again, err)
	}
	hold.Close()
	if _, hold, err = d.Allocate(c, Owner{"b", "eth0"}); err != nil {
		t.Fatal(err)
	}
	hold.Close()
	if _, _, err = d.Allocate(c, Owner{"c", "eth0"}); !errors.Is(err, ErrFull) {
		t.Errorf("full: %v", err)
	}
	if held, err := d.Held(Owner{"c", "eth0"}); err != nil || len(held) > 0 {
		t.Errorf("full, yet %s is held: %v", held, err)
	}
	if freed, err := d.FreeAll(a); err != nil || len(freed) != 2 {
		t.Errorf("freed %s: %v", freed, err)
	}
	if freed, err := d.FreeAll(a); err != nil || len(freed) != 0 {
		t.Errorf("freed %s again: %v", freed, err)
	}
}

func TestFilesystemWithoutUnnamedFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "10.0.0.9")
	f, err := publishTorn(path, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := publishTorn(path, []byte("y")); !errors.Is(err, os.ErrExist) {
		t.Errorf("taken: %v", err)
	}
}

// Whatever files lie in the directory: no panic, nobody else's entry is freed or given.
func FuzzEntries(f *testing.F) {
	f.Add("10.0.0.2", []byte("a\r\neth0"), []byte("10.0.0.2"))
	f.Add("10.0.0.3", []byte(""), []byte(""))
	f.Add("10.0.0.4", []byte("other\neth0\r\n\r\n"), []byte("fd00::1"))
	f.Add("fd00::5", []byte("\r\n\r\n"), []byte("\x00"))
	f.Fuzz(func(t *testing.T, name string, content, last []byte) {
		path := t.TempDir()
		if filepath.Base(name) != name || name == "lock" || os.WriteFile(filepath.Join(path, name), content, 0o600) != nil {
			return
		}
		if os.WriteFile(filepath.Join(path, "last_reserved_ip.0"), last, 0o600) != nil {
			return
		}
		d := open2(t, path)
		before, err := d.Entries()
		if err != nil {
			t.Fatal(err)
		}
		me := Owner{"me", "eth0"}
		given, hold, err := d.Allocate(conf.HostLocal{Sets: [][]conf.Range{ranges([3]string{"10.0.0.0/24", "10.0.0.1", "10.0.0.6"})}}, me)
		if err != nil {
			return
		}
		defer hold.Close()
		a := given[0].Addr.Addr()
		if o, held := before[a]; held && o.ContainerID != "" && o != me {
			t.Fatalf("%s of %v was given away", a, o)
		}
		if _, err := d.FreeAll(me); err != nil {
			t.Fatal(err)
		}
		after, err := d.Entries()
		if err != nil {
			t.Fatal(err)
		}
		for a, o := range before {
			if o.ContainerID != "" && !o.is(me) && after[a] != o {
				t.Fatalf("entry %s of %v is now %v", a, o, after[a])
			}
		}
	})
}
