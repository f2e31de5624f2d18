package cleanup

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/cni/install"
)

func TestProgramsOfOthersStay(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"flannel": "\x7fELF " + install.Marker, install.Program: "\x7fELF " + install.Marker, "bridge": "somebody's", "host-local": "somebody's",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"portmap": install.Program, "loopback": "elsewhere"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	h := host{opts: Options{CNIBinDir: dir}}
	if _, err := h.programs(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if diff := cmp.Diff([]string{"bridge", "host-local", "loopback"}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}
