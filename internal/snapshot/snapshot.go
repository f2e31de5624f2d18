// Package snapshot keeps the last complete lease set of a node on disk, so that a node that boots while its
// store is down can bring its data path up. A snapshot is read whole or not at all: what it says goes into
// the kernel. Only what the node remembers of itself can be read alone.
package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/atomicfile"
	"github.com/weftnet/weft/internal/lease"
)

// Version is the version of the format. A reader takes no other.
const Version = 1

// Dir is where snapshots lie: unlike /run it outlives a reboot.
const Dir = "/var/lib/flannel"

// maxSize holds some 100,000 leases.
const maxSize = 64 << 20

// ErrForeign means that a snapshot was written under another identity, as on a cloned disk.
var ErrForeign = errors.New("snapshot belongs to another node")

// A Snapshot is what a node needs to know to carry traffic without its store.
type Snapshot struct {
	SavedAt  time.Time
	Identity string          // of the node that wrote it
	Config   json.RawMessage // network configuration as the store gave it: a JSON object
	Self     lease.Lease
	Peers    []lease.Lease

	// Sysctls holds values from before the agent's time, path below /proc/sys to value.
	Sysctls map[string]string

	// Settings is what the writer needs to know of itself to make its plan again; nil: nothing.
	Settings json.RawMessage
}

// Path returns the place of the snapshot that goes with a subnet file, so that several agents on one host
// keep apart: /run/flannel/subnet.env gives /var/lib/flannel/run-flannel-subnet.env.snapshot.json.
func Path(subnetFile string) string {
	name := strings.ReplaceAll(filepath.Clean(subnetFile), "/", "-")
	return filepath.Join(Dir, strings.TrimPrefix(name, "-")+".snapshot.json")
}

// Write replaces the snapshot at path unless it differs in SavedAt only, and returns whether it did. The
// file is on disk when Write returns and only its owner can read it, for the configuration may hold keys.
func Write(path string, s Snapshot) (changed bool, err error) {
	content, err := encode(s)
	if err != nil {
		return false, fmt.Errorf("write snapshot: %w", err)
	}
	if have, err := atomicfile.Read(path, maxSize); err == nil && bytes.Equal(withoutTime(have), withoutTime(content)) {
		return false, nil
	}
	changed, err = atomicfile.Write(path, content, 0o600)
	if err != nil {
		return changed, fmt.Errorf("write snapshot: %w", err)
	}
	return changed, nil
}

// Read returns the snapshot at path as Load does, and fails with ErrForeign if identity is not the
// writer's.
func Read(path, identity string) (Snapshot, error) { return read(path, identity, whole) }

// ReadSelf returns the snapshot at path as Read does, but for the peers, which are neither returned nor checked.
func ReadSelf(path, identity string) (Snapshot, error) { return read(path, identity, withoutPeers) }

func read(path, identity string, part func([]byte) ([]byte, error)) (Snapshot, error) {
	s, err := load(path, part)
	if err != nil {
		return Snapshot{}, err
	}
	if s.Identity != identity {
		return Snapshot{}, fmt.Errorf("read snapshot %s: %w: %q, this one is %q", path, ErrForeign, s.Identity, identity)
	}
	return s, nil
}

// Load returns the snapshot at path, checked, whoever wrote it. It fails with fs.ErrNotExist or with what is
// wrong; the Snapshot is then zero.
func Load(path string) (Snapshot, error) { return load(path, whole) }

func whole(raw []byte) ([]byte, error) { return raw, nil }

func load(path string, part func([]byte) ([]byte, error)) (Snapshot, error) {
	raw, err := atomicfile.Read(path, maxSize)
	if err != nil {
		return Snapshot{}, fmt.Errorf("read snapshot: %w", err)
	}
	var s Snapshot
	if raw, err = part(raw); err == nil {
		s, err = decode(raw)
	}
	if err != nil {
		return Snapshot{}, fmt.Errorf("read snapshot %s: %w", path, err)
	}
	return s, nil
}

// timeEnd is what follows the time, which is the second member and the only one that may differ between
// two snapshots of one state.
var timeEnd = []byte(`,"identity":`)

func withoutTime(raw []byte) []byte {
	_, rest, ok := bytes.Cut(raw[:min(len(raw), 128)], timeEnd)
	if !ok {
		return raw
	}
	return raw[min(len(raw), 128)-len(rest):]
}
