package netconf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const reference = "../../deploy/reference"

// TestReferenceConfigurations takes every file in the reference directory: one that is not listed here
// fails.
func TestReferenceConfigurations(t *testing.T) {
	both := []Store{Etcd, Kubernetes}
	stores := map[string][]Store{
		"net-conf.json": {Etcd}, "large.json": {Etcd}, "ipv6-only.json": {Kubernetes},
		"vxlan.json": both, "vxlan-direct-routing.json": both, "vxlan-windows.json": both,
		"host-gw.json": both, "dual-stack.json": both, "alloc.json": both,
	}
	files, err := filepath.Glob(filepath.Join(reference, "*.json"))
	if err != nil || len(files) != len(stores) {
		t.Fatalf("%d files, want %d; %v", len(files), len(stores), err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if len(stores[filepath.Base(file)]) == 0 {
			t.Errorf("%s is not listed", file)
		}
		for _, store := range stores[filepath.Base(file)] {
			if _, warnings, err := Parse(raw, store); err != nil || len(warnings) > 0 {
				t.Errorf("%s with the %s store: %v, warnings %v", file, store, err, warnings)
			}
		}
	}
}

func TestTheReferenceSpellsOutEveryDefault(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(reference, "net-conf.json"))
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := Parse([]byte(`{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`), Etcd)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(raw), string(Render(c))); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestTheReferenceSaysItsCapacity(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(reference, "large.json"))
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := Parse(raw, Etcd)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(Capacity(c.Network.V4), "\n"), "10.0.0.0/8 in /20s: 256 nodes, 4093 pods each"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
