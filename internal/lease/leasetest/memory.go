// Package leasetest holds the suite that every lease.Store passes, and a store in memory that passes it
// too: it loses, expires and cuts off as the real ones do.
package leasetest

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
)

// A Memory is a store in memory which the nodes of a cluster share. Each node opens it with Node.
type Memory struct {
	mu      sync.Mutex // guards what follows
	config  []byte     // nil: absent
	leases  map[subnets]entry
	alive   map[netip.Addr]sign // by public address
	down    bool
	changed chan struct{} // closed at every change
}

type subnets = family.Pair[netip.Prefix]

type entry struct {
	lease    lease.Lease
	reserved bool
}

// A sign of life says which node announces a public address. It begins with Acquire and ends with the
// last Hold, or with Forget.
type sign struct {
	id    string
	holds int
}

// A Node is the store as one node sees it.
type Node struct {
	mem  *Memory
	cut  bool        // guarded by mem.mu
	mine lease.Lease // what the node published last; guarded by mem.mu
}

var _ lease.Store = (*Node)(nil)

// NewMemory returns an empty store: no configuration, no leases.
func NewMemory() *Memory {
	return &Memory{
		leases:  map[subnets]entry{},
		alive:   map[netip.Addr]sign{},
		changed: make(chan struct{}),
	}
}

// Node opens the store for one node.
func (m *Memory) Node() *Node { return &Node{mem: m} }

// SetConfig sets the network configuration; nil deletes it.
func (m *Memory) SetConfig(raw []byte) { m.change(func() { m.config = raw }) }

// Put writes a lease as someone else would: a peer, or an operator by hand.
func (m *Memory) Put(l lease.Lease) { m.put(l, false) }

// Reserve writes a lease that never expires.
func (m *Memory) Reserve(l lease.Lease) { m.put(l, true) }

func (m *Memory) put(l lease.Lease, reserved bool) {
	m.change(func() { m.leases[l.Subnet] = entry{l, reserved} })
}

// Expire removes the lease of subnets, as its running out or a delete by hand does.
func (m *Memory) Expire(subnet family.Pair[netip.Prefix]) {
	m.change(func() { delete(m.leases, subnet) })
}

// Forget ends the sign of life with a public address, as the death of its node does after a while.
func (m *Memory) Forget(public netip.Addr) { m.change(func() { delete(m.alive, public) }) }

// SetDown takes the store down for all nodes, or brings it back: calls wait, watches see nothing.
func (m *Memory) SetDown(down bool) { m.change(func() { m.down = down }) }

// Backup returns a function that sets the store back to what it is now.
func (m *Memory) Backup() (restore func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	config, leases := m.config, maps.Clone(m.leases)
	return func() { m.change(func() { m.config, m.leases = config, leases }) }
}

// Cut cuts this node off from the store, or joins it again.
func (n *Node) Cut(cut bool) { n.mem.change(func() { n.cut = cut }) }

// Leases returns all leases in order.
func (m *Memory) Leases() []lease.Lease {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sorted()
}

// Reserved says whether subnets have a lease that never expires.
func (m *Memory) Reserved(subnet family.Pair[netip.Prefix]) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leases[subnet].reserved
}

func (m *Memory) sorted() []lease.Lease {
	all := make([]lease.Lease, 0, len(m.leases))
	for _, e := range m.leases {
		l := e.lease
		l.Receive = slices.Clone(l.Receive)
		all = append(all, l)
	}
	slices.SortFunc(all, lease.Compare)
	return all
}

func (m *Memory) change(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	m.wake()
}

