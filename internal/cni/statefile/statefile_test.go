package statefile

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/utils"
)

// save is Save, and waits.
func (d Dir) save(k Key, content string) error {
	wait, err := d.Save(k, []byte(content))
	if err != nil {
		return err
	}
	return wait()
}

func TestTwoInterfaces(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "flannel"))
	eth0, net1 := Key{"a", "eth0"}, Key{"a", "net1"}
	for _, k := range []Key{eth0, net1} {
		if err := d.save(k, k.IfName); err != nil {
			t.Fatal(err)
		}
	}
	want := func(path, content string) {
		t.Helper()
		if raw, err := os.ReadFile(filepath.Join(string(d), path)); string(raw) != content {
			t.Errorf("%s: %q, %v, not %q", path, raw, err, content)
		}
	}
	want("a", "eth0")
	want("a:eth0", "eth0")
	want("a:net1", "net1")
	if err := d.save(eth0, "new"); err != nil {
		t.Fatal(err)
	}
	want("a", "new")
	if err := d.Remove(eth0); err != nil {
		t.Fatal(err)
	}
	want("a", "net1")
	if raw, err := d.Load(eth0); raw != nil || err != nil {
		t.Errorf("eth0 is gone, yet %q, %v", raw, err)
	}
	if err := d.Remove(net1); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(string(d)); len(entries) > 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestOriginalsFile(t *testing.T) {
	d := Dir(t.TempDir())
	if err := os.WriteFile(filepath.Join(string(d), "a"), []byte("original"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.save(Key{"a", "net1"}, "ours"); err != nil {
		t.Fatal(err)
	}
	if raw, err := d.Load(Key{"a", "eth0"}); string(raw) != "original" || err != nil {
		t.Errorf("what the original added: %q, %v", raw, err)
	}
	if err := d.Remove(Key{"a", "net1"}); err != nil {
		t.Fatal(err)
	}
	if raw, err := d.Load(Key{"a", "eth0"}); string(raw) != "original" || err != nil {
		t.Errorf("what the original added, after DEL of ours: %q, %v", raw, err)
	}
	keys, err := d.Keys()
	if err != nil || len(keys) != 1 || keys[0] != (Key{"a", ""}) {
		t.Errorf("keys %v, %v", keys, err)
	}
	if err := d.Remove(Key{"a", "eth0"}); err != nil {
		t.Fatal(err)
	}
	if raw, err := d.Load(Key{"a", "eth0"}); raw != nil || err != nil {
		t.Errorf("after its DEL: %q, %v", raw, err)
	}
}

// Whatever container id and interface a runtime may pass: what is saved is found, listed and removed again,
// and nothing lands outside the directory.
func FuzzEnvironment(f *testing.F) {
	f.Add("a", "eth0")
	f.Add("a.b-c_d", "..x")
	f.Add("0", "new")
	f.Fuzz(func(t *testing.T, id, ifName string) {
		if utils.ValidateContainerID(id) != nil || utils.ValidateInterfaceName(ifName) != nil || len(id) > 200 {
			return
		}
		parent := t.TempDir()
		d, k := Dir(filepath.Join(parent, "flannel")), Key{id, ifName}
		if err := d.save(k, "content"); err != nil {
			return // a name that the file system does not take
		}
		if raw, err := d.Load(k); string(raw) != "content" || err != nil {
			t.Fatalf("%q, %v", raw, err)
		}
		keys, err := d.Keys()
		if err != nil || len(keys) != 1 || keys[0] != k {
			t.Fatalf("keys %v, %v", keys, err)
		}
		if err := d.Remove(k); err != nil {
			t.Fatal(err)
		}
		if entries, _ := os.ReadDir(string(d)); len(entries) > 0 {
			t.Fatalf("left behind: %v", entries)
		}
		if entries, _ := os.ReadDir(parent); len(entries) != 1 {
			t.Fatalf("outside: %v", entries)
		}
	})
}

// A Sweep finds out who has the lock on a file, and is kept from the CPU before it removes the name, which is that of the
// next ADD's file by then.
func TestSweepThatComesLate(t *testing.T) {
	d, k := Dir(t.TempDir()), Key{"c", "eth0"}
	swept := make(chan struct{})
	t.Cleanup(func() { <-swept })
	go func() {
		defer close(swept)
		for left := 100; left > 0 && t.Context().Err() == nil; {
			if os.Remove(d.temporary(k)) == nil {
				left--
			}
		}
	}()
	for done := false; !done; {
		select {
		case <-swept:
			done = true
		default:
		}
		if err := d.save(k, "{}"); err != nil {
			t.Fatal(err)
		}
		if raw, err := d.Load(k); string(raw) != "{}" || err != nil {
			t.Fatalf("%q, %v", raw, err)
		}
	}
}

// An ADD that sweeps takes nothing from those that run beside it.
func TestSweepBesideOthers(t *testing.T) {
	d := Dir(t.TempDir())
	stopped := make(chan struct{})
	t.Cleanup(func() { <-stopped })
	go func() {
		defer close(stopped)
		for t.Context().Err() == nil {
			if err := d.Sweep(); err != nil {
				t.Error(err)
			}
		}
	}()
	keys := []Key{{"c", "eth0"}, {"c", "net1"}}
	for range 1000 {
		for _, k := range keys {
			if err := d.save(k, "{}"); err != nil {
				t.Fatal(err)
			}
		}
		for _, k := range keys { // the first passes the shared name on
			if err := d.Remove(k); err != nil {
				t.Fatal(err)
			}
		}
	}
}
