package agent

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/snapshot"
)

// saveEvery bounds how often the snapshot is written while leases keep changing.
const saveEvery = 3 * time.Second

// saveAfter lets what belongs together come together, and a start come to its end first.
const saveAfter = 300 * time.Millisecond

// saveAgain is when a snapshot that could not be written is tried again although nothing has changed.
const saveAgain = time.Minute

// fallBack brings the node up from the snapshot when the store stays silent: what was true last is better
// than no network. A store that has refused the lease has spoken.
func (a *Agent) fallBack(ctx context.Context) error {
	if err := rest(ctx, a.opts.StoreGrace); err != nil {
		return err
	}
	if in := a.inputs(); in.own != nil || in.ownErr != nil {
		return nil
	}
	s, err := snapshot.Read(a.opts.SnapshotFile, a.opts.Identity)
	if err != nil {
		a.log.Info("no snapshot to start from", "err", err)
		return nil
	}
	if err := a.useSnapshot(s); err != nil {
		a.log.Warn("snapshot is of no use", "file", a.opts.SnapshotFile, "err", err)
		return nil
	}
	if in := a.inputs(); !in.savedAt.IsZero() {
		a.log.Warn("no lease from the store yet: starting from the snapshot", "file", a.opts.SnapshotFile,
			"saved", s.SavedAt, "peers", len(s.Peers))
	}
	return nil
}

// useSnapshot takes from s what the store has not said yet.
func (a *Agent) useSnapshot(s snapshot.Snapshot) error {
	c, _, err := netconf.Parse(s.Config, a.opts.Store)
	if err != nil {
		return err
	}
	a.change(func(in *inputs) {
		if in.config == nil {
			in.config, in.configRaw = &c, s.Config
		}
		if in.own != nil || refusal(c, *in.config) != "" {
			return // the store has spoken since
		}
		in.own, in.savedAt = &s.Self, s.SavedAt
		if !in.complete {
			in.leases = s.Peers
		}
	})
	return nil
}

// persist keeps the snapshot up to date while the store can be reached. What changed just before the end is
// written too.
func (a *Agent) persist(ctx context.Context) error {
	failed := false
	var again <-chan time.Time // nil: what was written last holds
	for {
		select {
		case <-a.save:
		case <-again:
		case <-ctx.Done():
			a.saveLast(failed)
			return ctx.Err()
		}
		if err := rest(ctx, saveAfter); err != nil {
			signal(a.save)
			a.saveLast(failed)
			return err
		}
		select {
		case <-a.save: // it is about to be written
		default:
		}
		in := a.inputs()
		if !in.fromStore() {
			continue
		}
		if again, failed = nil, a.writeSnapshot(in, failed); failed {
			again = time.After(saveAgain)
		}
		if err := rest(ctx, saveEvery); err != nil {
			a.saveLast(failed)
			return err
		}
	}
}

// saveLast writes what changed just before the end.
func (a *Agent) saveLast(failed bool) {
	if in := a.inputs(); len(a.save) > 0 && in.fromStore() {
		a.writeSnapshot(in, failed)
	}
}

// fromStore says whether the inputs are the store's word, all of them.
func (in inputs) fromStore() bool {
	return in.config != nil && in.own != nil && in.complete && in.savedAt.IsZero()
}

// writeSnapshot says whether it failed, and tells when that is new.
func (a *Agent) writeSnapshot(in inputs, failed bool) bool {
	_, err := snapshot.Write(a.opts.SnapshotFile, snapshot.Snapshot{
		Identity: a.opts.Identity, SavedAt: time.Now().UTC(), Config: in.configRaw, Self: *in.own,
		Peers: peers(in), Sysctls: a.sysctlsBefore(), Settings: a.settings(in),
	})
	switch {
	case err != nil && !failed:
		a.log.Warn("snapshot not written: after a reboot without the store this node has no network",
			"file", a.opts.SnapshotFile, "err", err)
	case err == nil && failed:
		a.log.Info("snapshot written again", "file", a.opts.SnapshotFile)
	}
	return err != nil
}

// peers returns the leases of others that are believed.
func peers(in inputs) []lease.Lease {
	return slices.DeleteFunc(slices.Clone(in.leases), func(l lease.Lease) bool { return in.isOwn(l) || l.Refused != "" })
}

// isOwn says whether l is this node's lease, which the store may show before Acquire has returned it.
func (in inputs) isOwn(l lease.Lease) bool {
	return in.own != nil && l.SameSubnets(*in.own) || in.own == nil && l.Public == in.uplink.Public
}

func (a *Agent) settings(in inputs) []byte {
	b, err := json.Marshal(settings{Store: a.opts.Store, Plan: a.opts.Plan, Uplink: in.uplink, Hints: in.hints, Ways: in.ways, Trust: a.ways.trusted(),
		PodMTU: in.podMTU, Held: in.held, Boot: bootID()})
	if err != nil {
		panic(err) // plain values
	}
	return b
}

func (a *Agent) sysctlsBefore() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := make(map[string]string, len(a.in.sysctls))
	for k, v := range a.in.sysctls {
		m[k] = v
	}
	return m
}
