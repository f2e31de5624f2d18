package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weftnet/weft/internal/backend"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/plan"
)

// A Prober tells which ways carry packets.
type Prober interface {
	// Set says what to probe from now on, completely.
	Set(probes []plan.Probe)

	// Health returns what is known of what Set named, and what is wrong with it in words. The maps are the caller's.
	Health() (map[plan.WayID]plan.Health, map[plan.WayID]string)

	// Stats returns how many probes were sent and how many of them were answered.
	Stats() (sent, answered uint64)

	// Run calls changed when Health has changed, until ctx ends.
	Run(ctx context.Context, changed func()) error
}

// holdKey is for how long a key that reaches no peer any more is kept: what is on the wire still arrives,
// and a way that dies soon after it came into use is left for one that is there.
const holdKey = 10 * time.Second

// ways is what passes remember of the ways in use.
type ways struct {
	mu    sync.Mutex                 // guards what follows; the maps use and since are replaced, never changed
	use   map[netip.Prefix]lease.Key // by the peer's subnet
	since map[netip.Prefix]time.Time
	open  []lease.Key             // what is open
	used  map[lease.Key]time.Time // when a key last reached some peer
	trust map[netip.Prefix]bool   // peers of whom probes may say that no way works
}

// inherit takes over what an earlier process did.
func (w *ways) inherit(set settings) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.use = maps.Clone(set.Ways)
	maps.Copy(w.trust, set.Trust)
}

// trusted returns the peers of whom probes are believed.
func (w *ways) trusted() map[netip.Prefix]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.trust)
}

// remembered adds to a plan's input what passes have left. Health is what probes say, nil if there are none.
func (a *Agent) remembered(in inputs, pi *plan.Input, health map[plan.WayID]plan.Health) {
	a.ways.mu.Lock()
	defer a.ways.mu.Unlock()
	before := len(a.ways.trust)
	pi.Open, pi.Ways, pi.Recent, pi.Health = a.ways.open, a.ways.use, a.recent(in, time.Now()), a.ways.believe(health)
	if len(a.ways.trust) != before {
		signal(a.save)
	}
}

// recent returns the keys that may still be needed. After a start all of them may.
func (a *Agent) recent(in inputs, now time.Time) map[lease.Key]bool {
	m := map[lease.Key]bool{}
	for _, k := range in.own.Send {
		if last, ok := a.ways.used[k]; now.Sub(last) < holdKey || !ok && now.Sub(a.made) < holdKey {
			m[k] = true
		}
	}
	return m
}

// settle takes over what a plan that has been applied says about ways.
func (a *Agent) settle(in inputs, out *outcome) {
	now := out.at
	a.ways.mu.Lock()
	use, since := make(map[netip.Prefix]lease.Key, len(out.plan.Paths)), make(map[netip.Prefix]time.Time, len(out.plan.Paths))
	moved := map[string]int{}
	if !in.complete { // peers that are not known yet are reached as before
		maps.Copy(use, a.ways.use)
		maps.Copy(since, a.ways.since)
	}
	for i, p := range out.plan.Paths {
		if p.Way == nil {
			continue
		}
		k := p.Way.Key
		had, known := a.ways.use[p.Subnet]
		if known && out.unset[backend.Route(p.Subnet).String()] {
			k = had
		}
		if !known && len(p.Possible) > 1 {
			a.ways.trust[p.Subnet] = true
		}
		use[p.Subnet], since[p.Subnet] = k, now
		if at := a.ways.since[p.Subnet]; known && had == k && !at.IsZero() { // zero: from before the start
			since[p.Subnet] = at
		} else if known && had != k {
			moved[fmt.Sprintf("%s -> %s", had, k)]++
		}
		a.ways.used[k] = now
		out.plan.Paths[i].Since = since[p.Subnet]
	}
	for change, n := range moved {
		a.log.Info("peers are reached by another way", "way", change, "peers", n)
	}
	maps.DeleteFunc(a.ways.trust, func(p netip.Prefix, _ bool) bool { return use[p] == "" })
	maps.DeleteFunc(a.ways.used, func(k lease.Key, _ time.Time) bool { return !slices.Contains(in.own.Send, k) })
	changed := !maps.Equal(use, a.ways.use) || !slices.Equal(out.plan.Open, a.ways.open)
	a.ways.use, a.ways.since, a.ways.open = use, since, out.plan.Open
	a.ways.mu.Unlock()
	if a.parts.Prober != nil {
		a.parts.Prober.Set(out.plan.Probes)
	}
	a.forgetFilter(in, out.plan)
	o := out.plan.Offer
	news := in.offer == nil || !o.Same(*in.offer)
	if news || changed || !slices.Equal(o.Kept, in.offer.Kept) {
		a.change(func(now *inputs) {
			if now.ways = use; now.own == in.own { // or the offer would follow from a lease of before
				now.offer = &o
			}
		})
		if news && !o.Equal(*in.own) {
			a.log.Info("what this node tells its peers changes", "receive", keysOf(o.Receive), "send", o.Send, "kept", o.Kept)
		}
		signal(a.request)
	}
}

