package lease

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/internal/family"
)

// An Entry is a lease as a store lists it.
type Entry struct {
	Lease
	Mine     bool // self's own, by its public address or because this process holds it
	Reserved bool // it never expires: an operator made it
}

// A Choice says which subnets a node asks a store for, and how it comes to them.
type Choice struct {
	Subnet   family.Pair[netip.Prefix]
	Keep     int   // index of self's entry that has these subnets already; -1: a new one must be made
	Drop     []int // indices of self's entries that go in the same step as the new one comes
	Reserved bool  // the new entry takes the place of a reservation, so it does not expire either
}

// Primary returns the family whose public address tells whose a lease is: IPv4 where it is on.
func (s Self) Primary() family.Family {
	if s.Network.V4.Enabled() {
		return family.V4
	}
	return family.V6
}

// Check says what is missing for s to ask for a lease.
func (s Self) Check() error {
	if !s.Network.V4.Enabled() && !s.Network.V6.Enabled() {
		return errors.New("neither IPv4 nor IPv6 is enabled")
	}
	for _, f := range family.All() {
		if a := s.Public.Of(f); s.Network.Of(f).Enabled() && (!a.IsValid() || a.IsUnspecified() || family.Of(a) != f) {
			return fmt.Errorf("%s is enabled, but this node has no public %s address", f, f)
		}
	}
	return nil
}

// Own returns the indices of self's entries: the one with the prior subnets first, since the node's pods
// have addresses of those, then in the order given.
func Own(self Self, entries []Entry) []int {
	var own []int
	for i, e := range entries {
		if e.Mine {
			own = append(own, i)
		}
	}
	slices.SortStableFunc(own, func(a, b int) int {
		return shared(entries[b].Subnet, self.Prior) - shared(entries[a].Subnet, self.Prior)
	})
	return own
}

// Recall returns the lease that self would take up again: of its own entries one that fits the networks,
// or else the first, if any.
func Recall(self Self, entries []Entry) (Lease, bool) {
	own := Own(self, entries)
	for _, i := range own {
		if self.keeps(entries[i].Subnet) {
			return entries[i].Lease, true
		}
	}
	if len(own) == 0 {
		return Lease{}, false
	}
	return entries[own[0]].Lease, true
}

// keeps says whether self may go on with subnets: they fit the networks, or pods have addresses of them and the
// networks still hold them, with other limits for new subnets.
func (s Self) keeps(subnets family.Pair[netip.Prefix]) bool {
	if Fits(s.Network, subnets) {
		return true
	}
	for _, f := range family.All() {
		n, p := s.Network.Of(f), subnets.Of(f)
		if n.Enabled() != p.IsValid() || p.IsValid() && (p != s.Prior.Of(f).Masked() || !n.holds(p)) {
			return false
		}
	}
	return true
}

// shared counts the families in which a and b have the same subnet.
func shared(a, b family.Pair[netip.Prefix]) int {
	n := 0
	for _, f := range family.All() {
		if p := a.Of(f); p.IsValid() && p == b.Of(f) {
			n++
		}
	}
	return n
}

// Choose decides which subnets self asks for. An entry of its own that fits the networks is kept. Else
// each family keeps, where it fits and nobody else has it, the subnet of such an entry or the one held
// before, and gets a free one otherwise: turning IPv6 on or off leaves IPv4 as it is. A free subnet is one
// of the first window free ones. The error is ErrFull or says what self lacks.
func Choose(self Self, entries []Entry, window int, r *rand.Rand) (Choice, error) {
	if err := self.Check(); err != nil {
		return Choice{}, err
	}
	own := Own(self, entries)
	c := Choice{Keep: -1}
	for _, i := range own {
		if self.keeps(entries[i].Subnet) {
			c.Keep, c.Subnet, c.Reserved = i, entries[i].Subnet, entries[i].Reserved
			break
		}
	}
	if c.Keep < 0 {
		for _, f := range family.All() {
			if !self.Network.Of(f).Enabled() {
				continue
			}
			var err error
			if *c.Subnet.Ref(f), err = chooseOne(f, self, entries, window, r); err != nil {
				return Choice{}, err
			}
		}
	}
	for _, i := range own {
		e := entries[i]
		switch {
		case i == c.Keep || self.keeps(e.Subnet):
		case !e.Reserved:
			c.Drop = append(c.Drop, i)
		case c.Keep < 0 && shared(e.Subnet, c.Subnet) > 0:
			c.Drop, c.Reserved = append(c.Drop, i), true
		}
	}
	return c, nil
}

// chooseOne chooses the subnet of one family.
func chooseOne(f family.Family, self Self, entries []Entry, window int, r *rand.Rand) (netip.Prefix, error) {
	network := self.Network.Of(f)
	var former, taken []netip.Prefix
	for _, i := range Own(self, entries) {
		former = append(former, entries[i].Subnet.Of(f))
	}
	former = append(former, self.Prior.Of(f).Masked())
	for _, e := range entries {
		if p := e.Subnet.Of(f); p.IsValid() && (!e.Mine || e.Reserved) {
			taken = append(taken, p)
		}
	}
	for _, p := range former {
		if p.IsValid() && (network.Fits(p) || p == self.Prior.Of(f) && network.holds(p)) && !slices.ContainsFunc(entries, func(e Entry) bool {
			o := e.Subnet.Of(f)
			return o.IsValid() && o.Bits() > network.Around(p).Bits() && o.Overlaps(p) && !(e.Mine && (!e.Reserved || o == p))
		}) {
			return p, nil
		}
	}
	return Free(network, taken, window, r)
}
