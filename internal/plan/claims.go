package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/weftnet/weft/internal/lease"
)

// claims checks what peers claim against each other. Leases come from other nodes: a wrong or hostile one
// must cost nobody but its owner.
type claims struct {
	subnets bart.Lite
}

// inOrder returns the leases in the order in which they are heard, which is the same on every node: first
// those that a node could hold under this configuration, so that a lease of another size does not cost the
// nodes whose subnets it covers theirs.
func inOrder(in Input) []lease.Lease {
	fit := make([]lease.Lease, 0, len(in.Leases))
	var others []lease.Lease
	for _, l := range in.Leases {
		if lease.Fits(in.Config.Network, l.Subnet) {
			fit = append(fit, l)
		} else {
			others = append(others, l)
		}
	}
	slices.SortFunc(fit, lease.Compare)
	slices.SortFunc(others, lease.Compare)
	return append(fit, others...)
}

// check says whether the peer may have the subnet and the address that it announces. Of two that overlap
// the first in order wins.
func (c *claims) check(in Input, p Path) error {
	network := in.Config.Network.Of(p.Family)
	switch {
	case !network.Around(p.Subnet).IsValid():
		return fmt.Errorf("refused: subnet %s is not inside the network %s", p.Subnet, network.Ranges())
	case p.Subnet.Overlaps(in.Own.Subnet.Of(p.Family)):
		return fmt.Errorf("refused: subnet %s overlaps our own %s", p.Subnet, in.Own.Subnet.Of(p.Family))
	case c.subnets.OverlapsPrefix(p.Subnet):
		return fmt.Errorf("refused: subnet %s overlaps another node's", p.Subnet)
	}
	if err := underlay(p.Public, network); err != nil {
		return err
	}
	for _, own := range []netip.Addr{in.Self.Uplink.Public.Of(p.Family), in.Self.Uplink.Addr.Of(p.Family)} {
		if p.Public == own {
			return fmt.Errorf("refused: public address %s is our own", p.Public)
		}
	}
	return nil
}

// grant gives the peer its subnet.
func (c *claims) grant(p Path) { c.subnets.Insert(p.Subnet) }

// underlay says whether a can be a node's address.
func underlay(a netip.Addr, network lease.Network) error {
	switch {
	case !a.IsValid() || a.IsUnspecified():
		return fmt.Errorf("refused: announces no public address")
	case a.IsLoopback() || a.IsMulticast() || a.Is4In6() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("refused: public address %s is not a unicast address of a node", a)
	case network.Contains(a):
		return fmt.Errorf("refused: public address %s is inside the pod network %s", a, network.Ranges())
	}
	return nil
}
