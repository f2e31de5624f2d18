// Package ranges holds lists of prefixes as values: a List never changes and is compared with ==, and so are the
// structs that hold one.
package ranges

import (
	"iter"
	"net/netip"
	"slices"
	"strings"
)

// A List is a list of prefixes in order. The zero List is empty.
type List struct {
	text string // as String returns it: a slice would not be comparable
}

// Of returns the list of ps, masked. What is not valid is left out.
func Of(ps ...netip.Prefix) List {
	var texts []string
	for _, p := range ps {
		if p.IsValid() {
			texts = append(texts, p.Masked().String())
		}
	}
	return List{strings.Join(texts, ",")}
}

// String returns the prefixes with commas between them, as subnet.env has them.
func (l List) String() string { return l.text }

// Equal is ==, for those who look for a method.
func (l List) Equal(o List) bool { return l == o }

// Empty says whether there is nothing in the list.
func (l List) Empty() bool { return l.text == "" }

// All walks through the list.
func (l List) All() iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		if l.Empty() {
			return
		}
		for text := range strings.SplitSeq(l.text, ",") {
			if !yield(netip.MustParsePrefix(text)) {
				return
			}
		}
	}
}

// Prefixes returns what is in the list, nil if it is empty. The slice is the caller's.
func (l List) Prefixes() []netip.Prefix { return slices.Collect(l.All()) }

// Contains says whether a lies in one of the prefixes.
func (l List) Contains(a netip.Addr) bool {
	for p := range l.All() {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
