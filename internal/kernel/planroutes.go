package kernel

import (
	"cmp"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/state"
)

func (r *rest) routes() (del []step) {
	settled := func(key state.RouteKey) bool { // the usual case, and there are thousands
		list := r.h.routes[key]
		_, clash := r.h.connected[key.Dst]
		return len(list) == 1 && list[0] == route{Route: r.want.Routes[key]} && !clash
	}
	for _, key := range sortedBut(r.want.Routes, settled) {
		del = append(del, r.route(key, route{Route: r.want.Routes[key]})...)
	}
	wanted := func(key state.RouteKey) bool { _, ok := r.want.Routes[key]; return ok }
	for _, key := range sortedBut(r.h.routes, wanted) {
		for _, have := range r.h.routes[key] {
			// Also where the device goes: while it is on its way down packets would still be routed to it, and
			// one standing by would take over from one that is deleted.
			if !r.refused[have.Dev] && r.sc.staleRoute(key, have, r.h, r.want) {
				del = append(del, &routeStep{op: state.Remove, key: key, have: have})
			}
		}
	}
	slices.SortStableFunc(del, func(a, b step) int { return cmp.Compare(b.(*routeStep).key.Metric, a.(*routeStep).key.Metric) })
	return del
}

// sortedBut returns the keys of m that skip does not name, in the order in which they may come: those of one metric
// together, the better ones first, so that no packet goes by a route that is to wait behind another. They go in the
// opposite order.
func sortedBut[V any](m map[state.RouteKey]V, skip func(state.RouteKey) bool) []state.RouteKey {
	var keys []state.RouteKey
	for key := range m {
		if !skip(key) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b state.RouteKey) int { return cmp.Or(cmp.Compare(a.Metric, b.Metric), a.Compare(b)) })
	return keys
}

func (r *rest) route(key state.RouteKey, want route) (del []step) {
	list := r.h.routes[key]
	if c, ok := r.h.connected[key.Dst]; ok && (want.Type != state.Blackhole || key.Metric <= c.Metric) {
		r.clash(key, want, c.Dev)
		return nil
	}
	if want.Type != state.Blackhole && !r.ready(want.Dev) {
		return nil
	}
	at := slices.Index(list, want)
	four := key.Dst.Addr().Is4()
	victim := -1 // the entry that a replace would take away
	switch {
	case len(list) == 0:
		r.add(&routeStep{op: state.Add, key: key, want: want})
	case at == 0, at > 0 && !four: // IPv6 entries of one metric are all in force
	default:
		if at > 0 { // in the shadow of another, where it would make the replace fail with EEXIST
			r.add(&routeStep{op: state.Remove, key: key, have: want})
		}
		victim = replaced(list, want, four)
		r.add(&routeStep{op: state.Modify, key: key, have: list[victim], want: want})
	}
	for i, extra := range list {
		if i != at && i != victim && r.leftover(extra) {
			del = append(del, &routeStep{op: state.Remove, key: key, have: extra})
		}
	}
	return del
}

// clash deals with a subnet that a device of this host has: the kernel's own route is never touched. A
// blackhole route is for a subnet that no device has, so it gives way; with the same metric it would win
// over a bridge that came later, and cut off its pods. With a larger one it waits behind.
func (r *rest) clash(key state.RouteKey, want route, dev string) {
	if want.Type != state.Blackhole {
		r.refuse(state.Add, "route", key.String(), "device %s has the same subnet", dev)
		return
	}
	for _, have := range r.h.routes[key] {
		if have == want {
			r.add(&routeStep{op: state.Remove, key: key, have: have})
		}
	}
}

// replaced returns the place of the entry that NLM_F_REPLACE puts want in the place of: for IPv4 the first;
// for IPv6 the first that, like want, can or cannot be one of several next hops, else the first
// (fib6_add_rt2node). One with several goes as a whole.
func replaced(list []route, want route, four bool) int {
	if !four {
		several := func(r route) bool { return r.Via.IsValid() || r.Odd && r.Dev == "" }
		for i, r := range list {
			if several(r) == several(want) {
				return i
			}
		}
	}
	return 0
}

// leftover says whether an entry beside the wanted one, with the same key, is to go. One of ours that is
// odd cannot be named in a deletion without naming the wanted one too.
func (r *rest) leftover(extra route) bool {
	return extra.Protocol == unix.RTPROT_BOOT || extra.Protocol == state.Protocol && !extra.Odd
}

// planCleanup returns the steps that remove every trace of ours and of the original.
func planCleanup(h have, sc Scope) []step {
	var routes, links []step
	going := map[string]bool{}
	for _, name := range sortedKeys(h.links) {
		if d := h.links[name]; sc.marked(d) || originalLink(name, d) {
			going[name] = true
			links = append(links, &linkStep{op: state.Remove, name: name, have: d})
		}
	}
	for _, key := range sortedBut(h.routes, func(state.RouteKey) bool { return false }) {
		for _, r := range h.routes[key] {
			ours := r.Protocol == state.Protocol || sc.originalRoute(key, r, h) || sc.originalBlackhole(key, r)
			if ours && !going[r.Dev] {
				routes = append(routes, &routeStep{op: state.Remove, key: key, have: r})
			}
		}
	}
	for _, a := range sortedAddrs(h.locals) {
		if h.locals[a].Ours {
			routes = append(routes, &localStep{op: state.Remove, addr: a})
		}
	}
	return append(routes, links...)
}
