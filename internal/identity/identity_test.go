package identity

import (
	"os"
	"path/filepath"
	"testing"
)

const machine = "3d1219c7c4c5404aaa1f6d2a48adfda4"

// root returns a directory whose etc/machine-id has the given content; "" for no file.
func root(t *testing.T, content string) string {
	t.Helper()
	dir := t.TempDir()
	if content == "" {
		return dir
	}
	if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/machine-id"), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func of(t *testing.T, s Source) string {
	t.Helper()
	id, err := Of(s)
	if err != nil {
		t.Fatal(err)
	}
	if !idForm.MatchString(id) {
		t.Fatalf("identity %q", id)
	}
	return id
}

func TestIdentities(t *testing.T) {
	withID := root(t, machine+"\n")
	other := root(t, "00000000000000000000000000000001\n")
	none := root(t, "")
	base := of(t, Source{NodeName: "n1", Hostname: "h1", Root: withID})
	for _, c := range []struct {
		name string
		s    Source
		same bool
	}{
		{"the same node again", Source{NodeName: "n1", Hostname: "h1", Root: withID}, true},
		{"a node name outranks the hostname", Source{NodeName: "n1", Hostname: "h2", Root: withID}, true},
		{"the hostname stands in for a node name", Source{Hostname: "n1", Root: withID}, true},
		{"a clone with another name", Source{NodeName: "n2", Root: withID}, false},
		{"a host of the same name", Source{NodeName: "n1", Root: other}, false},
		{"no machine ID", Source{NodeName: "n1", Root: none}, false},
		{"no name", Source{Hostname: "localhost", Root: withID}, false},
	} {
		if got := of(t, c.s); (got == base) != c.same {
			t.Errorf("%s: %s, the first is %s", c.name, got, base)
		}
	}
}

func TestAnUnfinishedMachineIDCountsAsNone(t *testing.T) {
	want := of(t, Source{NodeName: "n1", Root: root(t, "")})
	for _, content := range []string{"uninitialized\n", "\n", "abc\n", machine[:31] + "\n"} {
		if got := of(t, Source{NodeName: "n1", Root: root(t, content)}); got != want {
			t.Errorf("%q: %s, want %s", content, got, want)
		}
	}
}

func TestWithNeitherNameNorMachineIDARandomOneIsKept(t *testing.T) {
	s := Source{Hostname: "(none)", Root: root(t, ""), Dir: filepath.Join(t.TempDir(), "run")}
	first := of(t, s)
	if again := of(t, s); again != first {
		t.Errorf("second start: %s, first %s", again, first)
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "node-id"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if damaged := of(t, s); damaged == first || damaged != of(t, s) {
		t.Errorf("a damaged file must be replaced once: %s", damaged)
	}
	s.Dir = filepath.Join(s.Dir, "node-id", "below-a-file")
	if _, err := Of(s); err == nil {
		t.Error("no error although the identity cannot be kept")
	}
}

func TestMAC(t *testing.T) {
	seen := map[[6]byte]string{}
	for _, id := range []string{"a", "b"} {
		for _, device := range []string{"flannel.1", "flannel-v6.1", "flannel.2"} {
			mac := MAC(id, device)
			if mac != MAC(id, device) {
				t.Errorf("%s %s: not stable", id, device)
			}
			if mac[0]&3 != 2 {
				t.Errorf("%s %s: %x is not a local unicast address", id, device, mac)
			}
			if before, ok := seen[mac]; ok {
				t.Errorf("%s %s has the MAC of %s", id, device, before)
			}
			seen[mac] = id + " " + device
		}
	}
}
