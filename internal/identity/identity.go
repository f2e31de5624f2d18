// Package identity tells this node from every other one, the same way after every restart and reboot.
package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// A Source says where a node's identity comes from.
type Source struct {
	NodeName string // as the cluster knows the node; empty: the hostname
	Hostname string
	Root     string // directory that holds etc/machine-id; "/" but in tests
	Dir      string // where a random identity is kept if nothing else is known
}

// idLength is the length of an identity in hex digits: 64 bits, so that no two of a million nodes are
// likely to share one (n²/2 / 2^64).
const idLength = 16

// Of returns the node's identity, idLength hex digits. It is derived from the machine ID and the name
// together: cloned machines share the former, hosts of different networks the latter. Either will do alone;
// with neither it is random, kept in the file node-id below Dir, and that is the only way to an error.
func Of(s Source) (string, error) {
	name := s.NodeName
	if name == "" {
		name = ownName(s.Hostname)
	}
	machine := machineID(s.Root)
	if name == "" && machine == "" {
		return random(filepath.Join(s.Dir, "node-id"))
	}
	return digest("weft node", machine, name), nil
}

// MAC returns a MAC address for one of the node's devices: stable, unicast and locally administered.
func MAC(id, device string) [6]byte {
	sum := sha256.Sum256([]byte("weft mac\x00" + id + "\x00" + device))
	mac := [6]byte(sum[:6])
	mac[0] = mac[0]&^1 | 2 // IEEE 802: bit 0 is multicast, bit 1 local
	return mac
}

// digest hides its input, as machine-id(5) asks for.
func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])[:idLength]
}

// ownName drops the names that hosts without a name have.
func ownName(hostname string) string {
	switch hostname {
	case "localhost", "localhost.localdomain", "(none)":
		return ""
	}
	return hostname
}

var machineIDForm = regexp.MustCompile(`^[0-9a-f]{32}$`)

// machineID returns the machine ID, or "" while there is none: the file is empty or says "uninitialized"
// during the first boot.
func machineID(root string) string {
	for _, path := range []string{"etc/machine-id", "var/lib/dbus/machine-id"} {
		raw, err := os.ReadFile(filepath.Join(root, path))
		if id := strings.TrimSpace(string(raw)); err == nil && machineIDForm.MatchString(id) {
			return id
		}
	}
	return ""
}

var idForm = regexp.MustCompile(`^[0-9a-f]{16}$`)

// random returns the identity kept in a file, and makes one up if there is none yet.
func random(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(raw)); err == nil && idForm.MatchString(id) {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read node identity: %w", err)
	}
	id := digest(rand.Text())
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("keep node identity: %w", err)
	}
	// Written beside and renamed: half a file would become another identity.
	if err := os.WriteFile(path+".new", []byte(id+"\n"), 0o644); err != nil {
		return "", fmt.Errorf("keep node identity: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", fmt.Errorf("keep node identity: %w", err)
	}
	return id, nil
}
