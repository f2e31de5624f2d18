// Package lease holds the values that nodes share with each other: a network, the subnet that a node
// holds of it, and how its peers reach it. It opens nothing and reads no clock; the stores below it do.
package lease

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"

	"github.com/weftnet/weft/internal/family"
)

// ErrTaken means that another node holds the subnet; the caller picks another one.
var ErrTaken = errors.New("subnet is taken")

// ErrFull means that no subnet of the network is free.
var ErrFull = errors.New("network is full")

// A Lease is a node's slice of the network and how peers reach the node. A family that the node
// does not have is zero in both Subnet and Public.
type Lease struct {
	Node   string // name of the node for people; empty where the store knows none
	Subnet family.Pair[netip.Prefix]
	Public family.Pair[netip.Addr] // where peers send to, on the underlay

	// Receive lists what the node receives on. Its first entry is what the original's peers read as
	// BackendType and BackendData, and the only one that the original has; it has no Key then.
	Receive []Receiver

	// Send lists what the node may send on, the preferred one first. A node sends on nothing that it has
	// not published here before, and nobody stops receiving on what somebody has in this list.
	Send []Key

	// Serial counts what the node has published in Receive and Send: who sees it sees what came before it too.
	Serial uint64

	// Refused says why the store does not believe the claim, empty if it does: nothing is sent to such a
	// lease, which is in the set so that it can be named.
	Refused string
}

// A Key names one way to carry packets: the backend and the parameters that both ends must share, such as
// "vxlan/1/8472". Keys are compared, and only their own backend looks into them. The Key of another node is
// hostile until its backend has parsed it.
type Key string

// A Receiver is one backend that a node receives on, with what a sender needs to know.
type Receiver struct {
	Key  Key    // empty: the node runs the original, which says only Type and Data
	Type string // backend name as on the wire; empty for backends that publish none (udp, alloc)

	// Data is the backend's JSON text per family as its peers read it, "" where there is none. It comes
	// from a peer: hostile until the backend has parsed it.
	Data family.Pair[string]
}

// Has says whether the lease takes part in family f.
func (l Lease) Has(f family.Family) bool { return l.Subnet.Of(f).IsValid() }

// SameSubnets says whether l and o hold the same subnets, which is what makes them one lease.
func (l Lease) SameSubnets(o Lease) bool { return l.Subnet == o.Subnet }

// Equal compares every field.
func (l Lease) Equal(o Lease) bool {
	return l.Node == o.Node && l.Subnet == o.Subnet && l.Public == o.Public && slices.Equal(l.Receive, o.Receive) &&
		slices.Equal(l.Send, o.Send) && l.Serial == o.Serial && l.Refused == o.Refused
}

// Receiver returns the receiver with key k, if the node has one.
func (l Lease) Receiver(k Key) (Receiver, bool) {
	for _, r := range l.Receive {
		if r.Key == k {
			return r, true
		}
	}
	return Receiver{}, false
}

// Original says whether the node that published the lease knows no keys: it has one backend, receives and
// sends on that one, and is told what it reads of ours, in the first receiver.
func (l Lease) Original() bool { return len(l.Receive) == 0 || l.Receive[0].Key == "" }

// Compare orders leases by subnet, IPv4 first.
func Compare(a, b Lease) int {
	if c := a.Subnet.V4.Compare(b.Subnet.V4); c != 0 {
		return c
	}
	return a.Subnet.V6.Compare(b.Subnet.V6)
}

// A NotYetError says that there is no subnet for this node until somebody does something.
type NotYetError struct {
	Reason  string          // what is missing, and who can do what about it
	Changed <-chan struct{} // closed when asking again makes sense
}

func (e *NotYetError) Error() string { return e.Reason }

// ErrLost means that a lease that was held is gone or is another node's.
var ErrLost = errors.New("lease is lost")

// An InUseError says that another live node announces our public address.
type InUseError struct {
	Public netip.Addr
	Holder string // the other node's ID or name
}

func (e *InUseError) Error() string {
	return "public address " + e.Public.String() + " is announced by another live node (" + strconv.Quote(e.Holder) +
		"): give each node an address of its own, or choose another with --iface or --public-ip"
}
