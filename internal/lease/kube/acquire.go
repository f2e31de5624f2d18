package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/storehealth"
)

// A publication is what the own Node's annotations should say.
type publication struct {
	lease lease.Lease
	want  map[string]*string // by name; nil: must not be there
}

// Recall implements lease.Store.
func (s *Store) Recall(ctx context.Context, _ lease.Self) (lease.Lease, bool, error) {
	n, _, err := s.own.wait(ctx)
	if err != nil || n == nil || n.annotations[backendType] == "" && !n.isMember() {
		return lease.Lease{}, false, err
	}
	// Whatever else was broken, the backend data of before keeps peers connected.
	l, _ := n.lease()
	if err := n.receivers(&l); err != nil {
		s.log.Warn("what this node published before is used in part", "err", err)
	}
	return l, true, nil
}

// Acquire implements lease.Store: the subnets are those of the own Node, and are published with the
// attributes of self. Where there are none, the error is a *lease.NotYetError.
func (s *Store) Acquire(ctx context.Context, self lease.Self) (lease.Lease, error) {
	l, err := s.acquire(ctx, self)
	if err != nil && ctx.Err() == nil {
		return lease.Lease{}, fmt.Errorf("acquire lease: %w", err)
	}
	return l, err
}

func (s *Store) acquire(ctx context.Context, self lease.Self) (lease.Lease, error) {
	if err := self.Check(); err != nil {
		return lease.Lease{}, err
	}
	n, changed, err := s.own.wait(ctx)
	if err != nil {
		return lease.Lease{}, err
	}
	subnets, err := assigned(n, self.Network)
	if err != nil {
		s.warn(ctx, n, err)
		return lease.Lease{}, &lease.NotYetError{Reason: err.Error(), Changed: changed}
	}
	l := lease.Lease{Node: n.name, Subnet: subnets, Receive: slices.Clone(self.Receive), Send: self.Send, Serial: self.Serial}
	for _, f := range family.All() {
		if l.Has(f) {
			*l.Public.Ref(f) = self.Public.Of(f)
		}
	}
	dropUnusedData(&l)
	want, err := encode(l)
	if err != nil {
		return lease.Lease{}, err
	}
	s.setMine(&publication{l, want})
	err = s.retry(ctx, "publish", func(ctx context.Context) error { return s.publish(ctx, want) })
	if isCode(err, http.StatusNotFound) {
		return lease.Lease{}, &lease.NotYetError{Reason: noNode(n.name), Changed: changed}
	}
	return l, err
}

func noNode(name string) string {
	return fmt.Sprintf("there is no Node %s: waiting for the kubelet to register it", name)
}

// assigned returns the subnets that the cluster gave the node, in the families that are on. A node that lacks
// one family of two takes part in the other.
func assigned(n *node, networks family.Pair[lease.Network]) (family.Pair[netip.Prefix], error) {
	none := family.Pair[netip.Prefix]{}
	if n == nil {
		return none, errors.New("there is no Node of this name: waiting for the kubelet to register it")
	}
	has, err := n.subnets()
	if err != nil {
		return none, fmt.Errorf("node %s: %w", n.name, err)
	}
	if has == none {
		return none, fmt.Errorf("node %s has no podCIDR: kube-controller-manager gives it one when it runs with "+
			"--allocate-node-cidrs and --cluster-cidr (kubeadm: --pod-network-cidr) and the range is not used up; "+
			`by hand: kubectl patch node %s -p '{"spec":{"podCIDR":"…"}}'`, n.name, n.name)
	}
	got := none
	for _, f := range family.All() {
		network, p := networks.Of(f), has.Of(f)
		if !network.Enabled() || !p.IsValid() {
			continue
		}
		if !network.Around(p).IsValid() {
			return none, fmt.Errorf("podCIDR %s of node %s is not inside Network %s: net-conf.json and the controller "+
				"manager's --cluster-cidr must name the same range; AdditionalNetworks can name further ones", p, n.name, network.Ranges())
		}
		*got.Ref(f) = p
	}
	if got == none {
		return none, fmt.Errorf("node %s has podCIDRs %v only, of a family that net-conf.json does not enable", n.name, n.podCIDRs)
	}
	return got, nil
}

// publish writes the annotations that differ from want, in one patch.
func (s *Store) publish(ctx context.Context, want map[string]*string) error {
	n, _, _ := s.own.now()
	if n == nil {
		return &APIError{Code: http.StatusNotFound}
	}
	d := differ(want, n.annotations)
	if len(d) == 0 {
		return nil
	}
	after, err := s.patchNode(ctx, n.name, s.keys.patch(d))
	if err != nil {
		return fmt.Errorf("write annotations of node %s: %w", n.name, err)
	}
	s.own.see(after)
	return nil
}

func (s *Store) setMine(p *publication) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mine = p
}

// wanted returns what should stand in the annotations while held is held: Acquire may have published other
// attributes meanwhile.
func (s *Store) wanted(held lease.Lease) (map[string]*string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mine != nil && s.mine.lease.SameSubnets(held) {
		return s.mine.want, nil
	}
	return encode(held)
}

// Hold implements lease.Store. There is no time to live; it writes annotations again that someone else
// changed, and ends when the Node has other subnets or is gone.
func (s *Store) Hold(ctx context.Context, self lease.Self, held lease.Lease) error {
	gap := storehealth.Pause{First: s.cfg.rewriteGap, Last: time.Minute}
	var next time.Time // when the next write that somebody provokes is due
	for {
		n, changed, err := s.own.wait(ctx)
		if err != nil {
			return err
		}
		if subnets, err := assigned(n, self.Network); err != nil {
			return fmt.Errorf("%w: %w", lease.ErrLost, err)
		} else if subnets != held.Subnet {
			return fmt.Errorf("%w: node %s has %s now, not %s", lease.ErrLost, n.name, lease.Name(subnets), lease.Name(held.Subnet))
		}
		want, err := s.wanted(held)
		if err != nil {
			return err
		}
		again := time.Duration(-1)
		if d := differ(want, n.annotations); len(d) > 0 {
			if again = time.Until(next); again <= 0 {
				if time.Since(next) > 10*time.Minute {
					gap.Reset()
				}
				next = time.Now().Add(gap.Next())
				s.rewrite(ctx, d, want)
				continue
			}
		}
		if err := await(ctx, changed, again); err != nil {
			return err
		}
	}
}

// rewrite writes annotations again that someone changed; d is what differs.
func (s *Store) rewrite(ctx context.Context, d, want map[string]*string) {
	s.log.Warn("someone changed this node's annotations, writing them again", "annotations", slices.Sorted(maps.Keys(d)))
	const op = "write annotations again"
	if err := s.publish(ctx, want); err != nil {
		s.health.Failed(ctx, op, err)
		return
	}
	s.health.Worked(op)
}

// await waits until changed is closed, d has passed unless it is negative, or ctx ends.
func await(ctx context.Context, changed <-chan struct{}, d time.Duration) error {
	var due <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-changed:
	case <-due:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}
