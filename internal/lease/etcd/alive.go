package etcd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/storehealth"
)

// A node that runs keeps the key alive/<public address> with its ID. Leases go by public address alone, so
// a second node with that address would take over the first one's; the key tells that the first one lives.
// It runs out soon after its node, so a machine that was set up anew is let in.
type aliveValue struct {
	ID   string `json:"id"`
	Node string `json:"node,omitempty"`
}

// An occupant is the node that an alive key names.
type occupant struct {
	aliveValue
	revision int64 // of the key's last write
	lease    clientv3.LeaseID
}

func isDenied(err error) bool { return errors.Is(err, rpctypes.ErrPermissionDenied) }

// publicOf returns the address that self's leases go by.
func publicOf(self lease.Self) netip.Addr { return self.Public.Of(self.Primary()) }

// claimAddress makes sure that no other live node has self's public address. Where another one is written
// down it waits until that one shows a sign of life, which is *lease.InUseError, or runs out.
func (s *Store) claimAddress(ctx context.Context, self lease.Self) error {
	var life lifeSigns
	return s.retry(ctx, "claim public address", func(ctx context.Context) error {
		for {
			other, err := s.announce(ctx, self, 0)
			if isDenied(err) {
				s.warnDenied(self)
				return nil
			}
			if err != nil || other == nil {
				return err
			}
			left, _, err := s.lifetime(ctx, other.lease)
			if err != nil {
				return err
			}
			if life.seen(*other, left, time.Now()) {
				return final{&lease.InUseError{Public: publicOf(self), Holder: cmp.Or(other.Node, other.ID)}}
			}
			s.log.Debug("another node was alive with our public address a moment ago", "holder", other.ID, "left", left)
			if err := storehealth.Sleep(ctx, time.Second); err != nil {
				return err
			}
		}
	})
}

// lifeSigns watches whether the node behind an alive key still renews it.
type lifeSigns struct {
	last occupant
	left time.Duration
	ends time.Time // when the key runs out unless it is renewed
}

// seen says whether o has renewed its key since the first look: it was written again, has longer to live
// than before, or outlived what it had then. etcd counts in whole seconds.
func (l *lifeSigns) seen(o occupant, left time.Duration, now time.Time) bool {
	if l.ends.IsZero() {
		l.last, l.left, l.ends = o, left, now.Add(left+2*time.Second)
		return false
	}
	renewed := o != l.last || left > l.left || now.After(l.ends)
	l.last, l.left = o, left
	return renewed
}

// announce makes self's alive key with a new etcd lease, unless it names another node, which it returns.
// With id 0 a key that names self already is left alone.
func (s *Store) announce(ctx context.Context, self lease.Self, id clientv3.LeaseID) (*occupant, error) {
	key := s.keys.alive(publicOf(self))
	value, err := json.Marshal(aliveValue{self.ID, self.Node})
	if err != nil {
		return nil, final{err}
	}
	var revision int64
	holder, err := s.occupant(ctx, key)
	switch {
	case err != nil:
		return nil, err
	case holder != nil && holder.ID != "" && holder.ID != self.ID:
		return holder, nil
	case holder != nil && holder.ID != "" && id == 0:
		return nil, nil
	case holder != nil:
		revision = holder.revision
	}
	if id == 0 {
		if id, err = s.grant(ctx, s.cfg.LivenessTTL); err != nil {
			return nil, err
		}
	}
	err = s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).
			Then(clientv3.OpPut(key, string(value), clientv3.WithLease(id))).Commit()
		if err == nil && !resp.Succeeded {
			return errors.New("another node announced the address at the same moment")
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", key, err)
	}
	return nil, nil
}

// occupant returns the node that key names, or nil. A value that does not parse names nobody.
func (s *Store) occupant(ctx context.Context, key string) (*occupant, error) {
	var resp *clientv3.GetResponse
	err := s.request(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		resp, err = c.Get(ctx, key)
		return err
	})
	if err != nil || len(resp.Kvs) == 0 {
		return nil, err
	}
	kv := resp.Kvs[0]
	o := occupant{revision: kv.ModRevision, lease: clientv3.LeaseID(kv.Lease)}
	if json.Unmarshal(kv.Value, &o.aliveValue) != nil || kv.Lease == 0 {
		o.aliveValue = aliveValue{}
	}
	return &o, nil
}

// keepAlive keeps self's alive key until ctx ends. It returns lease.ErrLost when the key names another
// node: this one was cut off for so long that the other took its place.
func (s *Store) keepAlive(ctx context.Context, self lease.Self) error {
	for ctx.Err() == nil {
		err := s.retry(ctx, "keep public address", func(ctx context.Context) error { return s.keepAliveOnce(ctx, self) })
		switch {
		case isDenied(err):
			s.warnDenied(self)
			<-ctx.Done()
		case err != nil:
			return err
		}
	}
	return ctx.Err()
}

// keepAliveOnce announces self and renews that until the renewal ends.
func (s *Store) keepAliveOnce(ctx context.Context, self lease.Self) error {
	id, err := s.grant(ctx, s.cfg.LivenessTTL)
	if err != nil {
		return err
	}
	other, err := s.announce(ctx, self, id)
	if isDenied(err) {
		return final{err}
	}
	if err != nil {
		return err
	}
	if other != nil {
		return final{fmt.Errorf("%w: public address %s is announced by %q", lease.ErrLost, publicOf(self), cmp.Or(other.Node, other.ID))}
	}
	s.health.Worked("keep public address")
	// One request at a time: the client's own KeepAlive wakes up several times a second.
	for {
		if err := storehealth.Sleep(ctx, s.cfg.LivenessTTL/3); err != nil {
			return err
		}
		err := s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.KeepAliveOnce(ctx, id)
			return err
		})
		if err != nil {
			return fmt.Errorf("renew: %w", err)
		}
	}
}

// warnDenied says once that the check for a second node is off.
func (s *Store) warnDenied(self lease.Self) {
	s.deniedOnce.Do(func() {
		s.log.Warn("etcd does not let us read and write our sign of life, so a second node with our public address will not be noticed",
			"key", s.keys.alive(publicOf(self)))
	})
}
