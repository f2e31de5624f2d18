package plan

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/internal/backend"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/state"
)

// StandbyMetric is the metric of the first route by which a way is probed that is not in use.
const StandbyMetric = 1 << 19

// A WayID is one way to one peer.
type WayID struct {
	Subnet netip.Prefix
	Key    lease.Key
}

// A Probe is a way whose health the plan depends on: an echo between the first addresses of both subnets
// over Dev. The probes of one peer are in order of preference.
type Probe struct {
	WayID
	Dev      string
	Src, Dst netip.Addr
	Size     int // of the largest IP packet that the way must carry, in bytes
}

// A Health says what is known of a way.
type Health uint8

// The states of a way.
const (
	Unknown Health = iota // no probe has crossed it yet
	Good
	Dead   // it was probed, and nothing comes back
	Try    // dead like all ways to this peer, but to be used now, as replies may depend on it
	Called // good, but only the peer's agent has answered, not its kernel; the agent makes Good of it
	Silent // in use, and dead for all that is known of a peer who may not answer: it is left for a good one only
)

// choose returns the key by which to send to one peer: the first that probes have crossed, or the one in use as
// long as they have not said anything of it; else the one in use if it is silent; else, of those of which nothing
// is known, the last, which is the one that has been there longest; else the one that is to be tried; else the one
// in use. Keys are in order of preference, at least one. Whatever health says, the result is one of them.
func choose(keys []lease.Key, current lease.Key, health func(lease.Key) Health) lease.Key {
	for _, k := range keys {
		if h := health(k); h == Good || h == Unknown && k == current {
			return k
		}
	}
	if slices.Contains(keys, current) && health(current) == Silent {
		return current
	}
	for _, k := range slices.Backward(keys) {
		if health(k) == Unknown {
			return k
		}
	}
	for _, k := range keys {
		if health(k) == Try {
			return k
		}
	}
	if slices.Contains(keys, current) {
		return current
	}
	return keys[len(keys)-1]
}

// A reacher adds the ways to peers to a state.
type reacher struct {
	in       Input
	backends map[lease.Key]backend.Backend
	send     []lease.Key // what this node may send on, the preferred one first
	s        *state.State
	probes   []Probe
}

// sendable returns what the node may send on: what it has published, once it has seen that in the store, since
// whoever lets go of a receiver has seen it then too. Until then it goes on with what it uses.
func sendable(in Input) []lease.Key {
	published, ok := seen(in)
	if !ok || same(published, in.Own) {
		return in.Own.Send
	}
	before := published.Send
	if len(in.Ways) > 0 {
		before = slices.Collect(maps.Values(in.Ways))
	}
	both := slices.DeleteFunc(slices.Clone(in.Own.Send), func(k lease.Key) bool { return !slices.Contains(before, k) })
	if len(both) == 0 {
		return in.Own.Send
	}
	return both
}

// reach returns the paths to all peers. A peer without a way keeps its subnet from nobody.
func (r *reacher) reach() []Path {
	paths := make([]Path, 0, len(r.in.Leases))
	var taken claims
	for _, l := range inOrder(r.in) {
		if l.SameSubnets(r.in.Own) {
			continue
		}
		for _, f := range family.All() {
			if !l.Has(f) || !r.in.has(f) {
				continue // each peer is talked to in the families that both have
			}
			path := Path{Node: l.Node, Family: f, Subnet: l.Subnet.Of(f), Public: l.Public.Of(f)}
			if l.Refused != "" {
				path.Reason = "refused: " + l.Refused
			} else if err := taken.check(r.in, path); err != nil {
				path.Reason = err.Error()
			} else {
				r.admit(path)
				if r.way(l, &path); path.Way != nil {
					taken.grant(path)
				}
			}
			paths = append(paths, path)
		}
	}
	slices.SortFunc(paths, func(a, b Path) int { return a.Subnet.Compare(b.Subnet) })
	return paths
}

// admit has this node receive from a peer by all that it has open: the peer chooses.
func (r *reacher) admit(path Path) {
	for _, b := range r.backends {
		b.Admit(backend.Peer{Family: path.Family, Subnet: path.Subnet, Public: path.Public}, r.s)
	}
}

// receiver returns what l receives on for k. The first is also in the original's form, which the original writes
// anew when it takes a node over, and leaves the keys.
func receiver(l lease.Lease, k lease.Key, b backend.Backend) (lease.Receiver, bool) {
	if l.Original() || l.Receive[0].Key == k {
		return first(l), len(l.Receive) > 0 && b.Speaks(l.Receive[0])
	}
	return l.Receiver(k)
}

func first(l lease.Lease) lease.Receiver {
	if len(l.Receive) == 0 {
		return lease.Receiver{}
	}
	return l.Receive[0]
}

