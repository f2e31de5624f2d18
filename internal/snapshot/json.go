package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
)

// The file's form. It has names of its own, so that renaming a Go field does not make old files unreadable.
type (
	fileJSON struct {
		Version  int             `json:"version"`
		SavedAt  time.Time       `json:"savedAt"`
		Identity string          `json:"identity"` // withoutTime knows that it follows savedAt
		Config   json.RawMessage `json:"config"`
		Self     leaseJSON       `json:"self"`

		Sysctls  map[string]string `json:"sysctls,omitempty"`
		Settings json.RawMessage   `json:"settings,omitempty"`

		Peers []leaseJSON `json:"peers"` // the last: withoutPeers knows
	}
	leaseJSON struct {
		Node    string         `json:"node,omitempty"`
		Subnet  netip.Prefix   `json:"subnet,omitzero"`
		Subnet6 netip.Prefix   `json:"subnet6,omitzero"`
		Public  netip.Addr     `json:"public,omitzero"`
		Public6 netip.Addr     `json:"public6,omitzero"`
		Receive []receiverJSON `json:"receive,omitempty"`
		Send    []lease.Key    `json:"send,omitempty"`
		Serial  uint64         `json:"serial,omitempty"`
	}
	receiverJSON struct {
		Key   lease.Key `json:"key,omitempty"`
		Type  string    `json:"type,omitempty"`
		Data  string    `json:"data,omitempty"`
		Data6 string    `json:"data6,omitempty"`
	}
)

func encode(s Snapshot) ([]byte, error) {
	f := fileJSON{
		Version:  Version,
		SavedAt:  s.SavedAt.UTC().Truncate(time.Second),
		Identity: s.Identity,
		Config:   s.Config,
		Sysctls:  s.Sysctls,
		Settings: s.Settings,
		Self:     toJSON(s.Self),
		Peers:    make([]leaseJSON, len(s.Peers)),
	}
	for i, p := range s.Peers {
		f.Peers[i] = toJSON(p)
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	return append(raw, '\n'), nil
}

func decode(raw []byte) (Snapshot, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var f fileJSON
	if err := dec.Decode(&f); err != nil {
		if version(raw) > Version {
			return Snapshot{}, fmt.Errorf("version %d is newer than %d", version(raw), Version)
		}
		return Snapshot{}, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Snapshot{}, errors.New("text after the snapshot")
	}
	if err := f.check(); err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{SavedAt: f.SavedAt, Identity: f.Identity, Config: f.Config, Self: f.Self.lease(), Sysctls: f.Sysctls, Settings: f.Settings}
	s.Peers = make([]lease.Lease, len(f.Peers))
	for i, p := range f.Peers {
		s.Peers[i] = p.lease()
	}
	return s, nil
}

// withoutPeers returns a snapshot with nobody in it, from one that was written whole: with thousands of peers, reading past
// them would take most of the time.
func withoutPeers(raw []byte) ([]byte, error) {
	// No text has the name like that, as quotes in texts are escaped, and no peer has such a member.
	i := bytes.LastIndex(raw, []byte(`,"peers":[`))
	if i < 0 || !bytes.HasSuffix(raw, []byte("]}\n")) {
		return nil, errors.New("it does not end with the peers")
	}
	return append(raw[:i:i], "}\n"...), nil
}

// version reads the version alone, from a file that may have members that we do not know.
func version(raw []byte) int {
	var v struct{ Version int }
	if json.Unmarshal(raw, &v) != nil {
		return 0
	}
	return v.Version
}

// check says what is wrong. Writer and reader share it, so a snapshot that was written can be read.
func (f fileJSON) check() error {
	if f.Version != Version {
		return fmt.Errorf("version %d, not %d", f.Version, Version)
	}
	if f.SavedAt.IsZero() {
		return errors.New("savedAt is missing")
	}
	if f.Identity == "" {
		return errors.New("identity is missing")
	}
	var object map[string]json.RawMessage
	if json.Unmarshal(f.Config, &object) != nil || object == nil {
		return errors.New("config is not a JSON object")
	}
	if err := f.Self.check(); err != nil {
		return fmt.Errorf("self: %w", err)
	}
	for path, value := range f.Sysctls {
		if !strings.HasPrefix(path, "net/") || !filepath.IsLocal(path) || path != filepath.Clean(path) || strings.ContainsAny(value, "\n\x00") {
			return fmt.Errorf("sysctl %q = %q is not one of the network's", path, value)
		}
	}
	seen := make(map[family.Pair[netip.Prefix]]bool, len(f.Peers))
	for i, p := range f.Peers {
		if err := p.check(); err != nil {
			return fmt.Errorf("peer %d: %w", i, err)
		}
		subnets := family.Pair[netip.Prefix]{V4: p.Subnet, V6: p.Subnet6}
		if seen[subnets] {
			return fmt.Errorf("peer %d: %s %s is there twice", i, p.Subnet, p.Subnet6)
		}
		seen[subnets] = true
	}
	return nil
}

func (l leaseJSON) check() error {
	if !l.Subnet.IsValid() && !l.Subnet6.IsValid() {
		return errors.New("no subnet")
	}
	for _, p := range []netip.Prefix{l.Subnet, l.Subnet6} {
		if p.IsValid() && p != p.Masked() {
			return fmt.Errorf("subnet %s has host bits", p)
		}
	}
	if l.Subnet.IsValid() && !l.Subnet.Addr().Is4() || l.Public.IsValid() && !l.Public.Is4() {
		return fmt.Errorf("subnet %s at %s is not IPv4", l.Subnet, l.Public)
	}
	if l.Subnet6.IsValid() && !plain6(l.Subnet6.Addr()) || l.Public6.IsValid() && !plain6(l.Public6) {
		return fmt.Errorf("subnet %s at %s is not IPv6", l.Subnet6, l.Public6)
	}
	return nil
}

func plain6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() && a.Zone() == "" }

func toJSON(l lease.Lease) leaseJSON {
	j := leaseJSON{Node: l.Node, Subnet: l.Subnet.V4, Subnet6: l.Subnet.V6, Public: l.Public.V4, Public6: l.Public.V6, Send: l.Send, Serial: l.Serial}
	for _, r := range l.Receive {
		j.Receive = append(j.Receive, receiverJSON{Key: r.Key, Type: r.Type, Data: r.Data.V4, Data6: r.Data.V6})
	}
	return j
}

func (l leaseJSON) lease() lease.Lease {
	out := lease.Lease{
		Node:   l.Node,
		Subnet: family.Pair[netip.Prefix]{V4: l.Subnet, V6: l.Subnet6},
		Public: family.Pair[netip.Addr]{V4: l.Public, V6: l.Public6},
		Send:   l.Send,
		Serial: l.Serial,
	}
	for _, r := range l.Receive {
		out.Receive = append(out.Receive, lease.Receiver{Key: r.Key, Type: r.Type, Data: family.Pair[string]{V4: r.Data, V6: r.Data6}})
	}
	return out
}
