// Package agent joins the parts: it keeps what the store, the host and the operator say, turns it into a
// plan, and makes the kernel match, again and again.
//
//	store ──► config, leases ─┐
//	host ───► uplink ─────────┼─► inputs ─► plan ─► kernel, firewall, subnet.env
//	keeper ─► own lease ──────┘      ▲                       │
//	                               wake ◄── events, timers ◄─┘
//
// One goroutine makes passes; the others only put a value into the inputs and wake it. Nothing that waits
// for the store runs inside a pass, so the data path is kept whatever the store does.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/firewall"
	"github.com/weftnet/weft/internal/kernel"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/storehealth"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/plan"
	"github.com/weftnet/weft/internal/snapshot"
	"github.com/weftnet/weft/internal/state"
	"github.com/weftnet/weft/internal/subnetfile"
	"github.com/weftnet/weft/internal/uplink"
)

// Options is what the operator asked for.
type Options struct {
	Identity     string // see lease.Self.ID
	Node         string // name of the node for people; may be empty
	Uplink       uplink.Options
	Plan         plan.Options
	Store        netconf.Store
	SubnetFile   string
	SnapshotFile string
	Resync       time.Duration // between passes that nothing asked for
	StoreGrace   time.Duration // how long to wait for the store before the snapshot is used; 0: 2 s
}

// Parts are what the agent works with. All are ready to use; the agent closes none of them.
type Parts struct {
	Store    lease.Store
	Kernel   Kernel
	Firewall Firewall
	Tunnel   Tunnel                      // nil: none, and no backend that needs one
	Prober   Prober                      // nil: ways are used without a probe
	Rename   bool                        // the kernel renames devices that are up
	Uplink   func() (uplink.Host, error) // lists what the choice of the uplink follows from
	Watch    []Watch

	// Hints says what the cluster wants of the choice of the uplink; uplink.ErrNoHints while that is unknown.
	// May be nil.
	Hints func() (uplink.Hints, error)

	Reconnect func()                   // drops connections to the store that come from an address that is gone; may be nil
	Stats     func() storehealth.Stats // may be nil

	// Warnings says what on this host stands in the way of a configuration; own is this node's subnet, as far
	// as it is known. May be nil.
	Warnings func(c netconf.Config, own family.Pair[netip.Prefix]) []string

	Ready func() // called once, when the node is ready for the first time; may be nil
}

// A Kernel lists and applies kernel state.
type Kernel interface {
	Plan(state.State, kernel.Scope) ([]state.Change, error)
	Apply(context.Context, state.State, kernel.Scope) (kernel.Report, error)
	Links() (map[string]state.Link, error)
	OnLink([]netip.Addr) (map[netip.Addr]string, error)
}

// A Firewall lists and applies firewall rules.
type Firewall interface {
	Plan(firewall.Policy) ([]state.Change, error)
	Apply(context.Context, firewall.Policy) ([]state.Change, error)
	Findings() []string // what of other people's rules stands in the way of pods
}

// A Watch calls wake with a word for what changed when a pass should look at it, until ctx ends. It has
// subscribed to events already, so that nothing is missed between the first pass and the call.
type Watch func(ctx context.Context, wake func(kind string)) error

// An Agent is one node's agent. Make it with New.
type Agent struct {
	opts    Options
	parts   Parts
	log     *slog.Logger
	metrics *metrics

	pending chan struct{} // capacity 1: a pass is wanted
	request chan struct{} // capacity 1: what the keeper should hold has changed
	save    chan struct{} // capacity 1: the snapshot is out of date
	look    atomic.Bool   // the host must be listed again before the next plan

	made       time.Time
	findings   []string // of the firewall; only the loop touches these two
	findingsAt time.Time
	tried      plan.Offer // what the store was last asked to publish; only the keeper touches it
	ways       ways

	mu sync.Mutex // guards what follows
	in inputs
	st Status
}

// inputs is everything a pass follows from beside the kernel itself.
type inputs struct {
	rev        uint64 // counts changes, so that a pass can tell a repair from news
	config     *netconf.Config
	configRaw  []byte
	configErr  error
	configSeen bool     // the store has told a configuration, be it a bad one
	warnings   []string // about this host, given the configuration
	own        *lease.Lease
	ownErr     error
	podMTU     int                        // the largest that pods of this boot may have been given
	held       family.Pair[netip.Addr]    // see plan.Input, of this boot
	offer      *plan.Offer                // what the last plan that was applied says to publish; nil: there was none
	ways       map[netip.Prefix]lease.Key // in use, by the peer's subnet
	leases     []lease.Lease
	complete   bool      // leases came from the store
	savedAt    time.Time // of the snapshot in use; zero: none is
	uplink     uplink.Uplink
	uplinkErr  error
	hints      *uplink.Hints             // what the cluster said last; nil: nothing yet
	lastUplink uplink.Uplink             // the former process's choice: kept if the rules leave a choice
	former     []netip.Prefix            // networks that this node was in before
	prior      family.Pair[netip.Prefix] // subnets of the subnet file found at start
	sysctls    map[string]string         // values before we changed them
}

// New returns an agent. It starts nothing.
func New(opts Options, parts Parts, log *slog.Logger) *Agent {
	if opts.StoreGrace == 0 {
		opts.StoreGrace = 2 * time.Second
	}
	a := &Agent{
		opts: opts, parts: parts, log: log,
		pending: make(chan struct{}, 1), request: make(chan struct{}, 1), save: make(chan struct{}, 1),
	}
	a.made = time.Now()
	a.ways.used, a.ways.trust = map[lease.Key]time.Time{}, map[netip.Prefix]bool{}
	a.st.Reasons = []string{"starting"}
	a.in.sysctls = map[string]string{}
	a.metrics = newMetrics(a)
	return a
}

