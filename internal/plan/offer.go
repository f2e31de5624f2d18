package plan

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/weftnet/weft/internal/backend"
	"github.com/weftnet/weft/internal/backend/alloc"
	"github.com/weftnet/weft/internal/backend/hostgw"
	"github.com/weftnet/weft/internal/backend/udp"
	"github.com/weftnet/weft/internal/backend/vxlan"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
)

// An Offer is what a node tells its peers: what it receives on, and what it may send on.
type Offer struct {
	Receive []lease.Receiver
	Send    []lease.Key
	Serial  uint64 // see lease.Lease

	// Kept says, per key that the configuration does not select, what for it is still there.
	Kept []string
}

// Without returns o without keys that could not be opened after all. Those that were published stay.
func (o Offer) Without(failed map[lease.Key]error, own lease.Lease) Offer {
	bad := func(k lease.Key) bool {
		_, published := own.Receiver(k)
		return failed[k] != nil && !published && !slices.Contains(own.Send, k)
	}
	o.Receive = slices.DeleteFunc(slices.Clone(o.Receive), func(r lease.Receiver) bool { return bad(r.Key) })
	o.Send = slices.DeleteFunc(slices.Clone(o.Send), bad)
	if len(o.Receive) == 0 || len(o.Send) == 0 {
		o.Receive, o.Send = own.Receive, own.Send
	}
	for _, k := range slices.Sorted(maps.Keys(failed)) {
		if bad(k) {
			o.Kept = append(slices.Clip(o.Kept), fmt.Sprintf("%s cannot be opened: %v", k, failed[k]))
		}
	}
	return o.after(own)
}

// Same says whether both offers tell peers the same.
func (o Offer) Same(p Offer) bool {
	return slices.Equal(o.Receive, p.Receive) && slices.Equal(o.Send, p.Send)
}

// after gives o the number that follows from what l said.
func (o Offer) after(l lease.Lease) Offer {
	if o.Serial = l.Serial; !o.Equal(l) {
		o.Serial++
	}
	return o
}

// Equal says whether l tells peers the same.
func (o Offer) Equal(l lease.Lease) bool {
	return slices.Equal(o.Receive, l.Receive) && slices.Equal(o.Send, l.Send)
}

// target returns the keys that a configuration selects, the preferred one first, and among them the one that
// the original's peers know it by. An error says why a part of it cannot be had here.
func target(c netconf.Config, self backend.Self) (keys []lease.Key, main lease.Key, err error) {
	switch b := c.Backend.(type) {
	case netconf.VXLAN:
		main = vxlan.Key(b)
		if b.DirectRouting && hostgw.Usable(self) == nil {
			return []lease.Key{hostgw.Key, main}, main, nil
		}
		return []lease.Key{main}, main, nil
	case netconf.HostGW:
		return []lease.Key{hostgw.Key}, hostgw.Key, hostgw.Usable(self)
	case netconf.UDP:
		main = udp.Key(b)
	case netconf.Alloc:
		main = alloc.Key
	default:
		return nil, "", fmt.Errorf("backend %s is not built into this version", c.Backend.Type())
	}
	return []lease.Key{main}, main, nil
}

// A turn is one node on its way from one set of keys to another. It knows nothing of time, of the kernel or
// of what a key means, so that the model of the protocol in the tests shares it.
//
// Receive first: what is added to receive is open before it is published. Send when the peer is ready: a
// node sends on what it has published itself, to peers that have published that they receive on it. Let go
// last: sending on an old key ends when no peer is reached by it, receiving when no peer may send on it.
type turn struct {
	target        []lease.Key // as configured, the preferred one first
	main          lease.Key   // of target: what the original's peers should see
	receive, send []lease.Key // as published
	open          []lease.Key // what was open last
	closing       []lease.Key // what stays open until it is seen what is published

	used   func(lease.Key) bool // some peer is reached by it, or was a moment ago
	needed func(lease.Key) bool // some peer may send on it
	relied func(lease.Key) bool // some peer runs the original with its backend
}

// next returns what the node should publish.
func (t turn) next() (receive, send []lease.Key) {
	target := t.possible()
	for _, k := range append(slices.Clone(target), t.send...) {
		if !slices.Contains(send, k) && (slices.Contains(target, k) || t.used(k)) {
			send = append(send, k)
		}
	}
	for _, k := range t.receive {
		if slices.Contains(target, k) || t.needed(k) {
			receive = append(receive, k)
		}
	}
	for _, k := range t.open { // somebody has taken up what we were about to close
		if !slices.Contains(receive, k) && !slices.Contains(target, k) && t.needed(k) {
			receive = append(receive, k)
		}
	}
	// The original's peers rely on the first. Host-gw stays open with DirectRouting, and must make room when they have left it.
	stays := len(receive) > 0 && slices.Index(t.receive, receive[0]) == 0 && (!slices.Contains(target, receive[0]) || t.relied(receive[0]))
	for _, k := range target {
		if !slices.Contains(receive, k) {
			receive = append(receive, k)
		}
	}
	if at := slices.Index(receive, t.main); !stays && at > 0 {
		receive = slices.Insert(slices.Delete(receive, at, at+1), 0, t.main)
	}
	return receive, send
}

