package manifest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// With UPDATE=1 the test writes what it otherwise compares with.
func TestCheckedInManifestsAreThoseOfTheChart(t *testing.T) {
	install, err := Install(Options{})
	if err != nil {
		t.Fatal(err)
	}
	uninstall, err := Uninstall(Options{})
	if err != nil {
		t.Fatal(err)
	}
	base, err := Kustomize(Options{})
	if err != nil {
		t.Fatal(err)
	}
	files := []File{{"kube-flannel.yml", install}, {"kube-flannel-uninstall.yml", uninstall}}
	for _, f := range base {
		files = append(files, File{"kustomize/base/" + f.Name, f.Content})
	}
	for _, f := range files {
		name := filepath.Join("../../deploy", f.Name)
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(name, f.Content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		have, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(f.Content), string(have)); diff != "" {
			t.Errorf("%s is stale: run UPDATE=1 go test ./internal/manifest (-want +got)\n%s", name, diff)
		}
	}
}