// Run keeps the node until ctx ends. It returns after all it started has; what it made in the kernel
// stays.
func (a *Agent) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.parts.Store.Watch(ctx, a.setLeases) }) // first, since its answer takes longest
	a.recallFiles()
	g.Go(func() error { return a.parts.Store.WatchConfig(ctx, a.setConfig) })
	for _, w := range a.parts.Watch {
		g.Go(func() error { return w(ctx, a.event) })
	}
	if a.parts.Prober != nil {
		g.Go(func() error { return a.parts.Prober.Run(ctx, func() { a.change(func(*inputs) {}) }) })
	}
	g.Go(func() error { return a.fallBack(ctx) })
	g.Go(func() error { return a.persist(ctx) })
	g.Go(func() error { return a.keep(ctx) })
	g.Go(func() error { return a.loop(ctx) })
	a.Look()
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Wake asks for a pass. It never blocks; while one request is pending, others fold into it.
func (a *Agent) Wake() { signal(a.pending) }

// Look asks for a pass that lists the host again.
func (a *Agent) Look() {
	a.look.Store(true)
	a.Wake()
}

// event is a Wake by something that the kernel has told. Some kinds cannot concern the uplink, whose choice
// costs a listing of the host.
func (a *Agent) event(kind string) {
	a.metrics.events.WithLabelValues(kind).Inc()
	switch kind {
	case kernel.ChangedNeighbour, kernel.ChangedFDB, kernel.ChangedSysctl, ChangedFirewall:
	default:
		a.look.Store(true)
	}
	a.Wake()
}

// ChangedFirewall is the word of a Watch for firewall rules.
const ChangedFirewall = "firewall"

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// change alters the inputs and wakes whoever follows them.
func (a *Agent) change(f func(in *inputs)) {
	a.mu.Lock()
	f(&a.in)
	a.in.rev++
	a.mu.Unlock()
	a.Wake()
	signal(a.save)
}

func (a *Agent) inputs() inputs {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.in
}

// recallFiles reads what an earlier process left on disk. What is absent or torn was only a hint.
func (a *Agent) recallFiles() {
	var set settings
	s, err := snapshot.ReadSelf(a.opts.SnapshotFile, a.opts.Identity)
	if err != nil || json.Unmarshal(s.Settings, &set) != nil {
		set = settings{}
	}
	a.ways.inherit(set)
	f, err := subnetfile.Read(a.opts.SubnetFile)
	if err != nil {
		f = subnetfile.File{}
	}
	a.change(func(in *inputs) {
		maps.Copy(in.sysctls, s.Sysctls)
		in.lastUplink, in.hints = set.Uplink, set.Hints
		in.ways = set.Ways
		if in.podMTU = f.MTU; set.Boot == bootID() {
			in.podMTU, in.held = max(in.podMTU, set.PodMTU), set.Held
		}
		for _, fam := range family.All() {
			in.former = append(in.former, f.Network.Of(fam).Prefixes()...)
			if s := f.Subnet.Of(fam); s.IsValid() {
				*in.prior.Ref(fam) = s.Masked()
			}
		}
	})
}

// setConfig takes a new configuration where it can be followed without losing a packet, and the first one that
// the store tells in any case: until then the node may have started from a snapshot of long ago. What it
// cannot follow waits for a restart, and is said.
func (a *Agent) setConfig(raw []byte) {
	c, warnings, err := netconf.Parse(raw, a.opts.Store)
	if err != nil {
		a.log.Error("network configuration refused; what was in force stays", "err", err)
		a.change(func(in *inputs) { in.configErr, in.configSeen = err, true })
		return
	}
	in := a.inputs()
	old := in.config
	if old != nil && *old == c {
		a.change(func(in *inputs) { in.configErr, in.configSeen = nil, true })
		return
	}
	for _, w := range warnings {
		a.log.Warn("network configuration", "warning", w)
	}
	fits, why := true, ""
	if old != nil {
		why = refusal(*old, c)
		fits = why == ""
	}
	if !fits && in.own != nil && in.savedAt.IsZero() && in.configSeen {
		err := fmt.Errorf("the new network configuration takes effect when flanneld is restarted: %s", why)
		a.log.Warn("network configuration changed", "err", err)
		a.change(func(in *inputs) { in.configErr = err })
		return
	}
	a.log.Info("network configuration", "backend", c.Backend.Type(), "networks", networks(c))
	a.look.Store(true) // for the families that are on
	a.change(func(in *inputs) {
		in.config, in.configRaw, in.configErr, in.configSeen = &c, raw, nil, true
		if !fits {
			in.own, in.offer, in.savedAt = nil, nil, time.Time{} // another lease is needed
		}
	})
	signal(a.request)
	if a.parts.Warnings == nil {
		return
	}
	found := a.parts.Warnings(c, in.prior) // nothing waits for them, and they read all that the host routes
	for _, w := range found {
		a.log.Warn("this host", "warning", w)
	}
	if !slices.Equal(found, in.warnings) {
		a.change(func(in *inputs) { in.warnings = found })
	}
}

func networks(c netconf.Config) []netip.Prefix {
	var ps []netip.Prefix
	for _, f := range family.All() {
		ps = append(ps, c.Network.Of(f).Ranges().Prefixes()...)
	}
	return ps
}

func (a *Agent) setLeases(ls []lease.Lease) {
	in := a.inputs()
	if in.complete && slices.EqualFunc(in.leases, ls, lease.Lease.Equal) {
		return
	}
	a.tellLeases(in, ls)
	a.change(func(in *inputs) { in.leases, in.complete = ls, true })
}