// possible returns target with a bridge in place of what cannot be open beside an old key: a key with the next
// free port, by which all peers are reached while the old one is let go.
func (t turn) possible() []lease.Key {
	var keys []lease.Key
	for _, k := range t.target {
		for t.beside(k) != "" {
			k = bridge(k)
		}
		keys = append(keys, k)
	}
	return keys
}

// beside returns what is there that k cannot be open beside, or nothing.
func (t turn) beside(k lease.Key) lease.Key {
	for _, old := range slices.Concat(t.send, t.receive, t.closing, t.open) {
		if conflict(old, k) {
			return old
		}
	}
	return ""
}

// port returns the UDP port that k's receiver is bound to, 0 if there is none.
func port(k lease.Key) int {
	if c, ok := vxlan.ParseKey(k); ok {
		return c.Port
	}
	c, _ := udp.ParseKey(k)
	return c.Port
}

// conflict says whether the kernel cannot have both: sockets of VXLAN devices are shared per port and only with
// the same flags (vxlan_find_sock), and with nobody else.
func conflict(a, b lease.Key) bool {
	if port(a) == 0 || port(a) != port(b) {
		return false
	}
	va, isA := vxlan.ParseKey(a)
	vb, isB := vxlan.ParseKey(b)
	return isA != isB || isA && va.GBP != vb.GBP
}

// bridge returns k with the next port.
func bridge(k lease.Key) lease.Key {
	next := func(port int) int { return port%65535 + 1 }
	if c, ok := vxlan.ParseKey(k); ok {
		c.Port = next(c.Port)
		return vxlan.Key(c)
	}
	if c, ok := udp.ParseKey(k); ok {
		return udp.Key(netconf.UDP{Port: next(c.Port)})
	}
	return k
}

// maxKeys bounds what a node has open at once, however often the configuration changes meanwhile.
const maxKeys = 8

// turning returns the state of this node's turn. Used says which keys reach a peer. An error means that there
// is nothing to turn to; Refused says why this node stays as it is.
func turning(in Input, used func(lease.Key) bool) (t turn, refused, err error) {
	want, main, err := target(in.Config, in.Self)
	t = turn{
		target: want, main: main, receive: keysOf(in.Own), send: in.Own.Send, closing: closing(in),
		open: wasOpen(in),
		used: used, needed: func(k lease.Key) bool { return needed(in, k) != "" },
		relied: func(k lease.Key) bool { return relied(in, k) },
	}
	stay := known(in, t.send)
	var old lease.Key // in the way of what is wanted
	for _, k := range want {
		old = cmp.Or(old, t.beside(k))
	}
	switch {
	case err != nil && len(stay) == 0:
		return t, nil, err
	case err != nil:
		t.target = one(stay) // as it was: what cannot be had here must not cost what there is
		return t, err, nil
	case old != "" && !in.Probe && len(stay) > 0:
		t.target = one(stay)
		return t, fmt.Errorf("%s cannot be open beside %s, and without probes nobody knows whether a bridge on another port carries: "+
			"change by way of another port", main, old), nil
	case len(t.receive) >= maxKeys && len(stay) > 0 && !slices.Contains(t.receive, main):
		t.target = one(stay[max(0, slices.IndexFunc(stay, used)):])
		return t, errors.New("too many changes at once: waiting until peers have followed"), nil
	}
	return t, nil, nil
}

// one returns the first of keys, and what DirectRouting falls back to. A node that stays as it is lets go of the others
// as it would otherwise: to keep them would have all nodes wait for each other.
func one(keys []lease.Key) []lease.Key {
	if keys[0] == hostgw.Key {
		return keys[:min(2, len(keys))]
	}
	return keys[:1]
}

// same says whether the store shows what was published last.
func same(shown, own lease.Lease) bool {
	return shown.Serial == own.Serial && slices.Equal(keysOf(shown), keysOf(own)) && slices.Equal(shown.Send, own.Send)
}

