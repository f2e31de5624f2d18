package agent

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/storehealth"
	"github.com/weftnet/weft/internal/plan"
	"github.com/weftnet/weft/internal/state"
	"github.com/weftnet/weft/internal/uplink"
)

// A Status is what weft status shows of an agent.
type Status struct {
	Node     string    `json:"node,omitempty"`
	Identity string    `json:"identity"`
	Ready    bool      `json:"ready"`
	Reasons  []string  `json:"reasons,omitempty"` // why not ready
	Notes    []string  `json:"notes,omitempty"`   // ready all the same, but worth knowing
	LastPass time.Time `json:"lastPass"`
	LastGood time.Time `json:"lastGoodPass,omitzero"` // the last pass that left nothing to do
	PassMS   float64   `json:"passMilliseconds"`

	Backend   string            `json:"backend,omitempty"`
	Networks  []string          `json:"networks,omitempty"`
	Uplink    uplink.Uplink     `json:"uplink"`
	Lease     *lease.Lease      `json:"lease,omitempty"`
	MTU       int               `json:"podMTU,omitempty"`
	Snapshot  *time.Time        `json:"fromSnapshotOf,omitempty"`
	Store     storehealth.Stats `json:"store"`
	Paths     []plan.Path       `json:"paths"`
	Repairs   map[string]uint64 `json:"repairs"` // by kind of object
	Unreached int               `json:"unreached"`
	Progress  []string          `json:"progress,omitempty"` // of a change of ways, empty when there is none

	rev     uint64   // of the inputs that the pass saw
	settled bool     // the pass left nothing to do
	errors  []string // of the pass, sorted
}

// Status returns what the last pass found.
func (a *Agent) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	st := a.st
	if a.parts.Stats != nil {
		st.Store = a.parts.Stats()
	}
	if s := st.Store; st.Snapshot == nil && !s.Connected && !s.LastSync.IsZero() {
		st.Notes = append(slices.Clone(st.Notes),
			"the store does not answer since "+s.LastSync.Format(time.RFC3339)+": peers are kept as they were")
	}
	st.Repairs = make(map[string]uint64, len(a.st.Repairs))
	for k, v := range a.st.Repairs {
		st.Repairs[k] = v
	}
	if age := time.Since(st.LastPass); st.Ready && age > 3*a.opts.Resync {
		st.Ready = false
		st.Reasons = []string{fmt.Sprintf("the last pass was %s ago", age.Round(time.Second))}
	}
	return st
}

// report turns the outcome of a pass into the status, the log and the metrics.
func (a *Agent) report(in inputs, out outcome) {
	a.mu.Lock()
	news := out.rev != a.st.rev
	before := a.st
	st := statusOf(in, out)
	st.Notes = append(st.Notes, a.findings...)
	st.Node, st.Identity = a.opts.Node, a.opts.Identity
	st.Repairs = before.Repairs
	if st.Repairs == nil {
		st.Repairs = map[string]uint64{}
	}
	// What a pass had to change although no input changed since the last good one is a repair.
	repair := !news && before.settled
	if repair {
		for _, c := range out.changes {
			st.Repairs[c.Kind]++
		}
	}
	st.rev, st.settled = out.rev, len(out.broken)+len(out.peers)+len(out.waits) == 0
	if st.LastGood = before.LastGood; st.settled {
		st.LastGood = out.at
	}
	st.errors = messages(out)
	a.st = st
	a.mu.Unlock()

	a.metrics.pass(out, repair)
	a.tellChanges(out.changes, repair)
	a.tellErrors(before.errors, st.errors)
	if st.Ready != before.Ready {
		a.log.Info("ready", "ready", st.Ready, "reasons", st.Reasons, "notes", st.Notes)
		if st.Ready && a.parts.Ready != nil {
			a.parts.Ready()
			a.parts.Ready = nil
		}
	}
}

func statusOf(in inputs, out outcome) Status {
	st := Status{
		LastPass: out.at, PassMS: float64(out.took.Microseconds()) / 1000,
		Uplink: in.uplink, Lease: in.own, Paths: out.plan.Paths, Reasons: slices.Clone(out.waits),
	}
	for _, err := range out.broken {
		st.Reasons = append(st.Reasons, err.Error())
	}
	if in.config != nil {
		st.Backend = in.config.Backend.Type()
		for _, n := range networks(*in.config) {
			st.Networks = append(st.Networks, n.String())
		}
	}
	if out.planned {
		st.MTU = out.plan.Subnet.MTU
		st.Progress = progress(out.plan)
	}
	if out.planned && !in.complete && in.savedAt.IsZero() {
		st.Reasons = append(st.Reasons, "peers: waiting for the store")
	}
	st.Ready = len(st.Reasons) == 0
	st.Notes = notes(in, out)
	for _, p := range st.Paths {
		if p.Way == nil {
			st.Unreached++
		}
	}
	if !in.savedAt.IsZero() {
		st.Snapshot = &in.savedAt
	}
	return st
}

