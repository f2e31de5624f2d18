// Package hostgw carries pod traffic between nodes of one segment as it is: the route to a peer's subnet
// leads to the peer itself. Pods' own addresses are seen on the underlay.
package hostgw

import (
	"errors"
	"fmt"

	"github.com/weftnet/weft/internal/backend"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/state"
)

// Key is the key of the backend, which has no parameters.
const Key lease.Key = "host-gw"

// HostGW is the host-gw backend, and the direct way of others.
type HostGW struct {
	also string // type of the backend whose direct way this is, empty: none
}

var _ backend.Backend = HostGW{}

// New returns the backend.
func New() HostGW { return HostGW{} }

// Direct returns the backend as the direct way of another one, to nodes that run the original too.
func Direct(other string) HostGW { return HostGW{also: other} }

// Key implements backend.Backend.
func (HostGW) Key() lease.Key { return Key }

// Type implements backend.Backend.
func (HostGW) Type() string { return "host-gw" }

// MTU implements backend.Backend.
func (HostGW) MTU(self backend.Self) int { return self.Uplink.MTU }

// Publish implements backend.Backend: peers need only the public address.
func (HostGW) Publish(backend.Self, []lease.Receiver, map[string]state.Link) lease.Receiver {
	return lease.Receiver{Key: Key, Type: "host-gw"}
}

// Receive implements backend.Backend. Peers send to the public address as a next hop, so it must be the
// one that answers ARP and NDP on the external interface.
func (HostGW) Receive(self backend.Self, _ lease.Lease, _ *state.State) error {
	return Usable(self)
}

// Usable says why peers cannot send to this node directly, nil if they can.
func Usable(self backend.Self) error {
	for _, f := range family.All() {
		if public, addr := self.Uplink.Public.Of(f), self.Uplink.Addr.Of(f); public != addr {
			return fmt.Errorf("host-gw: public address %s is not the address of %s (%s): peers cannot use it as "+
				"a next hop; drop --public-ip or choose another backend", public, self.Uplink.Name, addr)
		}
	}
	return nil
}

// Admit implements backend.Backend.
func (HostGW) Admit(backend.Peer, *state.State) {}

// Speaks implements backend.Backend.
func (h HostGW) Speaks(r lease.Receiver) bool {
	return r.Type == "host-gw" || h.also != "" && r.Type == h.also
}

// Reach implements backend.Backend.
func (HostGW) Reach(p backend.Peer, _ *state.State) (backend.Way, state.Route, error) {
	if p.Direct == "" {
		return backend.Way{}, state.Route{}, errors.New("not on-link: direct packets reach only nodes without a router between")
	}
	r := state.Route{Type: state.Unicast, Via: p.Public, Dev: p.Direct, Protocol: state.Protocol}
	return backend.Way{Key: Key, Name: "direct", Dev: p.Direct, Via: p.Public}, r, nil
}
