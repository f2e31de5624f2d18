package install

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestNewer(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"v1.2.3", "v1.2.2", true}, {"v1.10.0", "v1.9.9", true}, {"v1.2.3", "v1.2.3", false}, {"v1.2.3-rc1", "v1.2.3", false}, {"v1.2.3", "v1.2.3-rc1", true},
		{"v1.2.3-rc2", "v1.2.3-rc1", false}, {"v1.2.4-rc1", "v1.2.3", true},
		{"dev", "v1.0.0", false}, {"v1.0.0", "dev", false}, {"", "v0.0.1", false},
	} {
		if got := newer(c.a, c.b); got != c.want {
			t.Errorf("%s newer than %s: %v", c.a, c.b, got)
		}
	}
}

// A release that is newer stays; what an installer that was killed left goes.
func TestPrograms(t *testing.T) {
	dir := t.TempDir()
	self := filepath.Join(dir, "self")
	write := func(path, content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(self, "#!/bin/sh\necho "+Marker+" v1.0.0\n")
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	theirs := "#!/bin/sh\necho " + Marker + " v2.0.0\n"
	write(filepath.Join(bin, "flannel"), theirs)
	write(filepath.Join(bin, ".flannel.123.tmp"), "half")
	var out bytes.Buffer
	o := Options{Self: self, Release: "v1.0.0", BinDir: bin, NoConflist: true}
	if err := Run(context.Background(), o, &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "release v2.0.0 is newer than this v1.0.0, left alone") {
		t.Errorf("says\n%s", out.String())
	}
	if raw, err := os.ReadFile(filepath.Join(bin, "flannel")); err != nil || string(raw) != theirs {
		t.Errorf("the newer release was replaced: %q, %v", raw, err)
	}
	write(filepath.Join(bin, "flannel"), "#!/bin/sh\nexec sleep 60 # "+Marker+"\n")
	o.patience = 50 * time.Millisecond
	if err := Run(context.Background(), o, &out); err == nil || !strings.Contains(err.Error(), "does not say its release") {
		t.Errorf("a program that nobody knows the release of: %v", err)
	}
	write(filepath.Join(bin, "flannel"), theirs)
	if left, err := filepath.Glob(filepath.Join(bin, ".*.tmp")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
	o.Release, o.patience = "v3.0.0", 0
	if err := os.Chmod(filepath.Join(bin, Program), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Run(context.Background(), o, &out); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(filepath.Join(bin, "flannel")); err != nil || string(raw) == theirs {
		t.Errorf("the older release was not replaced: %v", err)
	}
	if info, err := os.Stat(filepath.Join(bin, Program)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("what runtimes cannot run stays so: %v, %v", info.Mode(), err)
	}
}

func TestConflistThatMakesNoSense(t *testing.T) {
	for content, want := range map[string]string{
		`{`: "unexpected end", `{"plugins":[{"type":"flannel"}]}`: "name: missing", `{"name":"n","plugins":[{"type":"bridge"}]}`: "none of type flannel",
	} {
		if err := check([]byte(content)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", content, err)
		}
	}
	if err := check([]byte(Conflist)); err != nil {
		t.Error(err)
	}
}
