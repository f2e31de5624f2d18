package cniconf

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const (
	plain   = `{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":{"hairpinMode":true}},{"type":"portmap"}]}`
	newer   = `{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":{"hairpinMode":true}}]}`
	chained = `{"cniVersion":"0.3.1", "name":"cbr0", "plugins":[{"delegate":{"hairpinMode":true},"type":"flannel"},{"type":"portmap"},{"type":"mesh"}]}`
)

func TestSync(t *testing.T) {
	for name, c := range map[string]struct {
		source, target, record string
		noAfter                bool
		want                   string
		changed                bool
	}{
		"new node":                               {source: plain, want: plain, changed: true},
		"network is not there yet":               {source: plain, noAfter: true},
		"nothing new":                            {source: plain, target: plain, record: plain, want: plain},
		"the original's":                         {source: plain, target: plain, want: plain},
		"the original's, with a mesh":            {source: plain, target: chained, want: chained},
		"the original's, with other settings":    {source: plain, target: newer, want: plain, changed: true},
		"a mesh joined":                          {source: plain, target: chained, record: plain, want: chained},
		"source lost a plugin":                   {source: newer, target: plain, record: plain, want: newer, changed: true},
		"target has gone":                        {source: plain, record: plain, want: plain, changed: true},
		"target is torn":                         {source: plain, target: plain[:40], record: plain, want: plain, changed: true},
		"target is somebody else's by that name": {source: plain, target: `{"name":"x","plugins":[{"type":"ptp"}]}`, record: plain, want: plain, changed: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := files(t.TempDir())
			write(t, f.Source, c.source)
			write(t, f.Target, c.target)
			write(t, f.Record, c.record)
			if !c.noAfter {
				write(t, f.After, "x")
			}
			changed, err := f.Sync()
			if err != nil {
				t.Fatal(err)
			}
			if got := read(t, f.Target); got != c.want || changed != c.changed {
				t.Errorf("changed %v, target %s; want %v, %s", changed, got, c.changed, c.want)
			}
			if changed, err := f.Sync(); changed || err != nil {
				t.Errorf("second time: changed %v, %v", changed, err)
			}
		})
	}
}

func TestSyncRefusesABadSource(t *testing.T) {
	for _, source := range []string{"", "{", "[]", `{"name":"cbr0"}`, `{"name":"cbr0","plugins":[]}`, `{"plugins":[{}]}`} {
		f := files(t.TempDir())
		write(t, f.After, "x")
		write(t, f.Target, plain)
		if err := os.WriteFile(f.Source, []byte(source), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Sync(); err == nil {
			t.Errorf("%q: no error", source)
		}
		if got := read(t, f.Target); got != plain {
			t.Errorf("%q: target is %s", source, got)
		}
	}
}

func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := files(t.TempDir())
		write(t, f.Source, plain)
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		var log strings.Builder
		go f.Keep(ctx, time.Second, slog.New(slog.NewTextHandler(&log, nil)))
		expect := func(when, want string) {
			t.Helper()
			time.Sleep(1500 * time.Millisecond)
			if got := read(t, f.Target); got != want {
				t.Errorf("%s: %q, want %q", when, got, want)
			}
		}
		expect("before the network", "")
		write(t, f.After, "x")
		expect("after it", plain)
		if err := os.Remove(f.Target); err != nil {
			t.Fatal(err)
		}
		expect("removed by hand", plain)
		write(t, f.Source, newer)
		expect("new source", newer)
		write(t, filepath.Join(filepath.Dir(f.Target), "05-other.conflist"), "{}")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := log.String(); strings.Count(got, "level=WARN") != 1 || !strings.Contains(got, "other=05-other.conflist") {
			t.Errorf("somebody else's configuration is preferred, and the log says\n%s", got)
		}
	})
}

func files(dir string) Files {
	return Files{
		Source: filepath.Join(dir, "cni-conf.json"), Target: filepath.Join(dir, "net.d", "10-flannel.conflist"),
		Record: filepath.Join(dir, "state", "cni-conf.json"), After: filepath.Join(dir, "subnet.env"),
	}
}

// write makes a file unless there is nothing to put into it.
func write(t *testing.T, name, content string) {
	t.Helper()
	if content == "" {
		return
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(raw)
}
