package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/storehealth"
)

// leaseTTL is the lifetime of a lease key after each write, the original's.
const leaseTTL = 24 * time.Hour

// window is from how many free subnets one is chosen. It doubles with every collision, since many nodes
// that start at once would fight over the first hundred.
const window = 100

// A listing is the leases as of one revision.
type listing struct {
	entries []lease.Entry
	own     map[int]*mvccpb.KeyValue // of self's entries, by index; without values
}

// A recalled is the listing that Recall has made, for the Acquire that follows it: with thousands of leases it is most of
// what either costs. A choice that rests on a listing is written only if nothing has come between, however old it is.
type recalled struct {
	listing listing
	public  family.Pair[netip.Addr] // whose entries are marked as own
	primary family.Family
	made    time.Time
}

// recalledFor is for how long it is worth trying.
const recalledFor = 2 * time.Second

// takeRecalled returns the listing that Recall has made for self just now, once.
func (s *Store) takeRecalled(self lease.Self) (listing, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.recalled
	s.recalled = nil
	if r == nil || r.public != self.Public || r.primary != self.Primary() || time.Since(r.made) > recalledFor {
		return listing{}, false
	}
	return r.listing, true
}

// entries lists the leases of all trees and marks those of self, which alone are complete: of the others
// nothing but subnets and addresses is read.
func (s *Store) entries(ctx context.Context, self lease.Self) (listing, error) {
	l := listing{own: map[int]*mvccpb.KeyValue{}}
	f := self.Primary()
	s.mu.Lock()
	held := s.mine
	s.mu.Unlock()
	trees := s.keys.trees()
	if f == family.V6 {
		trees[0], trees[1] = trees[1], trees[0] // the tree that self's lease is in comes first
	}
	for i, r := range trees {
		_, err := s.list(ctx, r, func(kv *mvccpb.KeyValue) {
			subnet, ok := s.keys.parse(string(kv.Key))
			if !ok {
				return
			}
			// With a bad value it is nobody's, and in the way all the same.
			e := lease.Entry{Lease: lease.Lease{Subnet: subnet, Public: publicIn(kv.Value)}, Reserved: kv.Lease == 0}
			if i == 0 && (e.Public.Of(f) == self.Public.Of(f) || held.key == string(kv.Key) && held.revision == kv.ModRevision) {
				e.Mine = true
				if full, err := decode(subnet, kv.Value); err == nil {
					e.Lease = full
				}
				kv.Value = nil
				l.own[len(l.entries)] = kv
			}
			l.entries = append(l.entries, e)
		})
		if err != nil && !(i == 1 && isDenied(err)) {
			return listing{}, fmt.Errorf("list leases: %w", err)
		}
	}
	return l, nil
}

// Recall implements lease.Store.
func (s *Store) Recall(ctx context.Context, self lease.Self) (lease.Lease, bool, error) {
	var l listing
	err := s.retry(ctx, "recall lease", func(ctx context.Context) (err error) {
		l, err = s.entries(ctx, self)
		return err
	})
	if err != nil {
		return lease.Lease{}, false, err
	}
	former, found := lease.Recall(self, l.entries)
	s.mu.Lock()
	s.recalled = &recalled{l, self.Public, self.Primary(), time.Now()}
	s.mu.Unlock()
	return former, found, nil
}

// Acquire implements lease.Store. A running Hold of the same lease takes the new attributes over.
func (s *Store) Acquire(ctx context.Context, self lease.Self) (lease.Lease, error) {
	if err := self.Check(); err != nil {
		return lease.Lease{}, fmt.Errorf("acquire lease: %w", err)
	}
	if err := s.claimAddress(ctx, self); err != nil {
		return lease.Lease{}, fmt.Errorf("acquire lease: %w", err)
	}
	r := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	if list, ok := s.takeRecalled(self); ok {
		if got, err := s.take(ctx, self, list, window, r); err == nil {
			return got, nil
		}
	}
	collisions := 0
	var got lease.Lease
	err := s.retry(ctx, "acquire lease", func(ctx context.Context) error {
		for {
			var err error
			if got, err = s.try(ctx, self, window<<min(collisions, 12), r); !errors.Is(err, lease.ErrTaken) {
				return err
			}
			s.log.Info("subnet was taken by another node meanwhile, choosing again", "err", err)
			collisions++
			if err := storehealth.Sleep(ctx, time.Duration(r.Int64N(int64(10*time.Millisecond)<<min(collisions, 6)))); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return lease.Lease{}, fmt.Errorf("acquire lease: %w", err)
	}
	return got, nil
}

// try makes one attempt with a listing of its own. The error is lease.ErrTaken when another node came between.
func (s *Store) try(ctx context.Context, self lease.Self, window int, r *rand.Rand) (lease.Lease, error) {
	list, err := s.entries(ctx, self)
	if err != nil {
		return lease.Lease{}, err
	}
	return s.take(ctx, self, list, window, r)
}

// take chooses from a listing and writes. The error is lease.ErrTaken when another node came between.
func (s *Store) take(ctx context.Context, self lease.Self, list listing, window int, r *rand.Rand) (lease.Lease, error) {
	c, err := lease.Choose(self, list.entries, window, r)
	if err != nil {
		return lease.Lease{}, final{err}
	}
	w, err := s.newWrite(self, c.Subnet)
	if err != nil {
		return lease.Lease{}, final{err}
	}
	w.reserved = c.Reserved
	if c.Keep >= 0 && string(list.own[c.Keep].Key) == w.key {
		w.revision = list.own[c.Keep].ModRevision
	}
	for _, i := range c.Drop {
		w.drop = append(w.drop, list.own[i])
	}
	if _, err := s.write(ctx, w); err != nil {
		return lease.Lease{}, err
	}
	if w.revision == 0 {
		err := s.retry(ctx, "verify lease", func(ctx context.Context) error { return s.verify(ctx, self, w) })
		if err != nil {
			return lease.Lease{}, err
		}
	}
	l := w.lease
	l.Node = self.Node
	return l, nil
}