// wasOpen returns what was open last: after a restart, what the kernel has of ours.
func wasOpen(in Input) []lease.Key {
	if in.Open != nil || !in.Complete {
		return in.Open
	}
	var keys []lease.Key
	for _, d := range in.Host.Devices {
		if d.Kind == "vxlan" && d.Owner == in.Self.Owner && d.VXLAN.Port > 0 {
			keys = append(keys, vxlan.Key(netconf.VXLAN{VNI: d.VXLAN.VNI, Port: d.VXLAN.Port, GBP: d.VXLAN.GBP}))
		}
	}
	for _, port := range in.Host.Tunnels {
		keys = append(keys, udp.Key(netconf.UDP{Port: port}))
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// closing returns what must stay open although it is published no more.
func closing(in Input) []lease.Key {
	if l, ok := seen(in); !ok || same(l, in.Own) {
		return nil
	}
	return wasOpen(in)
}

// seen returns the lease of this node as the store shows it to everybody.
func seen(in Input) (lease.Lease, bool) {
	for _, l := range in.Leases {
		if l.SameSubnets(in.Own) {
			return l, true
		}
	}
	return lease.Lease{}, false
}

// keysOf returns what l receives on.
func keysOf(l lease.Lease) []lease.Key {
	var keys []lease.Key
	for _, r := range l.Receive {
		if r.Key != "" {
			keys = append(keys, r.Key)
		}
	}
	return keys
}

// needed says who may send to this node on k, or nothing if nobody does.
func needed(in Input, k lease.Key) string {
	if !in.Complete {
		return "peers that are not known yet"
	}
	b, err := backendOf(in, k)
	n, who := 0, ""
	for _, l := range in.Leases {
		if l.SameSubnets(in.Own) || l.Refused != "" || !slices.Contains(l.Send, k) && !(l.Original() && len(l.Receive) > 0 && err == nil && b.Speaks(l.Receive[0])) {
			continue
		}
		if n++; n == 1 {
			who = printable(cmp.Or(l.Node, lease.Name(l.Subnet)))
		}
	}
	if n > 1 {
		who += " and " + strconv.Itoa(n-1) + " more"
	}
	return who
}

// relied says whether a node of the original may be told of this one by k.
func relied(in Input, k lease.Key) bool {
	b, err := backendOf(in, k)
	return !in.Complete || err == nil && slices.ContainsFunc(in.Leases, func(l lease.Lease) bool {
		return l.Original() && len(l.Receive) > 0 && !l.SameSubnets(in.Own) && l.Receive[0].Type == b.Type()
	})
}

// kept says what old keys are still there for.
func kept(in Input, t turn, o Offer, refused error) []string {
	var why []string
	if refused != nil {
		why = append(why, refused.Error())
	}
	for _, r := range o.Receive {
		if slices.Contains(t.target, r.Key) {
			continue
		}
		if who := needed(in, r.Key); who != "" {
			why = append(why, fmt.Sprintf("%s is received for %s", r.Key, who))
		}
	}
	for _, k := range o.Send {
		if !slices.Contains(t.target, k) {
			why = append(why, fmt.Sprintf("%s is still used to send", k))
		}
	}
	for _, k := range t.target {
		if !slices.Contains(o.Send, k) {
			why = append(why, fmt.Sprintf("%s waits until its port is free; until then %s, which must be open between nodes too", k, bridge(k)))
		}
	}
	return why
}

// First returns what a node publishes before it has a lease: what it published before, as peers rely on
// it, or else what the configuration selects. Prior is its lease of before, zero if there is none.
func First(c netconf.Config, self backend.Self, prior lease.Lease, host Host) (Offer, error) {
	in := Input{Config: c, Self: self, Own: adopt(prior, self, host), Host: host}
	receive, send := known(in, keysOf(in.Own)), known(in, in.Own.Send)
	if len(receive) == 0 || len(send) == 0 {
		keys, main, err := target(c, self)
		if err != nil {
			return Offer{}, err
		}
		others := slices.DeleteFunc(slices.Clone(keys), func(k lease.Key) bool { return k == main })
		receive, send = append([]lease.Key{main}, others...), keys
	}
	bs, _, err := open(in, receive)
	o := Offer{Send: send}
	for _, b := range bs {
		o.Receive = append(o.Receive, b.Publish(self, prior.Receive, host.Devices))
	}
	return o.after(prior), err
}

// known returns the keys that can be had here, and beside each other: lists come back from the store, where others
// may have changed them.
func known(in Input, keys []lease.Key) []lease.Key {
	var ks []lease.Key
	for _, k := range keys {
		_, err := backendOf(in, k)
		bad := err != nil || k == hostgw.Key && hostgw.Usable(in.Self) != nil || len(ks) == 2*maxKeys
		if !bad && !slices.ContainsFunc(ks, func(had lease.Key) bool { return had == k || conflict(had, k) }) {
			ks = append(ks, k)
		}
	}
	return ks
}

// adopt returns prior with keys, should the original have published it: the port, which it does not publish, is
// its device's. Without the device there is nothing that peers could rely on.
func adopt(prior lease.Lease, self backend.Self, host Host) lease.Lease {
	if len(prior.Receive) == 0 || !prior.Original() {
		return prior
	}
	var keys []lease.Key
	r := prior.Receive[0]
	if r.Type == "host-gw" && hostgw.Usable(self) == nil {
		keys = append(keys, hostgw.Key)
	}
	for _, d := range host.Devices {
		c := netconf.VXLAN{VNI: d.VXLAN.VNI, Port: d.VXLAN.Port, GBP: d.VXLAN.GBP}
		if d.Kind == "vxlan" && c.Port > 0 && (d.Owner == "" || d.Owner == self.Owner) && vxlan.New(c, vxlan.Names(c.VNI)).Speaks(r) && !slices.Contains(keys, vxlan.Key(c)) {
			keys = append(keys, vxlan.Key(c))
		}
	}
	if len(keys) == 0 {
		return prior
	}
	out := prior
	out.Receive, out.Send = nil, keys
	for _, k := range keys {
		out.Receive = append(out.Receive, lease.Receiver{Key: k, Type: r.Type, Data: r.Data})
	}
	return out
}
