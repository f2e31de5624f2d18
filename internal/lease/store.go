package lease

import (
	"context"
	"net/netip"

	"github.com/weftnet/weft/internal/family"
)

// Self is what a node asks a store for, and says of itself.
type Self struct {
	// ID tells this node from every other one: two live nodes with one public address have different
	// IDs, one node keeps its ID over restarts.
	ID      string
	Node    string // name of the node for people; may be empty
	Public  family.Pair[netip.Addr]
	Receive []Receiver
	Send    []Key
	Serial  uint64
	Network family.Pair[Network]      // zero: family off
	Prior   family.Pair[netip.Prefix] // subnets held before, from subnet.env; asked for again when free
}

// A Store keeps the leases of one network. All methods wait for the store as long as it takes, or
// until ctx ends; they bound each single request.
type Store interface {
	// WatchConfig calls f with the raw network configuration, now and after every change.
	WatchConfig(ctx context.Context, f func(raw []byte)) error

	// Recall returns the lease that the store remembers for self, if any, without changing anything.
	Recall(ctx context.Context, self Self) (Lease, bool, error)

	// Acquire leases subnets to self and publishes its attributes, keeping the subnets it held before
	// where they still fit. Calling it again republishes changed attributes under the same subnets. A
	// refusal that waiting does not mend is ErrFull, *InUseError, or an error that says what to do. It is a
	// *NotYetError where others hand out the subnets and have not done so yet.
	Acquire(ctx context.Context, self Self) (Lease, error)

	// Hold keeps an acquired lease alive until ctx ends or the lease is no longer ours, which is
	// ErrLost: whoever asked for it acquires again.
	Hold(ctx context.Context, self Self, held Lease) error

	// Watch calls f with the complete set of leases (our own included), now and after every change, until
	// ctx ends. It does not call f before the set is complete. One entry that does not parse is logged
	// once, counted and left out; a read that fails is tried again, and never taken for absence.
	Watch(ctx context.Context, f func([]Lease)) error
}
