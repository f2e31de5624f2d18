package etcd

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
)

// A write is one write of our own lease.
type write struct {
	lease    lease.Lease // as etcd's readers will see it
	key      string
	value    []byte
	revision int64              // the key must not have changed since; 0: must not exist
	reserved bool               // write without an etcd lease
	drop     []*mvccpb.KeyValue // former keys of ours, deleted in the same step unless they changed
	number   uint64             // set by begin
}

func (s *Store) newWrite(self lease.Self, subnet family.Pair[netip.Prefix]) (write, error) {
	value, err := encode(lease.Lease{Subnet: subnet, Public: self.Public, Receive: self.Receive, Send: self.Send, Serial: self.Serial})
	if err != nil {
		return write{}, err
	}
	l, err := decode(subnet, value)
	if err != nil {
		return write{}, err
	}
	return write{lease: l, key: s.keys.lease(subnet), value: value}, nil
}

// write writes w in one step and returns the etcd lease that it hangs on. The error is lease.ErrTaken when something changed meanwhile.
func (s *Store) write(ctx context.Context, w write) (clientv3.LeaseID, error) {
	var id clientv3.LeaseID
	if !w.reserved {
		var err error
		if id, err = s.grant(ctx, leaseTTL); err != nil {
			return 0, err
		}
	}
	conds := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(w.key), "=", w.revision)}
	var ops []clientv3.Op
	for _, kv := range w.drop {
		// Deleted first: the original's nodes take events in order, and a delete of 10.5.72.0-24 after
		// the put of 10.5.72.0-24&… would cost them the route to both.
		conds = append(conds, clientv3.Compare(clientv3.ModRevision(string(kv.Key)), "=", kv.ModRevision))
		ops = append(ops, clientv3.OpDelete(string(kv.Key)))
	}
	ops = append(ops, clientv3.OpPut(w.key, string(w.value), clientv3.WithLease(id))) // ID 0: none

	s.begin(&w) // before the write: a running Hold may see its event first
	var resp *clientv3.TxnResponse
	err := s.request(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		resp, err = c.Txn(ctx).If(conds...).Then(ops...).Commit()
		return err
	})
	if err == nil && !resp.Succeeded {
		err = lease.ErrTaken
		s.revoke(ctx, id)
	}
	if err != nil {
		s.finish(&w, 0)
		return 0, fmt.Errorf("write %s: %w", w.key, err)
	}
	s.finish(&w, resp.Header.Revision)
	return id, nil
}

// verify looks whether two nodes chose overlapping subnets under different names at once, which a key that
// must not exist does not prevent: in dual stack the IPv6 part is chosen independently. The later one
// gives way.
func (s *Store) verify(ctx context.Context, self lease.Self, w write) error {
	type claim struct {
		key     string
		subnet  family.Pair[netip.Prefix]
		created int64
	}
	var others []claim
	ours := int64(0)
	for _, r := range s.keys.trees() {
		_, err := s.list(ctx, r, func(kv *mvccpb.KeyValue) {
			c := claim{key: string(kv.Key), created: kv.CreateRevision}
			var ok bool
			if c.subnet, ok = s.keys.parse(c.key); c.key == w.key {
				ours = c.created
			} else if ok && overlap(c.subnet, w.lease.Subnet, self.Network) {
				others = append(others, c)
			}
		}, clientv3.WithKeysOnly())
		if err != nil && !isDenied(err) {
			return err
		}
	}
	for _, c := range others {
		if c.created > ours {
			continue
		}
		if err := s.withdraw(ctx, w); err != nil {
			return err
		}
		return final{fmt.Errorf("%s overlaps %s: %w", w.key, c.key, lease.ErrTaken)}
	}
	return nil
}

// overlap says whether a and b, which is of the networks, overlap in any family; what holds a whole range counts for
// nothing, as in lease.Free.
func overlap(a, b family.Pair[netip.Prefix], networks family.Pair[lease.Network]) bool {
	for _, f := range family.All() {
		if p := a.Of(f); p.IsValid() && b.Of(f).IsValid() && p.Bits() > networks.Of(f).Around(b.Of(f)).Bits() && p.Overlaps(b.Of(f)) {
			return true
		}
	}
	return false
}

// withdraw deletes the key that w has just made, unless someone changed it.
func (s *Store) withdraw(ctx context.Context, w write) error {
	s.mu.Lock()
	revision := s.mine.revision
	s.mu.Unlock()
	return s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(w.key), "=", revision)).Then(clientv3.OpDelete(w.key)).Commit()
		return err
	})
}

// revoke ends an etcd lease that nothing hangs on; if that fails it runs out by itself.
func (s *Store) revoke(ctx context.Context, id clientv3.LeaseID) {
	if id == 0 {
		return
	}
	_ = s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Revoke(ctx, id)
		return err
	})
}

// grant makes an etcd lease. One whose fate a failure leaves open runs out empty.
func (s *Store) grant(ctx context.Context, ttl time.Duration) (clientv3.LeaseID, error) {
	var id clientv3.LeaseID
	err := s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Grant(ctx, int64(ttl/time.Second))
		if err == nil {
			id = resp.ID
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("grant etcd lease: %w", err)
	}
	return id, nil
}

// begin notes that w is under way.
func (s *Store) begin(w *write) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun++
	w.number = s.begun
	s.writing = append(s.writing, w)
}

// finish notes that w is over, and its revision unless it failed. Of two writes that worked, the one that began later
// replaced what the other had written, so it counts, whichever is first to hear of its success.
func (s *Store) finish(w *write, revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing = slices.DeleteFunc(s.writing, func(o *write) bool { return o == w })
	if revision != 0 && w.number > s.mine.number {
		s.mine = mine{w.lease, w.key, revision, w.number}
	}
}

// published returns the lease that this process has published under key, or is about to.
func (s *Store) published(key string) (lease.Lease, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range slices.Backward(s.writing) {
		if w.key == key {
			return w.lease, true
		}
	}
	return s.mine.lease, s.mine.key == key
}
