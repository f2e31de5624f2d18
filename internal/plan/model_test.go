package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/state"
)

// A world is a model of a cluster whose backend changes: a store that every node sees at its own pace, nodes
// that make passes and publish whenever they like, that crash and reboot, and probes that say anything. The
// nodes decide by Build and First alone, as the agent does.
type world struct {
	configs []netconf.Backend // of all times; the last is in force
	log     []lease.Lease     // all writes to the store, in order
	nodes   []*member
	reached map[[2]int]bool // pairs of nodes that have had a way
}

// A member is one node of a world.
type member struct {
	n        int
	segment  int
	original bool
	up       bool // carries packets
	config   int  // what it has seen of configs
	view     int  // what it has seen of log
	own      lease.Lease
	offer    *Offer

	open   map[lease.Key]bool         // in the kernel
	last   []lease.Key                // the same, as the agent remembers it
	names  map[string]state.Link      // devices in the kernel
	ways   map[netip.Prefix]lease.Key // in the kernel
	health map[WayID]Health
	probe  bool
}

var modelConfigs = []netconf.Backend{
	netconf.VXLAN{VNI: 1}, netconf.VXLAN{VNI: 1, DirectRouting: true}, netconf.VXLAN{VNI: 1, Port: 4789},
	netconf.VXLAN{VNI: 2}, netconf.VXLAN{VNI: 1, GBP: true}, netconf.HostGW{}, netconf.UDP{Port: 8285}, netconf.UDP{Port: 8286},
	netconf.UDP{Port: 8472},
}

func newWorld(t *rapid.T, size, originals int) *world {
	w := &world{configs: modelConfigs[:1], reached: map[[2]int]bool{}}
	probe := rapid.Bool().Draw(t, "probes")
	for n := 1; n <= size; n++ {
		m := &member{n: n, segment: min(n/4, 1), original: n <= originals, up: true, probe: probe}
		m.reset()
		w.nodes = append(w.nodes, m)
		if m.original {
			w.log = append(w.log, vxlanNode(n))
			m.open[original] = true
			continue
		}
		w.start(t, m)
	}
	w.calm(t)
	return w
}

// original is what the model's original nodes receive and send on.
const original = "vxlan/1/8472"

func (m *member) reset() {
	m.open, m.names, m.ways, m.offer, m.last = map[lease.Key]bool{}, map[string]state.Link{}, map[netip.Prefix]lease.Key{}, nil, nil
	m.health = map[WayID]Health{}
}

// seen returns the leases as the node sees them.
func (w *world) seen(view int) []lease.Lease {
	last := map[string]lease.Lease{}
	for _, l := range w.log[:view] {
		last[l.Subnet.V4.String()] = l
	}
	return slices.SortedFunc(maps.Values(last), lease.Compare)
}

func (w *world) input(m *member) Input {
	in := input(w.configs[m.config], m.own)
	in.Leases, in.Complete, in.Probe, in.Health, in.Ways = w.seen(m.view), true, m.probe, m.health, m.ways
	in.Self.Uplink.Addr, in.Self.Uplink.Public = m.own.Public, m.own.Public
	in.Self.Owner, in.Open = "weft:x", m.last
	in.Host = Host{Devices: m.names, Rename: true, Tunnels: map[string]int{}}
	in.Direct = map[netip.Addr]string{}
	for _, p := range w.nodes {
		if p.segment == m.segment {
			in.Direct[node(p.n, "", "").Public.V4] = "eth0"
		}
	}
	return in
}

// start is a node that comes up: with what the store remembers of it, and the configuration of now.
func (w *world) start(t *rapid.T, m *member) {
	m.up, m.config, m.view, m.offer = true, len(w.configs)-1, len(w.log), nil
	m.own = lease.Lease{Subnet: node(m.n, "", "").Subnet, Public: node(m.n, "", "").Public}
	var prior lease.Lease
	for _, l := range w.seen(m.view) {
		if l.SameSubnets(m.own) {
			prior = l
		}
	}
	in := w.input(m)
	in.Self.Identity = fmt.Sprint(m.n)
	o, err := First(in.Config, in.Self, prior, in.Host)
	if err != nil {
		t.Fatal(err)
	}
	m.publish(w, o)
	w.pass(t, m, nil)
}

func (m *member) publish(w *world, o Offer) {
	m.own.Receive, m.own.Send, m.own.Serial = o.Receive, o.Send, o.Serial
	w.log = append(w.log, m.own)
}