func (m *Memory) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// each calls f, with the lock held, now and after every change while the store can be reached, until f
// says that it is done or ctx ends.
func (n *Node) each(ctx context.Context, f func() (done bool, err error)) error {
	for {
		n.mem.mu.Lock()
		changed := n.mem.changed
		if ctx.Err() == nil && !n.mem.down && !n.cut {
			if done, err := f(); done || err != nil {
				n.mem.mu.Unlock()
				return err
			}
		}
		n.mem.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// WatchConfig implements lease.Store.
func (n *Node) WatchConfig(ctx context.Context, f func(raw []byte)) error {
	var last []byte
	for {
		err := n.each(ctx, func() (bool, error) {
			if n.mem.config == nil || last != nil && slices.Equal(last, n.mem.config) {
				return false, nil
			}
			last = append([]byte{}, n.mem.config...)
			return true, nil
		})
		if err != nil {
			return err
		}
		f(slices.Clone(last))
	}
}

// Watch implements lease.Store.
func (n *Node) Watch(ctx context.Context, f func([]lease.Lease)) error {
	var last []lease.Lease
	for {
		err := n.each(ctx, func() (bool, error) {
			now := n.mem.sorted()
			if last != nil && slices.EqualFunc(last, now, lease.Lease.Equal) {
				return false, nil
			}
			last = now
			return true, nil
		})
		if err != nil {
			return err
		}
		f(slices.Clone(last))
	}
}

func (n *Node) entries(self lease.Self) []lease.Entry {
	f := self.Primary()
	var es []lease.Entry
	for _, l := range n.mem.sorted() {
		mine := l.Public.Of(f) == self.Public.Of(f) || n.mine.Has(f) && l.Equal(n.mine)
		es = append(es, lease.Entry{Lease: l, Mine: mine, Reserved: n.mem.leases[l.Subnet].reserved})
	}
	return es
}

// Recall implements lease.Store.
func (n *Node) Recall(ctx context.Context, self lease.Self) (l lease.Lease, found bool, err error) {
	err = n.each(ctx, func() (bool, error) {
		l, found = lease.Recall(self, n.entries(self))
		return true, nil
	})
	return l, found, err
}

// Acquire implements lease.Store.
func (n *Node) Acquire(ctx context.Context, self lease.Self) (lease.Lease, error) {
	var got lease.Lease
	err := n.each(ctx, func() (bool, error) {
		if err := self.Check(); err != nil {
			return true, err
		}
		if id, ok := n.other(self); ok {
			return true, &lease.InUseError{Public: self.Public.Of(self.Primary()), Holder: id}
		}
		public := self.Public.Of(self.Primary())
		n.mem.alive[public] = sign{self.ID, n.mem.alive[public].holds}
		entries := n.entries(self)
		c, err := lease.Choose(self, entries, 100, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
		if err != nil {
			return true, err
		}
		for _, i := range c.Drop {
			delete(n.mem.leases, entries[i].Subnet)
		}
		got = lease.Lease{Subnet: c.Subnet, Public: self.Public, Receive: slices.Clone(self.Receive), Send: self.Send, Serial: self.Serial}
		n.mine = got
		n.mem.leases[c.Subnet] = entry{got, c.Reserved}
		n.mem.wake()
		return true, nil
	})
	if err != nil {
		return lease.Lease{}, fmt.Errorf("acquire lease: %w", err)
	}
	got.Node = self.Node
	return got, nil
}

// other returns the ID of another live node with self's public address.
func (n *Node) other(self lease.Self) (string, bool) {
	s, ok := n.mem.alive[self.Public.Of(self.Primary())]
	return s.id, ok && s.id != self.ID
}

// Hold implements lease.Store.
func (n *Node) Hold(ctx context.Context, self lease.Self, held lease.Lease) error {
	f := self.Primary()
	public := self.Public.Of(f)
	n.mem.change(func() {
		if _, ok := n.other(self); !ok {
			n.mem.alive[public] = sign{self.ID, n.mem.alive[public].holds + 1}
		}
	})
	defer n.mem.change(func() { n.mem.silence(public, self.ID) })
	return n.each(ctx, func() (bool, error) {
		if id, ok := n.other(self); ok {
			return true, fmt.Errorf("%w: public address %s is announced by %s", lease.ErrLost, public, id)
		}
		want := held
		if n.mine.SameSubnets(held) {
			want = n.mine
		}
		want.Node = ""
		e, ok := n.mem.leases[held.Subnet]
		switch {
		case !ok:
			return true, fmt.Errorf("%w: %s is gone", lease.ErrLost, lease.Name(held.Subnet))
		case e.lease.Public.Of(f) != want.Public.Of(f):
			return true, fmt.Errorf("%w: %s is now the lease of %s", lease.ErrLost, lease.Name(held.Subnet), e.lease.Public.Of(f))
		case !e.lease.Equal(want):
			n.mem.leases[held.Subnet] = entry{want, e.reserved}
			n.mem.wake()
		}
		return false, nil
	})
}

// silence ends one Hold's part of the sign of life with a public address.
func (m *Memory) silence(public netip.Addr, id string) {
	switch s := m.alive[public]; {
	case s.id != id:
	case s.holds > 1:
		m.alive[public] = sign{id, s.holds - 1}
	default:
		delete(m.alive, public)
	}
}