// way finds the way to one peer and the probes that it needs. Reason says why the preferred one is not in use.
func (r *reacher) way(l lease.Lease, path *Path) {
	var keys []lease.Key
	reasons := map[lease.Key]string{}
	for _, k := range r.send {
		if _, ok := receiver(l, k, r.backends[k]); ok {
			keys = append(keys, k)
		} else {
			reasons[k] = fmt.Sprintf("receives on %s, not on %s", receives(l), k)
		}
	}
	for len(keys) > 0 {
		bad, err := r.use(l, path, keys)
		if err == nil {
			break
		}
		reasons[bad] = err.Error()
		keys = slices.DeleteFunc(keys, func(k lease.Key) bool { return k == bad })
	}
	path.Possible = keys
	for _, k := range r.send {
		if path.Way != nil && path.Way.Key == k {
			return
		}
		if slices.Contains(keys, k) {
			reasons[k] = fmt.Sprintf("%s: %s", k, r.health(path, k))
		}
		if path.Reason == "" || path.Way == nil {
			path.Reason = reasons[k]
		}
	}
}

func (r *reacher) health(path *Path, k lease.Key) string {
	id := WayID{path.Subnet, k}
	if why := r.in.Trouble[id]; why != "" {
		return why
	}
	if r.in.Health[id] == Unknown {
		return "no probe has crossed it yet"
	}
	return "probes do not come back"
}

// use adds the way to one peer, and a route with a worse metric for each other way that is to be probed: all
// that are preferred to the one in use, and all of them when that one seems to have died. An error comes
// with the key that cannot be used after all.
func (r *reacher) use(l lease.Lease, path *Path, keys []lease.Key) (lease.Key, error) {
	health := func(k lease.Key) Health { return r.in.Health[WayID{path.Subnet, k}] }
	probed := r.in.Probe && len(keys) > 1 && r.in.has(path.Family) && r.local(path.Family)
	use := choose(keys, r.in.Ways[path.Subnet], health)
	if !probed || l.Original() && health(use) != Good {
		use = r.trusted(l, keys, probed) // what the original may not receive on is not tried
	}
	last := slices.Index(keys, use)
	if h := health(use); probed && (h == Dead || h == Try || h == Silent) {
		last = len(keys) - 1
	}
	routes := map[state.RouteKey]state.Route{}
	var probes []Probe
	var way backend.Way
	for i, k := range keys {
		if i > last || !probed && k != use {
			continue
		}
		w, route, err := r.toward(l, path, k)
		if err != nil {
			return k, err
		}
		key := backend.Route(path.Subnet)
		if k != use {
			key.Metric = StandbyMetric + i
		} else {
			way = w
		}
		routes[key] = route
		if probed {
			probes = append(probes, Probe{
				WayID: WayID{path.Subnet, k}, Dev: w.Dev, Src: r.in.Own.Subnet.Of(path.Family).Addr(), Dst: path.Subnet.Addr(),
				Size: r.backends[k].MTU(r.in.Self),
			})
		}
	}
	if before := r.in.Ways[path.Subnet]; before != use && slices.Contains(keys, before) {
		_, _, _ = r.toward(l, path, before) // packets on their way find what they need until the next pass
	}
	if w, ok := r.backends[use].(interface{ Wide() bool }); !ok || !w.Wide() || len(keys) > 1 {
		for key, route := range routes {
			r.s.Routes[key] = route
		}
	}
	r.probes = append(r.probes, probes...)
	path.Way = &way
	return "", nil
}

// trusted returns the key to use although no probe has crossed it: the preferred one; with a node that runs the
// original, which tells the backend but not the port, the one of that backend that the original's nodes have
// long known. Its direct way is one that it may filter: trusted only where nothing is probed.
func (r *reacher) trusted(l lease.Lease, keys []lease.Key, probed bool) lease.Key {
	first := keys[0]
	for _, k := range keys {
		if l.Original() && probed && r.backends[k].Type() == l.Receive[0].Type {
			first = k
			break
		}
	}
	known := append(keysOf(r.in.Own), first)[0]
	if b := r.backends[known]; l.Original() && slices.Contains(keys, known) && b.Type() == r.backends[first].Type() {
		return known
	}
	return first
}

func (r *reacher) toward(l lease.Lease, path *Path, k lease.Key) (backend.Way, state.Route, error) {
	b := r.backends[k]
	got, _ := receiver(l, k, b)
	return b.Reach(backend.Peer{
		Family: path.Family, Subnet: path.Subnet, Public: path.Public, Data: got.Data.Of(path.Family),
		Direct: r.in.Direct[path.Public],
	}, r.s)
}

// local says whether the address that probes come from is on one of our devices.
func (r *reacher) local(f family.Family) bool {
	return onDevice(r.s, r.in.Own.Subnet.Of(f).Addr())
}

// receives names what a peer receives on, for people.
func receives(l lease.Lease) string {
	s := ""
	for i, r := range l.Receive {
		if i > 0 {
			s += ", "
		}
		if r.Key != "" {
			s += printable(string(r.Key))
		} else {
			s += cmp.Or(printable(r.Type), "nothing")
		}
	}
	return cmp.Or(s, "nothing")
}