// forgetFilter ends our care for the uplink's filtering once it is as it was before us.
func (a *Agent) forgetFilter(in inputs, p plan.Plan) {
	key := plan.UplinkFilter(in.uplink.Name)
	a.mu.Lock()
	defer a.mu.Unlock()
	if before, ours := a.in.sysctls[key]; ours && p.State.Sysctls[key] == before {
		delete(a.in.sysctls, key)
		signal(a.save)
	}
}

func keysOf(rs []lease.Receiver) []lease.Key {
	var keys []lease.Key
	for _, r := range rs {
		keys = append(keys, r.Key)
	}
	return keys
}

// believe returns health without what cannot be told from a peer that answers no echoes at all: that its way
// has died. Such a peer stays on the way that it has, unless another one is good. Probes are believed once one has
// crossed some way to the peer and come back by itself, and where several ways were there from the beginning.
func (w *ways) believe(health map[plan.WayID]plan.Health) map[plan.WayID]plan.Health {
	for id, h := range health {
		if h == plan.Good {
			w.trust[id.Subnet] = true
		}
	}
	for id, h := range health {
		if h == plan.Called {
			health[id] = plan.Good
		} else if h != plan.Good && !w.trust[id.Subnet] {
			health[id] = plan.Unknown
			if w.use[id.Subnet] == id.Key && h != plan.Unknown {
				health[id] = plan.Silent
			}
		}
	}
	return health
}

// due returns when after a pass that began then another one is wanted although nothing has happened: when a key that
// is no longer used has been held for long enough. Zero: not at all. What the pass still held counts from its
// beginning, or a key whose time ended meanwhile would be nobody's business.
func (a *Agent) due(began time.Time) time.Duration {
	in := a.inputs()
	if in.own == nil || len(in.own.Send) < 2 {
		return 0
	}
	var first time.Duration
	a.ways.mu.Lock()
	defer a.ways.mu.Unlock()
	inUse := map[lease.Key]bool{}
	for _, k := range a.ways.use {
		inUse[k] = true
	}
	for _, k := range in.own.Send {
		last, ok := a.ways.used[k]
		if !ok {
			last = a.made
		}
		if inUse[k] {
			continue
		}
		if left := holdKey - began.Sub(last); left > 0 && (first == 0 || left < first) {
			first = left
		}
	}
	return first
}

// host returns what a plan has to know of this node's kernel.
func (a *Agent) host(in inputs) (plan.Host, error) {
	links, err := a.parts.Kernel.Links()
	if err != nil {
		return plan.Host{}, err
	}
	h := plan.Host{Devices: links, Rename: a.parts.Rename, UplinkRA: sysctl("net/ipv6/conf/" + in.uplink.Name + "/accept_ra")}
	if a.parts.Tunnel != nil {
		h.Tunnels = a.parts.Tunnel.Ports()
	}
	filter := plan.UplinkFilter(in.uplink.Name)
	h.FilterBefore = a.sysctlsBefore()[filter]
	h.StrictUplink = max(sysctl("net/ipv4/conf/all/rp_filter"), sysctl(filter)) == "1"
	return h, nil
}

// refusal says why a node cannot go from one configuration to the other while it carries traffic, nothing if
// it can.
func refusal(from, to netconf.Config) string {
	alloc := netconf.Alloc{}
	if from.Backend != to.Backend && (from.Backend == alloc || to.Backend == alloc) {
		return "Backend.Type: with alloc somebody else carries the packets, so flanneld cannot change over without a gap"
	}
	for _, f := range family.All() {
		old, now := from.Network.Of(f), to.Network.Of(f)
		name := "Network"
		if f == family.V6 {
			name = "IPv6Network"
		}
		switch {
		case old.Enabled() != now.Enabled():
			return fmt.Sprintf("Enable%s: nodes have subnets of both families or of one, and change them at a restart only", f)
		case old.Lost(now).IsValid():
			return fmt.Sprintf("%s: %s does not hold all of %s, in which nodes have their subnets: while they run, ranges can only "+
				"be widened and added", name, now.Ranges(), old.Lost(now))
		}
	}
	return ""
}

// progress counts peers by the way in use and, of those that are not on the preferred one, by reason. There is
// nothing to tell while all are on one way and nothing old is kept.
func progress(p plan.Plan) []string {
	on, waiting := map[string]int{}, map[string]int{}
	for _, path := range p.Paths {
		if path.Way == nil {
			on["no way"]++
			continue
		}
		on[string(path.Way.Key)]++
		if path.Reason != "" {
			waiting[path.Reason]++
		}
	}
	if len(on) < 2 && len(waiting) == 0 && len(p.Offer.Kept) == 0 {
		return nil
	}
	var lines []string
	for _, m := range []struct {
		counts map[string]int
		format string
	}{{on, "%d of %d peers on %s"}, {waiting, "%d of %d peers not on a better one: %s"}} {
		for _, k := range slices.Sorted(maps.Keys(m.counts)) {
			lines = append(lines, fmt.Sprintf(m.format, m.counts[k], len(p.Paths), k))
		}
	}
	return append(lines, p.Offer.Kept...)
}
