package conffile_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/conffile"
)

const patience = time.Minute

// follow watches path until the test ends, and returns what is handed over.
func follow(t *testing.T, path string) <-chan string {
	t.Helper()
	seen := make(chan string, 10)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- conffile.Watch(ctx, path, slog.New(slog.DiscardHandler), func(raw []byte) { seen <- string(raw) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended: %v", err)
		}
	})
	return seen
}

func expect(t *testing.T, seen <-chan string, want string) {
	t.Helper()
	select {
	case got := <-seen:
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	case <-time.After(patience):
		t.Fatalf("%q was not seen", want)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// publish does what the kubelet does to a ConfigMap volume (AtomicWriter).
func publish(t *testing.T, dir string, n int) {
	t.Helper()
	version := fmt.Sprintf("..2026_%d", n)
	check(t, os.Mkdir(filepath.Join(dir, version), 0o755))
	write(t, filepath.Join(dir, version, "net-conf.json"), fmt.Sprint("version ", n))
	check(t, os.Symlink(version, filepath.Join(dir, "..data_tmp")))
	check(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	if n == 1 {
		check(t, os.Symlink("..data/net-conf.json", filepath.Join(dir, "net-conf.json")))
	} else {
		check(t, os.RemoveAll(filepath.Join(dir, fmt.Sprintf("..2026_%d", n-1))))
	}
}

func TestConfigMapVolume(t *testing.T) {
	dir := t.TempDir()
	seen := follow(t, filepath.Join(dir, "net-conf.json"))
	for n := 1; n < 5; n++ {
		publish(t, dir, n)
		expect(t, seen, fmt.Sprint("version ", n))
	}
}

func TestOrdinaryFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "conf")
	write(t, path, "one")
	seen := follow(t, path)
	expect(t, seen, "one")
	write(t, path, "two") // in place
	expect(t, seen, "two")
	write(t, path+".new", "three")
	check(t, os.Rename(path+".new", path))
	expect(t, seen, "three")
	check(t, os.Remove(path))
	write(t, path, "") // an editor at work
	write(t, path, "three")
	write(t, filepath.Join(dir, "other"), "x")
	write(t, path, "four")
	expect(t, seen, "four")
}

func TestDirectoryThatComesAndGoes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volume")
	path := filepath.Join(dir, "conf")
	seen := follow(t, path)
	check(t, os.Mkdir(dir, 0o755))
	write(t, path, "one")
	expect(t, seen, "one")
	check(t, os.RemoveAll(dir))
	check(t, os.Mkdir(dir, 0o755))
	write(t, path, "two")
	expect(t, seen, "two")
	check(t, os.Rename(dir, dir+".old"))
	check(t, os.Mkdir(dir, 0o755))
	write(t, path, "three")
	expect(t, seen, "three")
}

func TestTooLong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "conf")
	write(t, path, string(make([]byte, 2<<20)))
	seen := follow(t, path)
	write(t, path+".new", "short")
	if err := os.Rename(path+".new", path); err != nil { // in place, a reader could meet the long one half cut
		t.Fatal(err)
	}
	expect(t, seen, "short")
}
