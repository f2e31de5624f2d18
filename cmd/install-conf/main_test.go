package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCopies(t *testing.T) {
	for name, c := range map[string]struct {
		program string
		args    []string // SRC and DIR stand for the file and the folder of the case
		target  string
	}{
		"the original's conflist": {program: "install-conf", args: []string{"SRC", "DIR/10-flannel.conflist"}, target: "10-flannel.conflist"},
		"the original's plugin":   {program: "cp", args: []string{"-f", "SRC", "DIR/flannel"}, target: "flannel"},
		"into a folder":           {program: "cp", args: []string{"SRC", "DIR"}, target: "src"},
	} {
		t.Run(name, func(t *testing.T) {
			src, dir := filepath.Join(t.TempDir(), "src"), t.TempDir()
			for file, content := range map[string]string{src: "new", filepath.Join(dir, c.target): "what was there before"} {
				if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chmod(src, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := run(c.program, expand(c.args, src, dir)); err != nil {
				t.Fatal(err)
			}
			target := filepath.Join(dir, c.target)
			raw, err := os.ReadFile(target)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(target)
			if err != nil {
				t.Fatal(err)
			}
			if string(raw) != "new" || info.Mode().Perm() != 0o755 {
				t.Errorf("%q, mode %o", raw, info.Mode().Perm())
			}
			onlyFile(t, dir, c.target)
		})
	}
}

func TestAFailedCopyLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := run("cp", []string{"/proc/self/mem", filepath.Join(dir, "target")}); err == nil {
		t.Error("no error for a file that cannot be read")
	}
	if err := run("cp", []string{dir, filepath.Join(dir, "target")}); err == nil {
		t.Error("no error for a folder")
	}
	if err := run("install-conf", []string{"one"}); err == nil {
		t.Error("no error for a missing argument")
	}
	onlyFile(t, dir, "")
}

func TestInstallConfAfter(t *testing.T) {
	dir := t.TempDir()
	after, src, target := filepath.Join(dir, "after"), filepath.Join(dir, "src"), filepath.Join(dir, "net.d", "x.conflist")
	if err := os.WriteFile(src, []byte(`{"name":"n","plugins":[{"type":"flannel"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--after=" + after, "--record=" + filepath.Join(dir, "record"), src, target}
	if err := run("install-conf", args); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(target); err == nil {
		t.Fatal("installed before there is a network")
	}
	if err := os.WriteFile(after, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run("install-conf", args); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(target); err != nil {
		t.Fatal(err)
	}
}

func expand(args []string, src, dir string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		switch {
		case a == "SRC":
			out[i] = src
		case len(a) >= 3 && a[:3] == "DIR":
			out[i] = dir + a[3:]
		default:
			out[i] = a
		}
	}
	return out
}

// onlyFile checks that dir holds that file, or nothing.
func onlyFile(t *testing.T, dir, name string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != name {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}