// notes says what is not right although the node is ready.
func notes(in inputs, out outcome) []string {
	var ns []string
	if !in.savedAt.IsZero() {
		why := "the store does not answer"
		if in.ownErr != nil {
			why = "no lease"
		}
		ns = append(ns, why+": running from the snapshot of "+in.savedAt.Format(time.RFC3339))
	}
	if in.config != nil && in.configErr != nil {
		ns = append(ns, "network configuration: "+in.configErr.Error())
	}
	for _, f := range family.All() {
		if in.config != nil && in.own != nil && in.config.Network.Of(f).Enabled() && in.uplink.Addr.Of(f).IsValid() && !in.own.Has(f) {
			ns = append(ns, f.String()+": this node has no subnet of it and goes on without")
		}
	}
	for _, l := range in.leases {
		if in.own != nil && l.Refused != "" && l.SameSubnets(*in.own) {
			ns = append(ns, fmt.Sprintf("lease: node %s is refused: %s", l.Node, l.Refused))
		}
	}
	if in.own != nil && in.ownErr != nil {
		ns = append(ns, "lease: "+in.ownErr.Error())
	}
	if in.uplink.Name != "" && in.uplinkErr != nil {
		ns = append(ns, "external interface: "+in.uplinkErr.Error())
	}
	ns = append(ns, in.warnings...)
	for i, err := range out.peers {
		if i == 5 {
			ns = append(ns, fmt.Sprintf("and %d more", len(out.peers)-i))
			break
		}
		ns = append(ns, err.Error())
	}
	return ns
}

func messages(out outcome) []string {
	var ms []string
	for _, err := range append(slices.Clone(out.broken), out.peers...) {
		ms = append(ms, err.Error())
	}
	slices.Sort(ms)
	return slices.Compact(ms)
}

// tellErrors logs a failure when it starts and when it ends.
func (a *Agent) tellErrors(before, now []string) {
	told := 0
	for _, m := range now {
		if _, had := slices.BinarySearch(before, m); had {
			continue
		}
		if told++; told > 10 {
			a.log.Error("further failures in this pass", "count", len(now))
			break
		}
		a.log.Error("failing", "err", m)
	}
	if len(now) == 0 && len(before) > 0 {
		a.log.Info("no longer failing", "was", strings.Join(before[:min(len(before), 10)], "; "))
	}
}

// tellFindings keeps what the firewall found in the way, and logs what is new.
func (a *Agent) tellFindings(found []string) {
	for _, f := range found {
		if !slices.Contains(a.findings, f) {
			a.log.Warn("firewall", "finding", f)
		}
	}
	a.findings = found
}

// tellChanges logs what was written: each object of a small change, a count of a large one.
func (a *Agent) tellChanges(cs []state.Change, repair bool) {
	msg := "applied"
	if repair {
		msg = "repaired"
	}
	if len(cs) > 10 {
		counts := map[string]int{}
		for _, c := range cs {
			counts[c.Kind]++
		}
		a.log.Info(msg, "objects", len(cs), "kinds", counts)
		return
	}
	for _, c := range cs {
		a.log.Info(msg, "op", c.Op, "kind", c.Kind, "object", c.Object, "have", c.Have, "want", c.Want)
	}
}

// tellOwn logs the lease, loudly when it is another one than before.
func (a *Agent) tellOwn(before *lease.Lease, now lease.Lease) {
	switch {
	case before == nil:
		a.log.Info("lease acquired", "subnets", subnets(now), "public", publics(now))
	case !before.SameSubnets(now):
		a.log.Warn("this node has another subnet now: its running pods must be started again",
			"was", subnets(*before), "subnets", subnets(now))
	case !before.Equal(now):
		a.log.Info("lease changed", "subnets", subnets(now), "public", publics(now))
	}
}

// tellLeases logs which peers came, went or changed.
func (a *Agent) tellLeases(in inputs, now []lease.Lease) {
	now = slices.DeleteFunc(slices.Clone(now), in.isOwn)
	if !in.complete {
		a.log.Info("peers known", "count", len(now))
		return
	}
	had := make(map[string]lease.Lease, len(in.leases))
	for _, l := range peers(in) {
		had[subnets(l)] = l
	}
	var came, changed []string
	for _, l := range now {
		k := subnets(l)
		old, ok := had[k]
		switch {
		case !ok:
			came = append(came, k+" at "+publics(l))
		case !old.Equal(l):
			changed = append(changed, k+" at "+publics(l))
		}
		delete(had, k)
	}
	for msg, ks := range map[string][]string{"peers joined": came, "peers changed": changed, "peers left": keys(had)} {
		if len(ks) > 10 {
			a.log.Info(msg, "count", len(ks))
		} else if len(ks) > 0 {
			a.log.Info(msg, "leases", ks)
		}
	}
}

func keys(m map[string]lease.Lease) []string {
	var ks []string
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}

func subnets(l lease.Lease) string {
	return join(l.Subnet.V4.IsValid(), l.Subnet.V4, l.Subnet.V6.IsValid(), l.Subnet.V6)
}

func publics(l lease.Lease) string {
	return join(l.Public.V4.IsValid(), l.Public.V4, l.Public.V6.IsValid(), l.Public.V6)
}

func join(has4 bool, v4 fmt.Stringer, has6 bool, v6 fmt.Stringer) string {
	switch {
	case has4 && has6:
		return v4.String() + " " + v6.String()
	case has4:
		return v4.String()
	case has6:
		return v6.String()
	}
	return "none"
}
