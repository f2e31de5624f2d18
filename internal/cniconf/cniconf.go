// Package cniconf puts the CNI configuration where the container runtime reads it. A runtime that finds one
// calls its node ready and starts pods, so a new node gets it only once pods can have a network. Afterwards it
// is put back when it goes, and follows its source.
//
// Others edit the installed file: service meshes append their plugin to its chain. What they did stays until
// our source says something new. Which source was installed last is recorded beside the agent's other files.
package cniconf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/atomicfile"
	"github.com/weftnet/weft/internal/cni/netd"
)

// limit bounds what is read: more than a ConfigMap can hold.
const limit = 2 << 20

// Files are the files involved.
type Files struct {
	Source string // the configuration, in the form of a conflist
	Target string // where the runtime looks
	Record string // copy of the source that was installed last; empty: none is kept
	After  string // nothing is installed before this file exists; empty: at once
}

// Sync installs the configuration if it has to be, and returns whether it was.
func (f Files) Sync() (changed bool, err error) {
	if f.After != "" {
		if _, err := os.Stat(f.After); errors.Is(err, fs.ErrNotExist) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	source, err := atomicfile.Read(f.Source, limit)
	if err != nil {
		return false, err
	}
	if _, err := parse(source); err != nil {
		return false, fmt.Errorf("%s: %w", f.Source, err)
	}
	target, err := optional(f.Target)
	if err != nil {
		return false, err
	}
	record, err := f.record()
	if err != nil {
		return false, err
	}
	if stale(source, target, record) {
		if changed, err = atomicfile.Write(f.Target, source, 0o644); err != nil {
			return false, err
		}
	}
	if f.Record != "" && !bytes.Equal(source, record) {
		_, err = atomicfile.Write(f.Record, source, 0o644)
	}
	return changed, err
}

func (f Files) record() ([]byte, error) {
	if f.Record == "" {
		return nil, nil
	}
	return optional(f.Record)
}

// optional returns nil for a file that is not there.
func optional(name string) ([]byte, error) {
	raw, err := atomicfile.Read(name, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return raw, err
}

// stale says whether source has to replace target. Without a record, which is how a node of the original
// looks, a target that has all of the source is one that others have edited.
func stale(source, target, record []byte) bool {
	t, err := parse(target)
	if err != nil || !t.has("flannel") {
		return true
	}
	if record != nil {
		return !bytes.Equal(source, record)
	}
	s, err := parse(source)
	return err != nil || !t.extends(s)
}

// A conflist is what matters here of a CNI configuration.
type conflist struct {
	Name    string            `json:"name"`
	Plugins []json.RawMessage `json:"plugins"`
}

func parse(raw []byte) (conflist, error) {
	var c conflist
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("CNI configuration: %w", err)
	}
	if c.Name == "" || len(c.Plugins) == 0 {
		return c, errors.New("CNI configuration: no name or no plugins")
	}
	return c, nil
}

// has says whether the chain contains a plugin of that type.
func (c conflist) has(plugin string) bool {
	for _, raw := range c.Plugins {
		var p struct{ Type string }
		if json.Unmarshal(raw, &p) == nil && p.Type == plugin {
			return true
		}
	}
	return false
}

// extends says whether c is of the same network as other and has all of its plugins, in its order.
func (c conflist) extends(other conflist) bool {
	i := 0
	for _, p := range c.Plugins {
		if i < len(other.Plugins) && same(p, other.Plugins[i]) {
			i++
		}
	}
	return c.Name == other.Name && i == len(other.Plugins)
}

// same compares two JSON values regardless of white space and the order of keys.
func same(a, b json.RawMessage) bool {
	var va, vb any
	if json.Unmarshal(a, &va) != nil || json.Unmarshal(b, &vb) != nil {
		return false
	}
	ca, errA := json.Marshal(va) // sorts keys
	cb, errB := json.Marshal(vb)
	return errA == nil && errB == nil && bytes.Equal(ca, cb)
}

// Keep calls Sync now and every interval until ctx ends. A failure is told when it begins and when it ends.
func (f Files) Keep(ctx context.Context, interval time.Duration, log *slog.Logger) {
	log = log.With("file", f.Target)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	failing, before := "", ""
	for {
		changed, err := f.Sync()
		switch {
		case err != nil && err.Error() != failing:
			log.Error("CNI configuration is not installed", "err", err)
			failing = err.Error()
		case err == nil && failing != "":
			log.Info("CNI configuration can be installed again")
			failing = ""
		}
		if changed {
			log.Info("CNI configuration installed")
		}
		if now := strings.Join(netd.Before(filepath.Dir(f.Target), filepath.Base(f.Target)), ", "); now != before {
			if before = now; now != "" {
				log.Warn("runtimes use another CNI configuration, whose name sorts before: remove it if this node's pods are to be on this network", "other", now)
			} else {
				log.Info("no other CNI configuration is in the way any more")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
