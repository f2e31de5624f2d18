package lease

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
)

// Free chooses a subnet of n that overlaps nothing in taken: one of the first window free ones of the first range
// that has any. The error is ErrFull when nothing is free.
func Free(n Network, taken []netip.Prefix, window int, r *rand.Rand) (netip.Prefix, error) {
	for _, part := range n.Parts() {
		if free := part.free(taken, window); len(free) > 0 {
			return free[r.IntN(len(free))], nil
		}
	}
	also := ""
	if !n.Additional.Empty() {
		also = ", nor in " + n.Additional.String()
	}
	return netip.Prefix{}, fmt.Errorf("no free /%d in %s between %s and %s%s: %w", n.SubnetLen, n.Prefix, n.Min, n.Max, also, ErrFull)
}

// free returns the first window subnets of n's Prefix that overlap nothing in taken. It skips from one taken
// subnet to the next, so a large empty network costs no more than a small one. A taken prefix that holds the
// whole Prefix is no subnet of it and is ignored: a single bad entry would fill the network.
func (n Network) free(taken []netip.Prefix, window int) []netip.Prefix {
	taken = slices.DeleteFunc(slices.Clone(taken), func(p netip.Prefix) bool {
		return !p.IsValid() || p.Bits() <= n.Prefix.Bits() || !n.Prefix.Overlaps(p)
	})
	slices.SortFunc(taken, netip.Prefix.Compare)

	var free []netip.Prefix
	at, more := n.Min, true
	for more && len(free) < window && at.Compare(n.Max) <= 0 && n.Prefix.Contains(at) {
		subnet := netip.PrefixFrom(at, n.SubnetLen).Masked()
		for len(taken) > 0 && lastAddr(taken[0]).Less(subnet.Addr()) {
			taken = taken[1:]
		}
		step := subnet
		if len(taken) > 0 && taken[0].Overlaps(subnet) {
			if taken[0].Bits() < subnet.Bits() {
				step = taken[0]
			}
		} else {
			free = append(free, subnet)
		}
		at, more = after(step)
	}
	return free
}

// lastAddr returns the highest address of p, which must be masked.
func lastAddr(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|uint32(1<<(32-p.Bits())-1))
		return netip.AddrFrom4(a)
	}
	a := p.Addr().As16()
	for i := range a {
		host := min(max((i+1)*8-p.Bits(), 0), 8) // host bits in this byte
		a[i] |= byte(1<<host - 1)
	}
	return netip.AddrFrom16(a)
}

// after returns the first address behind p, and whether there is one.
func after(p netip.Prefix) (netip.Addr, bool) {
	next := lastAddr(p).Next()
	return next, next.IsValid()
}