// pass is one pass of the agent.
func (w *world) pass(t *rapid.T, m *member, recent map[lease.Key]bool) {
	in := w.input(m)
	in.Recent = recent
	in.Self.Identity = fmt.Sprint(m.n)
	p, err := Build(in)
	if err != nil {
		t.Fatalf("node %d: %v", m.n, err)
	}
	m.offer, m.names = &p.Offer, p.State.Links
	m.open, m.ways = map[lease.Key]bool{}, map[netip.Prefix]lease.Key{}
	m.last = p.Open
	for _, k := range p.Open {
		m.open[k] = true
	}
	for a := range m.open {
		for b := range m.open {
			if conflict(a, b) {
				t.Fatalf("node %d has %s and %s open", m.n, a, b)
			}
		}
	}
	for _, path := range p.Paths {
		if path.Way != nil {
			m.ways[path.Subnet] = path.Way.Key
		}
	}
}

// check is the promise: whatever a node sends, the peer receives.
func (w *world) check(t *rapid.T) {
	for _, from := range w.nodes {
		for _, to := range w.nodes {
			if from == to || !from.up || !to.up {
				continue
			}
			subnet := node(to.n, "", "").Subnet.V4
			switch k, ok := from.ways[subnet]; {
			case from.original:
				if l := w.latest(to); l.Receive[0].Type == "vxlan" && !to.open[original] {
					t.Fatalf("the original %d sends by vxlan to %d, which has %v open and says %v", from.n, to.n, to.open, l.Receive[0])
				}
			case !ok && w.reached[[2]int{from.n, to.n}] && (from.segment == to.segment || w.neverHostGW()):
				t.Fatalf("node %d has no way to %d", from.n, to.n)
			case ok && !to.open[k] && k != "host-gw": // bare packets are taken whatever is said
				t.Fatalf("node %d sends to %d on %s, which has %v open; %v sends on %v, sees %v, health %v", from.n, to.n, k, to.open, keysOf(from.own), from.own.Send, w.seen(from.view), from.health)
			case ok:
				w.reached[[2]int{from.n, to.n}] = true
			}
		}
	}
}

// neverHostGW says whether no node can have begun with host-gw alone, by which the other segment is out of reach.
func (w *world) neverHostGW() bool {
	return !slices.Contains(w.configs, netconf.Backend(netconf.HostGW{}))
}

func (w *world) latest(m *member) lease.Lease {
	subnet := node(m.n, "", "").Subnet
	for _, l := range slices.Backward(w.log) {
		if l.Subnet == subnet {
			return l
		}
	}
	return lease.Lease{Receive: []lease.Receiver{{}}}
}

// calm lets everything arrive, until nothing changes any more.
func (w *world) calm(t *rapid.T) {
	for range 40 {
		before, open := len(w.log), w.allOpen()
		for _, m := range w.nodes {
			if m.original || !m.up {
				continue
			}
			m.config, m.view = len(w.configs)-1, len(w.log)
			for _, p := range w.nodes {
				for k := range m.open {
					m.hear(p, k, Good)
				}
			}
			w.pass(t, m, nil)
			w.check(t)
			if !m.offer.Equal(m.own) {
				m.publish(w, *m.offer)
			}
		}
		if len(w.log) == before && w.allOpen() == open {
			return
		}
	}
	t.Fatalf("does not come to rest: %v", w.seen(len(w.log)))
}

// hear is what probes say; no probe crosses to a node of the original by what it does not have.
func (m *member) hear(p *member, k lease.Key, h Health) {
	if p.original && h == Good && k != original && k != "host-gw" {
		h = Dead
	}
	m.health[WayID{node(p.n, "", "").Subnet.V4, k}] = h
}

func (w *world) allOpen() string {
	s := ""
	for _, m := range w.nodes {
		s += fmt.Sprint(m.last)
	}
	return s
}

