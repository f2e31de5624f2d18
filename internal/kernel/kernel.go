// Package kernel keeps links, addresses, routes, neighbours, FDB entries and sysctls as a state.State
// says: it lists what is there, compares, and writes the difference.
//
// Nothing is remembered between passes. What is ours is told by what the kernel itself stores: the alias
// of a link, the protocol number of a route, the device that a neighbour or an FDB entry hangs on. What
// the original left is told by its forms (stale.go). All else is somebody's and survives.
//
// The comparison (plan.go) is a pure function; the files named after objects hold how each is listed
// and written.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel/rtnl"
	"github.com/weftnet/weft/internal/state"
)

// A Kernel is the kernel as seen from one network namespace. Its methods may be called from several
// goroutines; they take turns.
type Kernel struct {
	log      *slog.Logger
	port     uint32 // of conn
	interest atomic.Pointer[interest]

	mu    sync.Mutex // guards what follows
	conn  *rtnl.Conn
	asked []netip.Addr // that OnLink was asked about last, in order
}

// Scope says what, beside the wanted objects, is ours to look at and to remove.
type Scope struct {
	// Owner is the alias of this agent's links (state.Link.Owner). Aliases that share its text up to the
	// first colon are other agents' on the same host, whose links are left alone.
	Owner string
	// Networks are the pod networks, current and former: routes inside them, in our or in the original's
	// form, are ours.
	Networks []netip.Prefix
	// Uplink is the external device: the original's host-gw and direct routes leave through it.
	Uplink string
	// Reach is an address whose route decides which device that is; zero: none does.
	Reach netip.Addr
	// Complete says that the peers are known to be all: what is stale may go. While it is false nothing
	// is removed.
	Complete bool
}

// Open opens a socket in the calling thread's network namespace. Sysctls, however, are those of the thread
// that calls the method.
func Open(log *slog.Logger) (*Kernel, error) {
	conn, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	return &Kernel{log: log, port: conn.Port(), conn: conn}, nil
}

// Close closes the socket. Watchers are not affected.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.conn.Close()
}

// Plan returns what Apply would do now, in its order. It writes nothing.
func (k *Kernel) Plan(want state.State, sc Scope) ([]state.Change, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h, err := k.listLinks()
	if err != nil {
		return nil, err
	}
	if err := k.listRest(&h, want, sc); err != nil {
		return nil, err
	}
	first := planLinks(h, want, sc)
	listFormerSysctls(&h, want, first.steps)
	second := planRest(afterLinks(h, first.steps), want, sc)
	return changes(append(first.steps, second.steps...)), errors.Join(joined(first.errs), joined(second.errs))
}

// Apply makes one pass: it lists, compares and writes. It goes on past failures, which the report holds
// with the object that each struck; trying again is the caller's. When ctx ends the pass stops at the
// next batch.
//
// Links come first and the rest is listed after them: a link that was made anew, or got another MAC, has
// lost what hung on it, and gets it back in the same pass.
func (k *Kernel) Apply(ctx context.Context, want state.State, sc Scope) (Report, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	report := newReport()
	h, err := k.listLinks()
	if err != nil {
		return report, err
	}
	p := planLinks(h, want, sc)
	report.fail(p.errs...)
	if err := k.run(ctx, p.steps, h, &report); err != nil {
		return report, err
	}
	if len(p.steps) > 0 {
		if h, err = k.listLinks(); err != nil {
			return report, err
		}
	}
	k.interest.Store(newInterest(h, want, sc, k.asked)) // before listing: what changes from now on is told
	if err := k.listRest(&h, want, sc); err != nil {
		return report, err
	}
	p = planRest(h, want, sc)
	report.fail(p.errs...)
	return report, k.run(ctx, p.steps, h, &report)
}

// Links returns the devices that the agent may adopt: VXLAN and TUN devices, by name. Owner is whatever alias
// the device has.
func (k *Kernel) Links() (map[string]state.Link, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h, err := k.listLinks()
	if err != nil {
		return nil, err
	}
	links := map[string]state.Link{}
	for name, d := range h.links {
		if d.Kind == kindVXLAN || d.Kind == kindTUN {
			links[name] = d.Link
		}
	}
	return links, nil
}

// Cleanup removes every trace of ours and of the original: the links with the scope's alias or in the
// original's forms with all that hangs on them, our routes, and what has the original's form inside the
// scope's networks. With dry it only returns what it would remove. The rest of the scope is as in Apply.
func (k *Kernel) Cleanup(ctx context.Context, sc Scope, dry bool) ([]state.Change, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	sc.Complete = true
	want := state.New()
	h, err := k.listLinks()
	if err != nil {
		return nil, err
	}
	if err := k.listRest(&h, want, sc); err != nil {
		return nil, err
	}
	steps := planCleanup(h, sc)
	if dry {
		return changes(steps), nil
	}
	report := newReport()
	err = k.run(ctx, steps, h, &report)
	return report.Changes(), errors.Join(err, report.Err())
}

// dumpTries bounds how often an interrupted dump is begun again, should something change all the time.
const dumpTries = 20

// dump lists one kind of object. begin forgets what an interrupted try has seen.
func (k *Kernel) dump(what string, request func(*rtnl.Batch), begin func(), f func(rtnl.Message)) error {
	var b rtnl.Batch
	request(&b)
	var err error
	for range dumpTries {
		begin()
		if err = k.conn.Dump(&b, f); !errors.Is(err, rtnl.ErrInterrupted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", what, err)
	}
	return nil
}

// listRest lists everything but links into h.
func (k *Kernel) listRest(h *have, want state.State, sc Scope) error {
	if err := k.listAddresses(h); err != nil {
		return err
	}
	for _, name := range sortedKeys(h.links) {
		d := h.links[name]
		if !sc.owns(name, d, want) || d.Kind != kindVXLAN {
			continue
		}
		if err := k.listNeighbours(h, name, d.Index); err != nil {
			return err
		}
		if err := k.listFDB(h, name, d.Index); err != nil {
			return err
		}
	}
	for _, f := range [...]uint8{unix.AF_INET, unix.AF_INET6} {
		if err := k.listRoutes(h, f, newRouteFilter(want, sc)); err != nil {
			return err
		}
		if err := k.listLocals(h, f, sc); err != nil {
			return err
		}
	}
	listSysctls(h, want)
	return nil
}
