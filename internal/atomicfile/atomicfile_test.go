package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "b", "file")
	for _, step := range []struct {
		name, content string
		changed       bool
	}{
		{"new", "one", true}, {"same", "one", false}, {"other", "two", true}, {"empty", "", true}, {"empty again", "", false},
	} {
		changed, err := Write(path, []byte(step.content), 0o666)
		if err != nil || changed != step.changed {
			t.Errorf("%s: changed %t, error %v", step.name, changed, err)
		}
		if got, err := Read(path, 3); err != nil || string(got) != step.content {
			t.Errorf("%s: read %q, %v", step.name, got, err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("mode %v, %v: the umask had its way", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("directory mode %v, %v", info.Mode(), err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestAFailedWriteLeavesTheOldFileAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.MkdirAll(filepath.Join(path, "in the way"), 0o755); err != nil {
		t.Fatal(err)
	}
	if changed, err := Write(path, []byte("x"), 0o644); err == nil || changed {
		t.Errorf("replaced a directory: changed %t, error %v", changed, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if _, err := Read(path, 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := Write(path, []byte("12345"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path, 5); err != nil || string(got) != "12345" {
		t.Errorf("at the limit: %q, %v", got, err)
	}
	if got, err := Read(path, 4); err == nil || got != nil {
		t.Errorf("beyond the limit: %q, %v", got, err)
	}
}
