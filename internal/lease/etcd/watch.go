package etcd

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/sync/errgroup"

	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/storehealth"
)

// minGap is the least time between two sets handed over: 5,000 leases written at once make some dozens
// of sets, not 5,000. The first change after a quiet time goes out at once.
const minGap = 10 * time.Millisecond

// Watch implements lease.Store. A change that leaves every lease as it is, such as a renewal, is none.
func (s *Store) Watch(ctx context.Context, f func([]lease.Lease)) error {
	set := newSet(s)
	g, ctx := errgroup.WithContext(ctx)
	for i, r := range s.keys.trees() {
		g.Go(func() error { return s.follow(ctx, "watch leases in "+r.first, r, set.feed(i)) })
	}
	g.Go(func() error { return set.deliver(ctx, f) })
	return g.Wait()
}

// A set keeps the leases of all trees as etcd has them.
type set struct {
	store *Store
	wake  chan struct{} // capacity 1: the set changed

	mu    sync.Mutex // guards what follows
	trees [2]tree
	bad   *badKeys
}

// A tree is one range of lease keys.
type tree struct {
	complete bool
	leases   map[string]lease.Lease // by key
}

func newSet(s *Store) *set {
	return &set{store: s, wake: make(chan struct{}, 1), bad: newBadKeys(s)}
}

// feed returns the feed of tree i. A listing is gathered aside and takes the place of the tree when it is
// complete, so a failing one changes nothing.
func (s *set) feed(i int) feed {
	return feed{
		list: func() (func(*mvccpb.KeyValue), func(int64)) {
			fresh, listed := map[string]lease.Lease{}, map[string]bool{}
			add := func(kv *mvccpb.KeyValue) {
				key := string(kv.Key)
				listed[key] = true
				if l, ok := s.read(kv); ok {
					fresh[key] = l
				}
			}
			return add, func(int64) { s.replace(i, fresh, listed) }
		},
		event:  func(e *mvccpb.Event) { s.event(i, e) },
		synced: func(revision int64) { s.synced(i, revision) },
		stopped: func(err error) bool {
			s.store.health.Count(func(t *storehealth.Stats) {
				t.WatchRestarts++
				t.Connected = t.Connected && i != 0
			})
			return !s.denied(i, err)
		},
	}
}

// read decodes one entry; a bad one is noted and left out.
func (s *set) read(kv *mvccpb.KeyValue) (lease.Lease, bool) {
	l, err := s.store.keys.entry(kv)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.bad.add(kv, err)
		return lease.Lease{}, false
	}
	s.bad.remove(string(kv.Key))
	return l, true
}

// replace puts a complete listing in the place of tree i.
func (s *set) replace(i int, fresh map[string]lease.Lease, listed map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.trees[i]
	same := t.complete && len(t.leases) == len(fresh)
	for key, l := range fresh {
		old, ok := t.leases[key]
		same = same && ok && old.Equal(l)
	}
	s.bad.keep(s.store.keys.trees()[i], listed)
	t.leases, t.complete = fresh, true
	if i == 0 {
		s.store.health.Count(func(t *storehealth.Stats) { t.Lists++ })
	}
	if !same {
		s.changed()
	}
}

