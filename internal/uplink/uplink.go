// Package uplink chooses the external interface: the device, its own address and the address that
// peers send to, per family (interop section 4). Conn.List reads what the choice depends on, Select
// makes it: a pure function, called again whenever links, addresses or routes have changed.
package uplink

import (
	"errors"
	"net/netip"

	"github.com/weftnet/weft/internal/family"
)

// An Uplink is the choice. It is comparable: a change of any part of it is followed while running.
type Uplink struct {
	Name   string
	Index  int
	MTU    int
	Addr   family.Pair[netip.Addr] // on the device; zero: family off
	Public family.Pair[netip.Addr] // published to peers: Addr, or what the operator named instead
}

// Hints are what the cluster says about one node's choice: the fields of Options with the same names.
type Hints struct {
	NodePublic, Overwrite, NodeIP family.Pair[netip.Addr]
}

// ErrNoHints means that the cluster has not told its hints yet.
var ErrNoHints = errors.New("waiting for what the cluster says about this node")

// With returns o with the hints.
func (o Options) With(h Hints) Options {
	o.NodePublic, o.Overwrite, o.NodeIP = h.NodePublic, h.Overwrite, h.NodeIP
	return o
}
