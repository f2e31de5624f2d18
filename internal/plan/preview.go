package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/internal/backend/hostgw"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
)

// A Move says what a new configuration does to the way to one peer, once both ends follow it.
type Move struct {
	Node   string       `json:"node,omitempty"`
	Subnet netip.Prefix `json:"subnet"`
	From   lease.Key    `json:"from,omitempty"`
	To     lease.Key    `json:"to,omitempty"`
	Reason string       `json:"reason,omitempty"` // why it is not the preferred way
}

// Preview returns what becomes of the paths of p, which was built from in, with configuration c.
func Preview(in Input, p Plan, c netconf.Config) ([]Move, error) {
	after := in
	after.Config = c
	t, refused, err := turning(after, func(lease.Key) bool { return true })
	if err != nil {
		return nil, err
	}
	bySubnet := map[netip.Prefix]lease.Lease{}
	for _, l := range in.Leases {
		bySubnet[l.Subnet.V4], bySubnet[l.Subnet.V6] = l, l
	}
	var moves []Move
	for _, path := range p.Paths {
		m := Move{Node: path.Node, Subnet: path.Subnet}
		if path.Way != nil {
			m.From, m.To = path.Way.Key, path.Way.Key
		}
		m.To, m.Reason = after.later(t.target, path, bySubnet[path.Subnet], m.To)
		if refused != nil && m.Reason == "" {
			m.Reason = refused.Error()
		}
		moves = append(moves, m)
	}
	return moves, nil
}

// later returns the first of keys by which the peer can be reached when it follows, or the way that stays.
func (in Input) later(keys []lease.Key, path Path, l lease.Lease, stays lease.Key) (lease.Key, string) {
	why := ""
	for _, k := range keys {
		reason := ""
		b, err := backendOf(in, k)
		switch {
		case err != nil:
			reason = err.Error()
		case k == hostgw.Key && in.Direct[path.Public] == "":
			reason = "not on-link"
		case l.Original() && (len(l.Receive) == 0 || !b.Speaks(l.Receive[0])):
			reason = "the node runs the original, which follows when it is restarted"
		case path.Way == nil:
			reason = path.Reason
		default:
			return k, why
		}
		if why == "" {
			why = fmt.Sprintf("%s: %s", k, reason)
		}
	}
	if !slices.Contains(path.Possible, stays) {
		stays = ""
	}
	return stays, why
}
