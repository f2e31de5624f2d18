package lease

import (
	"net/netip"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/ranges"
)

// A Network is the cluster's ranges of one family and how they are cut into subnets. It is compared with ==. The
// zero Network stands for a family that is switched off.
type Network struct {
	Prefix    netip.Prefix // masked
	SubnetLen int          // prefix length of a node's subnet; 0 where the store does not choose subnets
	Min, Max  netip.Addr   // first and last subnet of Prefix that may be leased, both included

	// Additional holds ranges beside Prefix; none overlaps it or another. Of each, all subnets but the first may
	// be leased, when there is none left in Prefix and in those before it.
	Additional ranges.List
}

// Enabled says whether the family is on.
func (n Network) Enabled() bool { return n.Prefix.IsValid() }

// Ranges returns all ranges, Prefix first; none if the family is off.
func (n Network) Ranges() ranges.List {
	if n.Additional.Empty() {
		return ranges.Of(n.Prefix)
	}
	return ranges.Of(append([]netip.Prefix{n.Prefix}, n.Additional.Prefixes()...)...)
}

// Parts returns each range as a network of its own, Prefix first; none if the family is off.
func (n Network) Parts() []Network {
	if !n.Enabled() {
		return nil
	}
	first := n
	first.Additional = ranges.List{}
	parts := []Network{first}
	for p := range n.Additional.All() {
		part := Network{Prefix: p, SubnetLen: n.SubnetLen}
		if n.SubnetLen != 0 {
			part.Min, part.Max = Bounds(p, n.SubnetLen)
		}
		parts = append(parts, part)
	}
	return parts
}

// Bounds returns the first and the last subnet of a range of which nothing else is said. The first is the
// second one there is, since the first one's address is the range's own. Length must be more than the range's.
func Bounds(prefix netip.Prefix, length int) (first, last netip.Addr) {
	lo := prefix.Masked().Addr().AsSlice()
	hi := prefix.Masked().Addr().AsSlice()
	for bit := prefix.Bits(); bit < length; bit++ {
		hi[bit/8] |= 0x80 >> (bit % 8)
	}
	end := length - 1
	lo[end/8] |= 0x80 >> (end % 8)
	first, _ = netip.AddrFromSlice(lo)
	last, _ = netip.AddrFromSlice(hi)
	return first, last
}

// Contains says whether a lies in one of the ranges.
func (n Network) Contains(a netip.Addr) bool { return n.Prefix.Contains(a) || n.Additional.Contains(a) }

// Around returns the range of which subnet is a part, and not the whole; the zero Prefix if there is none.
func (n Network) Around(subnet netip.Prefix) netip.Prefix {
	if isPart(subnet, n.Prefix) {
		return n.Prefix
	}
	for p := range n.Additional.All() {
		if isPart(subnet, p) {
			return p
		}
	}
	return netip.Prefix{}
}

func isPart(p, of netip.Prefix) bool { return p.Bits() > of.Bits() && of.Contains(p.Addr()) }

// holds says whether subnet is a part of n.
func (n Network) holds(subnet netip.Prefix) bool {
	return subnet == subnet.Masked() && n.Around(subnet).IsValid()
}

// Lost returns a range of n that does not lie in a range of next, and so may have subnets that next has not; the
// zero Prefix if there is none. Ranges that hold it together only do not count: a subnet may lie across them.
func (n Network) Lost(next Network) netip.Prefix {
	for _, old := range n.Parts() {
		whole := false
		for _, now := range next.Parts() {
			whole = whole || now.Prefix == old.Prefix || isPart(old.Prefix, now.Prefix)
		}
		if !whole {
			return old.Prefix
		}
	}
	return netip.Prefix{}
}

// Fits says whether subnet may be leased from n: of the network's subnet length, and in Prefix between min and
// max. A network that is off fits no subnet at all, which is the zero Prefix.
func (n Network) Fits(subnet netip.Prefix) bool {
	if !n.Enabled() || !subnet.IsValid() {
		return n.Enabled() == subnet.IsValid()
	}
	around := n.Around(subnet)
	if subnet.Bits() != n.SubnetLen || subnet != subnet.Masked() || !around.IsValid() {
		return false
	}
	if around != n.Prefix {
		return subnet.Addr() != around.Addr()
	}
	return n.Min.Compare(subnet.Addr()) <= 0 && subnet.Addr().Compare(n.Max) <= 0
}

// Fits says whether subnets fit the networks of both families: neither missing nor too many.
func Fits(networks family.Pair[Network], subnets family.Pair[netip.Prefix]) bool {
	return networks.V4.Fits(subnets.V4) && networks.V6.Fits(subnets.V6)
}
