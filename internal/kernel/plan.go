package kernel

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/state"
)

// A plan is what to do, in order, and what cannot be done.
type plan struct {
	steps []step
	errs  []ObjectError
}

func (p *plan) add(s step) { p.steps = append(p.steps, s) }

func (p *plan) refuse(op state.Op, kind, object, format string, args ...any) {
	p.errs = append(p.errs, ObjectError{Kind: kind, Object: object, Op: op, Err: fmt.Errorf(format, args...)})
}

// planLinks returns the steps that make the wanted links as they should be. Unwanted ones go last of all,
// in planRest.
func planLinks(h have, want state.State, sc Scope) plan {
	var p plan
	for _, name := range sortedKeys(want.Links) {
		p.link(name, h, want, sc)
	}
	return p
}

func (p *plan) link(name string, h have, wanted state.State, sc Scope) {
	want := wanted.Links[name]
	d, exists := h.links[name]
	w := h.stored(want, d)
	_, parent := h.links[w.VXLAN.Parent]
	switch {
	case want.Kind != kindVXLAN && want.Kind != kindTUN:
		p.refuse(state.Add, "link", name, "kind %q is not known", want.Kind)
	case exists && sc.refusal(d, want) != nil:
		p.refuse(state.Modify, "link", name, "%w", sc.refusal(d, want))
	case w.VXLAN.Parent != "" && !parent:
		p.refuse(state.Add, "link", name, "no lower device %s", w.VXLAN.Parent)
	case !exists && want.Kind == kindTUN: // rtnetlink makes none: its queues need somebody who has them open
		p.refuse(state.Add, "link", name, "no such TUN device: the tunnel that makes it does not run")
	case !exists && h.former(want, wanted, sc) != "":
		from := h.former(want, wanted, sc)
		p.add(&linkStep{op: state.Modify, name: name, from: from, have: h.links[from], want: h.stored(want, h.links[from])})
	case !exists:
		p.makeRoom(h, w, wanted, sc)
		p.add(&linkStep{op: state.Add, name: name, want: w})
	case mustRecreate(d, w) != "":
		p.add(&linkStep{op: state.Modify, name: name, have: d, want: w, recreate: true})
	case d.Link != w || !d.Up || d.Port:
		p.add(&linkStep{op: state.Modify, name: name, have: d, want: w})
	}
}

// makeRoom removes a device of ours that is in the way of a new one.
func (p *plan) makeRoom(h have, w state.Link, wanted state.State, sc Scope) {
	for _, name := range sortedKeys(h.links) {
		d := h.links[name]
		_, keep := wanted.Links[name]
		if !keep && sc.marked(d) && d.Kind == w.Kind && excludes(d.VXLAN, w.VXLAN) {
			p.add(&linkStep{op: state.Remove, name: name, have: d})
		}
	}
}

// afterLinks returns h as it will be after the steps of planLinks. New devices have no index.
func afterLinks(h have, steps []step) have {
	h.links = maps.Clone(h.links)
	for _, s := range steps {
		s, ok := s.(*linkStep)
		if !ok {
			continue
		}
		if s.op == state.Remove {
			h = h.without(s.name, true, true)
			delete(h.links, s.name)
			continue
		}
		if s.from != "" {
			h = h.renamed(s.from, s.name)
		}
		h.links[s.name] = device{Link: s.want, Index: s.have.Index, Up: true}
		anew := s.op == state.Add || s.recreate
		h = h.without(s.name, anew, anew || s.have.MAC != s.want.MAC || !s.have.Up)
	}
	return h
}

// without leaves out what the kernel drops: with a device everything on it; with its MAC (neigh_changeaddr)
// the neighbours.
func (h have) without(dev string, all, neighbours bool) have {
	if neighbours {
		h.neighbour = maps.Clone(h.neighbour)
		maps.DeleteFunc(h.neighbour, func(k state.NeighbourKey, _ state.MAC) bool { return k.Dev == dev })
	}
	if !all {
		return h
	}
	h.addresses, h.fdb = maps.Clone(h.addresses), maps.Clone(h.fdb)
	h.routes, h.sysctls = maps.Clone(h.routes), maps.Clone(h.sysctls)
	maps.DeleteFunc(h.addresses, func(k state.Address, _ address) bool { return k.Dev == dev })
	maps.DeleteFunc(h.fdb, func(k state.FDBKey, _ fdbEntry) bool { return k.Dev == dev })
	for key, rs := range h.routes {
		if rs = slices.DeleteFunc(slices.Clone(rs), func(r route) bool { return r.Dev == dev }); len(rs) > 0 {
			h.routes[key] = rs
		} else {
			delete(h.routes, key)
		}
	}
	for key := range h.sysctls {
		if strings.Contains(key, "/"+dev+"/") {
			h.sysctls[key] = sysctl{}
		}
	}
	return h
}

// planRest returns the steps for everything but links, and those for links that are to go: what is new
// before what uses it, all that is new before anything old goes.
func planRest(h have, want state.State, sc Scope) plan {
	r := rest{h: h, want: normalised(want), sc: sc, refused: map[string]bool{}, going: map[string]bool{}, waiting: map[string]int{}}
	r.findRefused()
	if sc.Complete {
		r.findStaleLinks()
	}
	delAddresses := r.addresses()
	delLocals := r.locals()
	r.sysctls()
	delNeighbours := r.neighbours()
	delFDB := r.fdb()
	delRoutes := r.routes()
	for _, del := range [][]step{delRoutes, delFDB, delNeighbours, delAddresses, delLocals} {
		if sc.Complete {
			r.steps = append(r.steps, del...)
		}
	}
	for _, name := range sortedKeys(r.going) {
		r.add(&linkStep{op: state.Remove, name: name, have: h.links[name]})
	}
	for _, dev := range sortedKeys(r.waiting) {
		if _, ours := want.Links[dev]; ours {
			continue // it could not be made, which has been said
		}
		r.refuse(state.Modify, "link", dev, "no such device: %d objects wait for it", r.waiting[dev])
	}
	return r.plan
}