// step makes one random move.
func (w *world) step(t *rapid.T) {
	m := w.nodes[rapid.IntRange(0, len(w.nodes)-1).Draw(t, "node")]
	act := rapid.SampledFrom([]string{"configure", "see", "pass", "pass", "publish", "publish", "health", "crash", "reboot"}).Draw(t, "act")
	if act == "configure" {
		w.configs = append(slices.Clone(w.configs), rapid.SampledFrom(modelConfigs).Draw(t, "config"))
		return
	}
	if m.original {
		return
	}
	switch act {
	case "see":
		m.config = rapid.IntRange(m.config, len(w.configs)-1).Draw(t, "config seen")
		m.view = rapid.IntRange(m.view, len(w.log)).Draw(t, "view")
	case "health":
		p := w.nodes[rapid.IntRange(0, len(w.nodes)-1).Draw(t, "of")]
		for k := range m.open {
			m.hear(p, k, rapid.SampledFrom([]Health{Unknown, Good, Dead, Try, Silent}).Draw(t, "health"))
		}
	case "pass":
		recent := map[lease.Key]bool{}
		for _, k := range m.own.Send {
			recent[k] = rapid.Bool().Draw(t, "recent")
		}
		w.pass(t, m, recent)
	case "publish":
		if m.offer != nil && !m.offer.Equal(m.own) {
			m.publish(w, *m.offer)
			m.offer = nil
		}
	case "crash": // the kernel stays as it is
		ways, open, names := m.ways, m.open, m.names
		m.reset()
		m.ways, m.open, m.names = ways, open, names
		w.start(t, m)
	case "reboot": // takes long enough for the others to see what was published before
		for _, p := range w.nodes {
			if p != m && !p.original {
				p.view = len(w.log)
				w.pass(t, p, nil)
			}
		}
		m.reset()
		w.start(t, m)
	}
}

func TestWhateverANodeSendsThePeerReceives(t *testing.T) {
	for name, originals := range map[string]int{"weft alone": 0, "with nodes of the original": 2} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				w := newWorld(t, 5, originals)
				w.check(t)
				for range rapid.IntRange(1, 60).Draw(t, "steps") {
					w.step(t)
					w.check(t)
				}
				w.calm(t)
				w.settled(t, originals)
			})
		})
	}
}

// settled checks that all are where the configuration wants them.
func (w *world) settled(t *rapid.T, originals int) {
	for _, m := range w.nodes {
		if m.original {
			continue
		}
		want, main, err := target(w.input(m).Config, w.input(m).Self)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range w.nodes {
			k, ok := m.ways[node(p.n, "", "").Subnet.V4]
			best := want[0]
			if best == "host-gw" && p.segment != m.segment && len(want) > 1 {
				best = want[1]
			}
			if p != m && !p.original && ok && k != best && !(best == "host-gw" && p.segment != m.segment) && !w.stuck(m, p, best) {
				t.Fatalf("node %d sends to %d on %s, not %s: %v to %v", m.n, p.n, k, best, m.own, p.own)
			}
		}
		// What is old is there only for those on the other segment that nothing else reaches, or for originals.
		held := slices.ContainsFunc(append(keysOf(m.own), m.own.Send...), func(k lease.Key) bool { return conflict(k, main) })
		if held && !m.probe {
			continue // without probes a bridge is not tried
		}
		if main != "host-gw" && originals == 0 && (len(m.own.Send) != len(want) || len(m.own.Receive) != len(want)) {
			t.Fatalf("node %d has not let go: receive %v, send %v, want %v", m.n, keysOf(m.own), m.own.Send, want)
		}
		if originals == 0 && main != "host-gw" && m.own.Receive[0].Key != main {
			t.Fatalf("node %d tells the original's nodes of %s, not of %s", m.n, m.own.Receive[0].Key, main)
		}
	}
}

// stuck says whether one of two nodes cannot have best since an old key holds its port.
func (w *world) stuck(a, b *member, best lease.Key) bool {
	for _, m := range []*member{a, b} {
		if slices.ContainsFunc(append(keysOf(m.own), m.own.Send...), func(k lease.Key) bool { return conflict(k, best) }) {
			return true
		}
	}
	return false
}

// Many changes within the time that a key is held come to rest too, although nobody can open all of them.
func TestManyChangesAtOnceComeToRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 3, 0)
		for range rapid.IntRange(6, 12).Draw(t, "changes") {
			config := netconf.Backend(netconf.HostGW{})
			if vni := rapid.IntRange(0, 12).Draw(t, "VNI"); vni > 0 {
				config = netconf.VXLAN{VNI: vni, DirectRouting: rapid.Bool().Draw(t, "direct")}
			}
			w.configs = append(slices.Clone(w.configs), config)
			for range rapid.IntRange(1, 2).Draw(t, "rounds") {
				for _, m := range w.nodes {
					if rapid.IntRange(0, 3).Draw(t, "skip") == 0 {
						continue
					}
					m.config, m.view = len(w.configs)-1, len(w.log)
					for _, p := range w.nodes {
						for k := range m.open {
							m.hear(p, k, Good)
						}
					}
					recent := map[lease.Key]bool{}
					for _, k := range m.own.Send {
						recent[k] = true
					}
					w.pass(t, m, recent)
					w.check(t)
					if !m.offer.Equal(m.own) {
						m.publish(w, *m.offer)
					}
				}
			}
		}
		w.calm(t)
		w.settled(t, 0)
	})
}