// event applies one change to tree i.
func (s *set) event(i int, e *mvccpb.Event) {
	key := string(e.Kv.Key)
	var l lease.Lease
	put := false
	if e.Type == mvccpb.Event_PUT {
		l, put = s.read(e.Kv)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, had := s.trees[i].leases[key]
	if put {
		s.trees[i].leases[key] = l
	} else {
		delete(s.trees[i].leases, key)
	}
	if e.Type == mvccpb.Event_DELETE {
		s.bad.remove(key)
	}
	if put != had || put && !l.Equal(old) {
		s.changed()
	}
}

func (s *set) synced(i int, revision int64) {
	if i != 0 {
		return
	}
	s.store.health.Count(func(t *storehealth.Stats) { t.Connected, t.Revision, t.LastSync = true, revision, time.Now() })
}

// denied says whether err is no trouble: a role with the rights that the original needs cannot read our
// own tree, and where nobody may write there it is empty.
func (s *set) denied(i int, err error) bool {
	if i == 0 || !errors.Is(err, rpctypes.ErrPermissionDenied) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := &s.trees[i]; !t.complete {
		t.complete, t.leases = true, map[string]lease.Lease{}
		s.changed()
	}
	return true
}

// changed asks for a delivery, once there is something to deliver.
func (s *set) changed() {
	for _, t := range s.trees {
		if !t.complete {
			return
		}
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// deliver hands over the set after every change, if complete.
func (s *set) deliver(ctx context.Context, f func([]lease.Lease)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		}
		start := time.Now()
		leases, ok := s.leases()
		if !ok {
			continue
		}
		s.store.health.Count(func(t *storehealth.Stats) { t.Leases = len(leases) })
		f(leases)
		if err := storehealth.Sleep(ctx, max(minGap, time.Since(start))); err != nil {
			return err
		}
	}
}

// leases returns the complete set in order. Of several keys with the same subnets, which only a stray key
// brings about, the one that a node would write counts.
func (s *set) leases() ([]lease.Lease, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.wake: // what has changed until now is about to be handed over
	default:
	}
	all := make([]lease.Lease, 0, len(s.trees[0].leases)+len(s.trees[1].leases))
	for _, t := range s.trees {
		if !t.complete {
			return nil, false
		}
		var stray []string
		for key, l := range t.leases {
			if key == s.store.keys.lease(l.Subnet) {
				all = append(all, l)
			} else {
				stray = append(stray, key)
			}
		}
		all = append(all, chooseStray(t.leases, stray, s.store.keys)...)
	}
	slices.SortFunc(all, lease.Compare)
	return all, true
}

// chooseStray returns the leases under keys that no node would write, unless the proper key of their
// subnets is there too; of several with the same subnets, the first in key order.
func chooseStray(leases map[string]lease.Lease, stray []string, k keys) []lease.Lease {
	var chosen []lease.Lease
	seen := map[string]bool{}
	slices.Sort(stray)
	for _, key := range stray {
		proper := k.lease(leases[key].Subnet)
		if _, ok := leases[proper]; !ok && !seen[proper] {
			seen[proper] = true
			chosen = append(chosen, leases[key])
		}
	}
	return chosen
}

// WatchConfig implements lease.Store. While there is no configuration it says so once and waits; when it
// is deleted, the last one stays in force.
func (s *Store) WatchConfig(ctx context.Context, f func(raw []byte)) error {
	var last []byte
	told := false
	see := func(raw []byte) {
		told = false
		if last == nil || !bytes.Equal(raw, last) {
			last = append([]byte{}, raw...)
			f(raw)
		}
	}
	absent := func() {
		if told {
			return
		}
		told = true
		if last == nil {
			s.log.Info("no network configuration yet, waiting for it", "key", s.keys.config())
		} else {
			s.log.Warn("network configuration was deleted, keeping the last one", "key", s.keys.config())
		}
	}
	return s.follow(ctx, "watch configuration", keyRange{first: s.keys.config()}, feed{
		list: func() (func(*mvccpb.KeyValue), func(int64)) {
			found := false
			add := func(kv *mvccpb.KeyValue) {
				found = true
				see(kv.Value)
			}
			return add, func(int64) {
				if !found {
					absent()
				}
			}
		},
		event: func(e *mvccpb.Event) {
			if e.Type == mvccpb.Event_PUT {
				see(e.Kv.Value)
			} else {
				absent()
			}
		},
		synced: func(int64) {},
		stopped: func(error) bool {
			s.health.Count(func(t *storehealth.Stats) { t.WatchRestarts++ })
			return true
		},
	})
}
