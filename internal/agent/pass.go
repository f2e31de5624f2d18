package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/firewall"
	"github.com/weftnet/weft/internal/kernel"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/plan"
	"github.com/weftnet/weft/internal/state"
	"github.com/weftnet/weft/internal/subnetfile"
	"github.com/weftnet/weft/internal/udptun"
	"github.com/weftnet/weft/internal/uplink"
)

// loop makes a pass whenever one is asked for, when a failed one is due again, and every so often to catch
// what nobody announced. It rests after a pass for as long as the pass took, so that a storm of events
// costs half a core at most.
func (a *Agent) loop(ctx context.Context) error {
	var retry backoff
	timer := time.NewTimer(a.opts.Resync)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.pending:
		case <-timer.C:
			a.look.Store(true)
		}
		began := time.Now()
		next := a.opts.Resync
		if a.pass(ctx) {
			retry = backoff{}
			if due := a.due(began); due > 0 {
				next = min(next, due)
			}
		} else {
			next = min(next, retry.next())
		}
		timer.Reset(next)
		if err := rest(ctx, time.Since(began)); err != nil {
			return err
		}
	}
}

func rest(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// An outcome is what a pass came to.
type outcome struct {
	at      time.Time
	took    time.Duration
	rev     uint64
	waits   []string // what the node still waits for: not ready
	broken  []error  // node-wide failures: not ready
	peers   []error  // failures that concern single peers or tunables: ready, but told
	plan    plan.Plan
	planned bool
	unset   map[string]bool // routes that the kernel has refused: it still has those of before
	changes []state.Change
}

// pass brings the node in line with the inputs once. It says whether all went well.
func (a *Agent) pass(ctx context.Context) bool {
	began := time.Now()
	if a.look.Swap(false) || a.inputs().uplink.Name == "" {
		a.chooseUplink()
	}
	in := a.inputs()
	out := outcome{at: began, rev: in.rev, waits: waits(in), unset: map[string]bool{}}
	if len(out.waits) == 0 {
		a.apply(ctx, in, &out)
	}
	if ctx.Err() != nil {
		return true // stopping: whatever is left is the next process's
	}
	out.took = time.Since(began)
	a.report(in, out)
	return len(out.broken)+len(out.peers) == 0 && !a.look.Load()
}

// waits names what is missing before a plan can be made.
func waits(in inputs) []string {
	var ws []string
	switch {
	case in.config == nil && in.configErr != nil:
		ws = append(ws, "network configuration: "+in.configErr.Error())
	case in.config == nil:
		ws = append(ws, "network configuration: waiting for the store")
	}
	if in.uplinkErr != nil && in.uplink.Name == "" {
		ws = append(ws, "external interface: "+in.uplinkErr.Error())
	}
	if in.own == nil && in.ownErr != nil {
		ws = append(ws, "lease: "+in.ownErr.Error())
	} else if in.own == nil && len(ws) == 0 {
		ws = append(ws, "lease: waiting for the store")
	}
	return ws
}

// chooseUplink looks at the host again. When nothing fits any more the last choice stays in force: the
// device may only be away for a moment.
func (a *Agent) chooseUplink() {
	in := a.inputs()
	if in.config == nil {
		return
	}
	chosen, decision, err := a.selectUplink(in)
	if text(err) != text(in.uplinkErr) {
		if err != nil && !errors.Is(err, uplink.ErrNoHints) {
			a.log.Error("external interface", "err", err)
		}
		a.change(func(in *inputs) { in.uplinkErr = err })
	}
	if chosen.Name == "" || chosen == in.uplink {
		return
	}
	a.log.Info("external interface", "decision", decision)
	if a.parts.Reconnect != nil && in.uplink.Name != "" && chosen.Addr != in.uplink.Addr {
		a.parts.Reconnect()
	}
	a.change(func(in *inputs) { in.uplink = chosen })
	signal(a.request)
}

// hints returns what the cluster says about the choice. A node that has a lease, be it from the snapshot, goes
// by what was said last.
func (a *Agent) hints(in inputs) (uplink.Hints, error) {
	if a.parts.Hints == nil {
		return uplink.Hints{}, nil
	}
	h, err := a.parts.Hints()
	switch {
	case errors.Is(err, uplink.ErrNoHints) && in.own != nil:
		if in.hints == nil {
			return uplink.Hints{}, nil
		}
		return *in.hints, nil
	case err != nil:
		return uplink.Hints{}, err
	case in.hints == nil || *in.hints != h:
		a.change(func(in *inputs) { in.hints = &h })
	}
	return h, nil
}

// selectUplink returns the choice, zero if there is none. A family that the host lacks does not keep the
// other one waiting; one that it had is not given up.
func (a *Agent) selectUplink(in inputs) (uplink.Uplink, uplink.Decision, error) {
	opts, on := a.opts.Uplink, family.Pair[bool]{}
	for _, f := range family.All() {
		n := in.config.Network.Of(f)
		*on.Ref(f), *opts.Networks.Ref(f) = n.Enabled(), n.Ranges()
	}
	hints, err := a.hints(in)
	if err != nil {
		return uplink.Uplink{}, uplink.Decision{}, err
	}
	opts = opts.With(hints)
	host, err := a.parts.Uplink()
	if err != nil {
		a.look.Store(true) // nobody else will ask again
		return uplink.Uplink{}, uplink.Decision{}, err
	}
	current := in.uplink
	if current.Name == "" {
		current = in.lastUplink
	}
	chosen, decision, err := uplink.Select(host, opts, on, current)
	missing, one := errors.AsType[*uplink.FamilyError](err)
	if !one || in.uplink.Addr.Of(missing.Family).IsValid() {
		return chosen, decision, err
	}
	*on.Ref(missing.Family) = false
	if chosen, decision, other := uplink.Select(host, opts, on, current); other == nil {
		return chosen, decision, fmt.Errorf("going on without %s: %w", missing.Family, err)
	}
	return uplink.Uplink{}, decision, err
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// effective is the configuration without the families for which the host has no address.
func effective(c netconf.Config, u uplink.Uplink) netconf.Config {
	for _, f := range family.All() {
		if !u.Addr.Of(f).IsValid() {
			*c.Network.Ref(f) = lease.Network{}
		}
	}
	return c
}

// input returns what the plan follows from.
func (a *Agent) input(in inputs) (plan.Input, error) {
	w := in.want()
	host, err := a.host(in)
	if err != nil {
		return plan.Input{}, err
	}
	pi := plan.Input{
		Config: w.config, Self: a.backendSelf(w), Own: *in.own, Leases: in.leases, Options: a.opts.Plan,
		Host: host, Complete: in.complete, PodMTU: in.podMTU, Held: in.held,
	}
	var health map[plan.WayID]plan.Health
	if a.parts.Prober != nil && !w.config.NoProbes {
		pi.Probe = true
		health, pi.Trouble = a.parts.Prober.Health()
	}
	a.remembered(in, &pi, health)
	if !plan.UsesDirect(pi) {
		return pi, nil
	}
	return pi, a.onLink(&pi)
}

// bootID returns what the kernel draws at each boot (random(4)), or nothing.
func bootID() string { return sysctl("kernel/random/boot_id") }

// sysctl reads a tunable, or nothing.
func sysctl(path string) string {
	b, err := os.ReadFile("/proc/sys/" + path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// build makes the plan of one pass.
func (a *Agent) build(in inputs) (plan.Plan, error) {
	pi, err := a.input(in)
	if err != nil {
		return plan.Plan{}, err
	}
	return plan.Build(pi)
}

func (a *Agent) scope(in inputs) kernel.Scope {
	sc := kernel.Scope{
		Owner: a.owner(), Networks: append(networks(*in.config), in.former...), Uplink: in.uplink.Name,
		Reach: a.opts.Uplink.CanReach, Complete: in.complete,
	}
	if in.config.Backend == (netconf.Alloc{}) {
		sc.Uplink = "" // with alloc, routes to peers' subnets over the underlay are the operator's own
	}
	return sc
}

// apply makes the kernel match: devices, tunnels and routes, then rules, then subnet.env, which lets pods start.
func (a *Agent) apply(ctx context.Context, in inputs, out *outcome) {
	p, err := a.build(in)
	if err != nil {
		out.broken = append(out.broken, err)
		return
	}
	out.plan, out.planned = p, true
	a.applyTunnel(in, p, out)
	rep, err := a.parts.Kernel.Apply(ctx, p.State, a.scope(in))
	if err != nil {
		out.broken = append(out.broken, err)
	}
	out.changes = append(out.changes, rep.Changes()...)
	failed := a.failed(in, p, rep.Errors)
	for _, e := range rep.Errors {
		if e.Kind == "route" {
			out.unset[e.Object] = true
		}
		_, new := failed[p.Devices[e.Object]]
		if (e.Kind == "link" || e.Kind == "address") && !new {
			out.broken = append(out.broken, e)
		} else {
			out.peers = append(out.peers, e)
		}
	}
	out.plan.Offer = p.Offer.Without(failed, *in.own)
	a.rememberSysctls(rep.Sysctls)
	changes, err := a.parts.Firewall.Apply(ctx, p.Firewall)
	if err != nil {
		out.broken = append(out.broken, fmt.Errorf("firewall: %w", err))
	}
	out.changes = append(out.changes, changes...)
	if out.at.Sub(a.findingsAt) >= a.opts.Resync { // it reads more than a pass does
		a.tellFindings(a.parts.Firewall.Findings())
		a.findingsAt = out.at
	}
	if ctx.Err() != nil || len(out.broken) > 0 {
		return
	}
	a.settle(in, out)
	if p.Subnet.MTU > in.podMTU || p.Held != in.held {
		a.change(func(in *inputs) { in.podMTU, in.held = max(in.podMTU, p.Subnet.MTU), p.Held })
	}
	changed, err := subnetfile.Write(a.opts.SubnetFile, p.Subnet)
	if err != nil {
		out.broken = append(out.broken, fmt.Errorf("subnet file: %w", err))
	}
	if changed {
		out.changes = append(out.changes, state.Change{Op: state.Modify, Kind: "file", Object: a.opts.SubnetFile})
	}
}

// failed returns the keys whose devices could not be made, and that no peer has been told of yet: the node goes on
// without them.
func (a *Agent) failed(in inputs, p plan.Plan, errs []kernel.ObjectError) map[lease.Key]error {
	m := map[lease.Key]error{}
	fail := func(dev string, err error) {
		k, ok := p.Devices[dev]
		_, published := in.own.Receiver(k)
		if ok && !published && !slices.Contains(in.own.Send, k) {
			m[k] = err
		}
	}
	for _, e := range errs {
		if e.Kind == "link" && m[p.Devices[e.Object]] == nil {
			fail(e.Object, e)
		}
	}
	if a.parts.Tunnel == nil {
		return m
	}
	ports := a.parts.Tunnel.Ports()
	for dev, t := range p.State.Tunnels {
		if ports[dev] != t.Port {
			fail(dev, fmt.Errorf("tunnel %s does not run on port %d", dev, t.Port))
		}
	}
	return m
}

// rememberSysctls keeps the values that tunables had before we changed them, for weft cleanup.
func (a *Agent) rememberSysctls(before map[string]string) {
	if len(before) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for k, v := range before {
		if _, known := a.in.sysctls[k]; !known {
			a.in.sysctls[k] = v
		}
	}
	signal(a.save)
}

// Pending returns what a pass would change now, without changing anything.
func (a *Agent) Pending() ([]state.Change, error) {
	in := a.inputs()
	if ws := waits(in); len(ws) > 0 {
		return nil, errors.New("no plan yet: " + strings.Join(ws, "; "))
	}
	p, err := a.build(in)
	if err != nil {
		return nil, err
	}
	return a.difference(in, p)
}

// difference returns what applying p would change.
func (a *Agent) difference(in inputs, p plan.Plan) ([]state.Change, error) {
	changes, err := Changes(a.parts.Kernel, a.parts.Firewall, a.scope(in), p, a.opts.SubnetFile)
	if a.parts.Tunnel != nil && err == nil {
		changes = append(a.parts.Tunnel.Plan(p.State, in.complete), changes...)
	}
	return changes, err
}

// Changes returns what applying p would change.
func Changes(k Kernel, f Firewall, sc kernel.Scope, p plan.Plan, subnetFile string) ([]state.Change, error) {
	changes, err := k.Plan(p.State, sc)
	if err != nil {
		return nil, err
	}
	rules, err := f.Plan(p.Firewall)
	if err != nil {
		return nil, err
	}
	changes = append(changes, rules...)
	if have, err := subnetfile.Read(subnetFile); err != nil || have != p.Subnet {
		changes = append(changes, state.Change{Op: state.Modify, Kind: "file", Object: subnetFile})
	}
	return changes, nil
}

var (
	_ Kernel   = (*kernel.Kernel)(nil)
	_ Firewall = (*firewall.Firewall)(nil)
	_ Tunnel   = (*udptun.Tunnel)(nil)
)