// normalised gives IPv6 routes the metric that the kernel stores.
func normalised(want state.State) state.State {
	for key := range want.Routes {
		if key.Metric == 0 && key.Dst.Addr().Is6() {
			want.Routes = maps.Clone(want.Routes)
			break
		}
	}
	for key, r := range want.Routes {
		if key.Metric == 0 && key.Dst.Addr().Is6() {
			delete(want.Routes, key)
			want.Routes[state.RouteKey{Dst: key.Dst, Metric: state.Metric6}] = r
		}
	}
	return want
}

// rest is planRest at work. Its methods add what is to be set, and return what is to be deleted.
type rest struct {
	plan
	h       have
	want    state.State
	sc      Scope
	refused map[string]bool // links that should have another name and stay as they are
	going   map[string]bool // links that will be deleted, and take with them what hangs on them
	waiting map[string]int  // objects per missing device
}

func (r *rest) findStaleLinks() {
	for name, d := range r.h.links {
		if _, wanted := r.want.Links[name]; !wanted && !r.refused[name] && r.sc.staleLink(name, d, r.h) {
			r.going[name] = true
		}
	}
}

// ready says whether an object's device is there to hold it, and counts the object if not.
func (r *rest) ready(dev string) bool {
	d, ok := r.h.links[dev]
	if l, wanted := r.want.Links[dev]; ok && (!wanted || r.sc.refusal(d, l) == nil) {
		return true
	}
	r.waiting[dev]++
	return false
}

// ours says whether an object that is on a device is there to be deleted: the device is ours and stays.
func (r *rest) ours(dev string) bool {
	d, ok := r.h.links[dev]
	return ok && !r.going[dev] && !r.refused[dev] && r.sc.owns(dev, d, r.want)
}

func (r *rest) addresses() (del []step) {
	have := map[state.Address]bool{}
	for a := range r.h.addresses {
		have[a] = true
	}
	set, rm := state.Diff(have, r.want.Addresses)
	for _, a := range set {
		if !r.ready(a.Dev) {
			continue
		}
		// The kernel knows an IPv6 address of a device by the address alone: with another length it must
		// go first, and cannot be replaced.
		for _, old := range rm {
			if old.Dev == a.Dev && old.Prefix.Addr() == a.Prefix.Addr() && a.Prefix.Addr().Is6() {
				r.add(&addressStep{op: state.Remove, key: old, have: r.h.addresses[old]})
			}
		}
		r.add(&addressStep{op: state.Add, key: a})
	}
	for _, a := range rm {
		ip := a.Prefix.Addr()
		prune := r.want.Links[a.Dev].Prune.Of(family.Of(ip))
		replaced := ip.Is6() && slices.ContainsFunc(set, func(s state.Address) bool { return s.Dev == a.Dev && s.Prefix.Addr() == ip })
		if r.ours(a.Dev) && prune.Contains(ip) && !ip.IsLinkLocalUnicast() && !replaced {
			del = append(del, &addressStep{op: state.Remove, key: a, have: r.h.addresses[a]})
		}
	}
	return del
}

func (r *rest) sysctls() {
	for _, key := range sortedKeys(r.want.Sysctls) {
		want, have := strings.Join(strings.Fields(r.want.Sysctls[key]), " "), r.h.sysctls[key]
		switch {
		case have.Err != nil && optional(key):
		case have.Err != nil:
			err := have.Err
			if absent(err) {
				err = errors.New("this kernel has no such key, or its device is missing")
			}
			r.refuse(state.Modify, "sysctl", key, "%w", err)
		case have.Value != want:
			r.add(&sysctlStep{key: key, have: have.Value, want: want})
		}
	}
}

// opFor tells adding from changing.
func opFor[K comparable, V any](have map[K]V, key K) state.Op {
	if _, ok := have[key]; ok {
		return state.Modify
	}
	return state.Add
}

func (r *rest) neighbours() (del []step) {
	set, rm := state.Diff(r.h.neighbour, r.want.Neighbours)
	for _, key := range set {
		if r.ready(key.Dev) {
			op := opFor(r.h.neighbour, key)
			r.add(&neighbourStep{op: op, key: key, have: r.h.neighbour[key], want: r.want.Neighbours[key]})
		}
	}
	for _, key := range rm {
		if r.ours(key.Dev) {
			del = append(del, &neighbourStep{op: state.Remove, key: key, have: r.h.neighbour[key]})
		}
	}
	return del
}

func (r *rest) fdb() (del []step) {
	want := make(map[state.FDBKey]fdbEntry, len(r.want.FDB))
	for key, dst := range r.want.FDB {
		want[key] = fdbEntry{Dst: dst}
	}
	set, rm := state.Diff(r.h.fdb, want)
	for _, key := range set {
		if r.ready(key.Dev) {
			r.add(&fdbStep{op: opFor(r.h.fdb, key), key: key, have: r.h.fdb[key], want: want[key].Dst})
		}
	}
	for _, key := range rm {
		if r.ours(key.Dev) {
			del = append(del, &fdbStep{op: state.Remove, key: key, have: r.h.fdb[key]})
		}
	}
	return del
}
