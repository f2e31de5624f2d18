package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/storehealth"
)

// rewriteGap is the least time between two writes of our own lease that others provoke: with a node that
// insists on our key there is no storm.
const rewriteGap = 10 * time.Second

// Hold implements lease.Store.
func (s *Store) Hold(ctx context.Context, self lease.Self, held lease.Lease) error {
	h := &holder{store: s, self: self, held: held, key: s.keys.lease(held.Subnet), seen: make(chan *mvccpb.KeyValue, 1)}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.follow(ctx, "watch own lease", keyRange{first: h.key}, h.feed()) })
	g.Go(func() error { return s.keepAlive(ctx, self) })
	g.Go(func() error { return h.run(ctx) })
	return g.Wait()
}

// A holder keeps one lease.
type holder struct {
	store *Store
	self  lease.Self
	held  lease.Lease
	key   string
	seen  chan *mvccpb.KeyValue // capacity 1: our key as it stands; nil: it is gone

	now     *mvccpb.KeyValue  // what was seen last
	granted clientv3.LeaseID  // of our last write
	wrote   time.Time         // when we wrote last, or tried to
	pause   storehealth.Pause // between failing writes
}

// feed passes on the key as it stands; a value that was not taken yet is out of date and goes.
func (h *holder) feed() feed {
	show := func(kv *mvccpb.KeyValue) {
		select {
		case <-h.seen:
		default:
		}
		h.seen <- kv
	}
	return feed{
		list: func() (func(*mvccpb.KeyValue), func(int64)) {
			var found *mvccpb.KeyValue
			return func(kv *mvccpb.KeyValue) { found = kv }, func(int64) { show(found) }
		},
		event: func(e *mvccpb.Event) {
			if e.Type == mvccpb.Event_PUT {
				show(e.Kv)
			} else {
				show(nil)
			}
		},
		synced: func(int64) {},
		stopped: func(error) bool {
			h.store.health.Count(func(t *storehealth.Stats) { t.WatchRestarts++ })
			return true
		},
	}
}

// run renews the lease in time, writes it again where someone changed it, and ends when it is lost.
func (h *holder) run(ctx context.Context) error {
	h.pause = storehealth.Pause{First: time.Second, Last: time.Minute}
	due := time.NewTimer(0)
	due.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case h.now = <-h.seen:
			h.pause.Reset()
		case <-due.C:
			if err := h.write(ctx); err != nil {
				h.store.health.Failed(ctx, "renew lease", err)
				due.Reset(h.pause.Next())
				continue
			}
			h.store.health.Worked("renew lease")
			continue // the watch shows the key as it stands now
		}
		wait, write, err := h.next(ctx)
		switch {
		case errors.Is(err, lease.ErrLost) || ctx.Err() != nil:
			return err
		case err != nil:
			h.store.health.Failed(ctx, "renew lease", err)
			wait, write = h.pause.Next(), true
		}
		if due.Stop(); write {
			due.Reset(wait)
		}
	}
}

// next says, of our key as it was seen last, when it must be written again, if ever.
func (h *holder) next(ctx context.Context) (wait time.Duration, write bool, err error) {
	if h.now == nil {
		return 0, false, fmt.Errorf("%w: %s was deleted or ran out", lease.ErrLost, h.key)
	}
	want := h.want()
	if found, err := decode(h.held.Subnet, h.now.Value); err != nil {
		h.store.log.Warn("someone wrote something else over our lease, writing it again", "key", h.key, "err", err)
		return h.gap(), true, nil
	} else if f := h.self.Primary(); found.Public.Of(f) != want.Public.Of(f) {
		return 0, false, fmt.Errorf("%w: %s is now the lease of %s", lease.ErrLost, h.key, found.Public.Of(f))
	} else if !sameAttributes(found, want) {
		h.store.log.Warn("someone changed our lease, writing it again", "key", h.key)
		return h.gap(), true, nil
	}
	if h.now.Lease == 0 {
		return 0, false, nil // a reservation
	}
	left, total := leaseTTL, leaseTTL
	if id := clientv3.LeaseID(h.now.Lease); id != h.granted {
		if left, total, err = h.store.lifetime(ctx, id); err != nil {
			return 0, false, err
		}
	}
	return max(renewIn(left, total, h.store.cfg.RenewMargin), h.gap()), true, nil
}

// renewIn returns when to renew an etcd lease that lives left of total: after a third, so that an outage
// of hours does no harm, and at the latest when margin is left. Jitter spreads nodes that started at once.
func renewIn(left, total, margin time.Duration) time.Duration {
	return max(left-max(margin, storehealth.Jitter(total*2/3, 0.1)), 0)
}

// gap returns how long the next write must wait because of the last one.
func (h *holder) gap() time.Duration {
	if h.wrote.IsZero() {
		return 0
	}
	return max(rewriteGap-time.Since(h.wrote), 0)
}

// want returns our lease as it should stand: Acquire may have published other attributes meanwhile.
func (h *holder) want() lease.Lease {
	if l, ok := h.store.published(h.key); ok {
		return l
	}
	return h.held
}

func sameAttributes(a, b lease.Lease) bool {
	a.Node, b.Node = "", ""
	return a.Equal(b)
}

// write writes our lease over what was seen of it, with a new etcd lease unless it is a reservation. If
// the key has changed since, nothing is written: the watch shows the change.
func (h *holder) write(ctx context.Context) error {
	h.wrote = time.Now()
	want := h.want()
	value, err := encode(want)
	if err != nil {
		return err
	}
	w := write{lease: want, key: h.key, value: value, revision: h.now.ModRevision, reserved: h.now.Lease == 0}
	id, err := h.store.write(ctx, w)
	if errors.Is(err, lease.ErrTaken) {
		return nil
	}
	h.granted = id
	return err
}

// lifetime returns how long an etcd lease lives on, and its whole lifetime; both are 0 if it is gone.
func (s *Store) lifetime(ctx context.Context, id clientv3.LeaseID) (left, total time.Duration, err error) {
	err = s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.TimeToLive(ctx, id)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return nil
		}
		if err == nil {
			left = time.Duration(max(resp.TTL, 0)) * time.Second
			total = time.Duration(max(resp.GrantedTTL, 0)) * time.Second
		}
		return err
	})
	return left, total, err
}
