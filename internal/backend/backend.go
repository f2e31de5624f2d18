// Package backend defines what a backend is: a way to receive packets from peers, and a way to reach one
// peer. A node may receive on several and send to each peer on another one; nothing here assumes that a
// cluster has one backend. Backends are pure: they turn values into values.
package backend

import (
	"net/netip"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/state"
	"github.com/weftnet/weft/internal/uplink"
)

// Self is this node as its backends see it.
type Self struct {
	Identity string // stable over restarts and reboots; see lease.Self.ID
	Owner    string // mark for links; see state.Link.Owner
	Network  family.Pair[lease.Network]
	Uplink   uplink.Uplink
}

// A Peer is one family of another node's lease.
type Peer struct {
	Family family.Family
	Subnet netip.Prefix
	Public netip.Addr // where the node is on the underlay
	Data   string     // what it publishes about the backend in question; hostile until parsed

	// Direct is the device through which the kernel reaches Public without a gateway, empty if it does
	// not.
	Direct string
}

// A Way says how packets reach a peer.
type Way struct {
	Key  lease.Key  `json:"key"`
	Name string     `json:"name"` // direct, or the name of the backend
	Dev  string     `json:"dev"`
	Via  netip.Addr `json:"via"`
}

// A Backend is one way to carry packets between nodes, with all its parameters.
type Backend interface {
	// Key tells the backend and the parameters that both ends must share from all others.
	Key() lease.Key

	// Type returns the name that the original's leases carry, which is empty for a backend that publishes none.
	Type() string

	// MTU returns the largest packet that a pod may send.
	MTU(self Self) int

	// Publish returns what peers need to know to send to this node. Prior is what the node published
	// before and links is what the kernel has, so that what peers already rely on stays as it is.
	Publish(self Self, prior []lease.Receiver, links map[string]state.Link) lease.Receiver

	// Receive adds to s what this node needs to receive, given its lease.
	Receive(self Self, own lease.Lease, s *state.State) error

	// Admit adds to s what this node needs to receive from p, whatever it sends to p on itself.
	Admit(p Peer, s *state.State)

	// Speaks says whether a node that runs the original, and publishes r, receives on this backend.
	Speaks(r lease.Receiver) bool

	// Reach adds to s what carries packets to p, the route excepted, and returns the route. An error says why
	// p cannot be reached; s is unchanged then.
	Reach(p Peer, s *state.State) (Way, state.Route, error)
}

// Route returns the key of the route to subnet, with the metric that the original's routes have.
func Route(subnet netip.Prefix) state.RouteKey {
	k := state.RouteKey{Dst: subnet}
	if family.Of(subnet.Addr()) == family.V6 {
		k.Metric = state.Metric6
	}
	return k
}
