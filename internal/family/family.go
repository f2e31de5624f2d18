// Package family lets IPv4 and IPv6 take the same path: whatever exists once per address family is
// a Pair, and code walks All instead of being written twice.
package family

import (
	"fmt"
	"net/netip"
)

// A Family is an IP address family.
type Family uint8

// The two families, in the order in which they are always listed.
const (
	V4 Family = iota
	V6
)

// All lists the families.
func All() [2]Family { return [2]Family{V4, V6} }

// Of returns the family of a, which must be valid. An IPv4-mapped IPv6 address counts as IPv6.
func Of(a netip.Addr) Family {
	if a.Is4() {
		return V4
	}
	return V6
}

// String returns "IPv4" or "IPv6".
func (f Family) String() string {
	if f == V4 {
		return "IPv4"
	}
	return "IPv6"
}

// Bits returns the length of an address in bits.
func (f Family) Bits() int {
	if f == V4 {
		return 32
	}
	return 128
}

// MarshalText and String agree, so a Family reads the same in JSON, logs and metrics.
func (f Family) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (f *Family) UnmarshalText(text []byte) error {
	for _, g := range All() {
		if g.String() == string(text) {
			*f = g
			return nil
		}
	}
	return fmt.Errorf("%q is not an address family", text)
}

// A Pair holds one T per family.
type Pair[T any] struct {
	V4, V6 T
}

// Of returns the T of family f.
func (p Pair[T]) Of(f Family) T {
	if f == V4 {
		return p.V4
	}
	return p.V6
}

// Ref returns a pointer to the T of family f.
func (p *Pair[T]) Ref(f Family) *T {
	if f == V4 {
		return &p.V4
	}
	return &p.V6
}
