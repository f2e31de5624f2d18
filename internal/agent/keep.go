package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/weftnet/weft/internal/backend"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/plan"
	"github.com/weftnet/weft/internal/uplink"
)

// A want is what the lease of this node follows from.
type want struct {
	config netconf.Config
	uplink uplink.Uplink
	offer  *plan.Offer // nil, until it is asked for: what was published before, or else what the configuration selects
}

// want returns what the lease should say; configuration and uplink must be known.
func (in inputs) want() want {
	return want{config: effective(*in.config, in.uplink), uplink: in.uplink, offer: in.offer}
}

// outdated says whether a lease that was asked for with w should say something else by now.
func (in inputs) outdated(w want) bool {
	if in.config == nil || in.uplink.Name == "" {
		return false
	}
	now := in.want()
	return now.uplink != w.uplink || now.config.Network != w.config.Network ||
		now.offer != nil && !now.offer.Same(*w.offer)
}

// keep holds this node's lease: it acquires one as soon as configuration and uplink are known, renews it,
// publishes what changed, and acquires it again when it is lost.
func (a *Agent) keep(ctx context.Context) error {
	var retry backoff
	told := "" // the failure that was logged last
	for {
		w, err := a.waitWant(ctx)
		if err != nil {
			return err
		}
		held, self, err := a.acquire(ctx, &w)
		if err == nil {
			retry, told = backoff{}, ""
			err = a.hold(ctx, w, self, held)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errChanged) {
			continue
		}
		if told != err.Error() {
			told = err.Error()
			a.log.Error("lease", "err", err)
		}
		a.change(func(in *inputs) { in.ownErr = err })
		if errors.Is(err, lease.ErrLost) {
			continue // another one can be had at once
		}
		var changed <-chan struct{} // nil: nobody tells
		if wait, ok := errors.AsType[*lease.NotYetError](err); ok {
			changed = wait.Changed
		}
		if err := a.pause(ctx, retry.next(), changed); err != nil {
			return err
		}
	}
}

// waitWant waits until it is known what to ask the store for.
func (a *Agent) waitWant(ctx context.Context) (want, error) {
	for {
		if in := a.inputs(); in.config != nil && in.uplink.Name != "" {
			return in.want(), nil
		}
		select {
		case <-a.request:
		case <-ctx.Done():
			return want{}, ctx.Err()
		}
	}
}

func (a *Agent) backendSelf(w want) backend.Self {
	return backend.Self{
		Identity: a.opts.Identity, Owner: a.owner(), Network: w.config.Network, Uplink: w.uplink,
	}
}

func (a *Agent) owner() string { return Owner(a.opts.SubnetFile) }

// Owner returns the alias that marks the links of the agent with this subnet file; agents of one host have
// different ones.
func Owner(subnetFile string) string { return "weft:" + subnetFile }

// acquire asks the store for a lease. What the node published before is recalled first, so that peers that
// rely on it are not cut off.
func (a *Agent) acquire(ctx context.Context, w *want) (lease.Lease, lease.Self, error) {
	in := a.inputs()
	self := lease.Self{
		ID: a.opts.Identity, Node: a.opts.Node, Public: w.uplink.Public, Network: w.config.Network, Prior: in.prior,
	}
	if in.own != nil {
		self.Prior = in.own.Subnet
	}
	o, err := a.offer(ctx, in, *w, self)
	if err != nil {
		return lease.Lease{}, self, err
	}
	// Own may be from before what was tried last, whose fate is not known.
	if !o.Same(a.tried) {
		o.Serial = max(o.Serial, a.tried.Serial+1)
	}
	o.Serial = max(o.Serial, a.tried.Serial)
	a.tried, w.offer = o, &o
	self.Receive, self.Send, self.Serial = o.Receive, o.Send, o.Serial
	held, err := a.parts.Store.Acquire(ctx, self)
	if err != nil {
		return lease.Lease{}, self, err
	}
	outdated := false
	a.change(func(in *inputs) {
		if !in.savedAt.IsZero() {
			in.offer = nil // it follows from the snapshot
		}
		if outdated = in.outdated(*w); !outdated {
			in.own, in.ownErr, in.savedAt = &held, nil, time.Time{}
		}
	})
	if outdated {
		return lease.Lease{}, self, errChanged
	}
	a.tellOwn(in.own, held)
	return held, self, nil
}

// offer returns what to publish.
func (a *Agent) offer(ctx context.Context, in inputs, w want, self lease.Self) (plan.Offer, error) {
	held := in.own != nil && in.savedAt.IsZero()
	if held && w.offer != nil {
		return *w.offer, nil
	}
	var prior lease.Lease
	if in.own != nil {
		prior = *in.own
	}
	if !held { // the store may know better than the snapshot
		l, found, err := a.parts.Store.Recall(ctx, self)
		if err != nil {
			return plan.Offer{}, err
		}
		if found {
			prior = l
		}
	}
	host, err := a.host(in)
	if err != nil {
		return plan.Offer{}, err
	}
	return plan.First(w.config, a.backendSelf(w), prior, host)
}

var errChanged = errors.New("what the lease follows from has changed")

// hold keeps the lease until it is lost or should say something else.
func (a *Agent) hold(ctx context.Context, w want, self lease.Self, held lease.Lease) error {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	defer func() {
		cancel(nil)
		<-done // or it could take a request that is meant for the next one
	}()
	go func() {
		defer close(done)
		for in := a.inputs(); in.own != nil && !in.outdated(w); in = a.inputs() {
			select {
			case <-a.request:
			case <-ctx.Done():
				return
			}
		}
		cancel(errChanged)
	}()
	err := a.parts.Store.Hold(ctx, self, held)
	if cause := context.Cause(ctx); errors.Is(cause, errChanged) {
		return errChanged
	}
	return err
}

// pause waits, or until what the lease follows from changes, here or in the store.
func (a *Agent) pause(ctx context.Context, d time.Duration, changed <-chan struct{}) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-a.request:
	case <-changed:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// A backoff doubles from 100 ms to 10 s, with jitter so that nodes do not move in step.
type backoff struct{ d time.Duration }

func (b *backoff) next() time.Duration {
	b.d = min(max(2*b.d, 100*time.Millisecond), 10*time.Second)
	return b.d/2 + rand.N(b.d/2+1)
}
