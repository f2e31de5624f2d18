// Package alloc leases a subnet and leaves carrying packets to somebody else.
package alloc

import (
	"errors"

	"github.com/weftnet/weft/internal/backend"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/state"
)

// Key is the key of the backend, which has no parameters.
const Key lease.Key = "alloc"

// Alloc is the alloc backend.
type Alloc struct{}

var _ backend.Backend = Alloc{}

// Key implements backend.Backend.
func (Alloc) Key() lease.Key { return Key }

// Type implements backend.Backend: leases of this backend carry no type.
func (Alloc) Type() string { return "" }

// MTU implements backend.Backend.
func (Alloc) MTU(self backend.Self) int { return self.Uplink.MTU }

// Publish implements backend.Backend.
func (Alloc) Publish(backend.Self, []lease.Receiver, map[string]state.Link) lease.Receiver {
	return lease.Receiver{Key: Key}
}

// Receive implements backend.Backend.
func (Alloc) Receive(backend.Self, lease.Lease, *state.State) error { return nil }

// Admit implements backend.Backend.
func (Alloc) Admit(backend.Peer, *state.State) {}

// Speaks implements backend.Backend.
func (Alloc) Speaks(r lease.Receiver) bool { return r.Type == "" }

// Reach implements backend.Backend.
func (Alloc) Reach(backend.Peer, *state.State) (backend.Way, state.Route, error) {
	return backend.Way{}, state.Route{}, errors.New("alloc carries no packets")
}
