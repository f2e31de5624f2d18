package kernel

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/ranges"
	"github.com/weftnet/weft/internal/state"
)

var (
	testNetworks = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd24::/48")}
	testScope    = Scope{Owner: "weft:a", Networks: testNetworks, Uplink: "eth0", Complete: true}
)

const standbyMetric = 1 << 19

// model does to a have what the kernel does with steps.
type model struct{ have }

func (m *model) take(t *rapid.T, steps []step) {
	for _, s := range steps {
		switch s := s.(type) {
		case *linkStep:
			m.have = afterLinks(m.have, []step{s})
		case *addressStep:
			m.address(t, s)
		case *neighbourStep:
			if s.op == state.Remove {
				delete(m.neighbour, s.key)
			} else {
				m.neighbour[s.key] = s.want
			}
		case *fdbStep:
			if s.op == state.Remove {
				delete(m.fdb, s.key)
			} else {
				m.fdb[s.key] = fdbEntry{Dst: s.want}
			}
		case *sysctlStep:
			m.sysctls[s.key] = sysctl{Value: s.want}
		case *routeStep:
			m.route(t, s)
		case *localStep:
			l := m.locals[s.addr]
			if l.Ours == (s.op == state.Add) {
				t.Fatalf("%s %s: EEXIST or ESRCH", s.op, s.addr)
			}
			l.Ours = !l.Ours
			m.locals[s.addr] = l
		}
	}
}

func (m *model) address(t *rapid.T, s *addressStep) {
	if s.op == state.Remove {
		delete(m.addresses, s.key)
		return
	}
	for a := range m.addresses {
		if a.Dev == s.key.Dev && a.Prefix.Addr() == s.key.Prefix.Addr() && a.Prefix.Addr().Is6() {
			t.Fatalf("%s beside %s", s.key, a)
		}
	}
	m.addresses[s.key] = address{}
}

func (m *model) route(t *rapid.T, s *routeStep) {
	list := slices.Clone(m.routes[s.key])
	if s.op != state.Remove {
		if _, clash := m.connected[s.key.Dst]; clash && s.want.Type != state.Blackhole {
			t.Fatalf("%s replaces a connected route", s.key)
		}
		four := s.key.Dst.Addr().Is4()
		switch {
		case len(list) == 0:
			list = []route{s.want}
		case four && slices.Contains(list, s.want) && list[0] != s.want:
			t.Fatalf("%s: EEXIST", s.key)
		default:
			list[replaced(list, s.want, four)] = s.want
		}
		m.routes[s.key] = list
		return
	}
	i := slices.IndexFunc(list, func(r route) bool {
		named := s.have.Odd || r.Via == s.have.Via && r.Dev == s.have.Dev
		return r.Type == s.have.Type && r.Protocol == s.have.Protocol && named
	})
	if i < 0 {
		return // ESRCH
	}
	if m.routes[s.key] = slices.Delete(list, i, i+1); len(m.routes[s.key]) == 0 {
		delete(m.routes, s.key)
	}
}

func (h have) clone() have {
	h.links, h.addresses, h.routes = maps.Clone(h.links), maps.Clone(h.addresses), maps.Clone(h.routes)
	h.neighbour, h.fdb, h.sysctls, h.locals = maps.Clone(h.neighbour), maps.Clone(h.fdb), maps.Clone(h.sysctls), maps.Clone(h.locals)
	return h
}

// pass is Kernel.Apply on the model.
func (m *model) pass(t *rapid.T, want state.State, sc Scope) []step {
	first := planLinks(m.have, want, sc)
	m.take(t, first.steps)
	second := planRest(m.have, want, sc)
	m.take(t, second.steps)
	return append(first.steps, second.steps...)
}

var (
	overlayDevs = []string{"flannel.1", "flannel-v6.1"}
	formerDevs  = append(slices.Clone(overlayDevs), "flannel.9") // VNI 1 too: what flannel.1 was called before
	someMACs    = []state.MAC{{2}, {4}, {6}}
)

func drawLink(t *rapid.T, dev string) state.Link {
	l := state.Link{Kind: kindVXLAN, MTU: rapid.SampledFrom([]int{1400, 1450, 9000}).Draw(t, "mtu"), Owner: "weft:a"}
	l.MAC = rapid.SampledFrom(someMACs).Draw(t, "mac")
	l.VXLAN = state.VXLAN{VNI: 1, Port: 8472, Parent: "eth0", Local: netip.MustParseAddr("10.77.0.1")}
	l.VXLAN.GBP, l.VXLAN.Learning = rapid.Bool().Draw(t, "gbp"), rapid.Bool().Draw(t, "learning")
	if dev == "flannel-v6.1" {
		l.VXLAN.Local = netip.MustParseAddr("fd77::1")
	}
	return l
}

func drawDst(t *rapid.T) netip.Prefix {
	return netip.MustParsePrefix(rapid.SampledFrom([]string{
		"10.244.1.0/24", "10.244.2.0/24", "10.244.0.0/16", "192.0.2.0/24", "fd24:0:0:1::/64", "fd24:0:0:2::/64", "2001:db8::/64",
	}).Draw(t, "dst"))
}

func drawRoute(t *rapid.T, dst netip.Prefix, protocols ...int) route {
	r := route{Route: state.Route{Type: state.Unicast, Protocol: rapid.SampledFrom(protocols).Draw(t, "proto")}}
	switch rapid.IntRange(0, 3).Draw(t, "form") {
	case 0:
		r.Type = state.Blackhole
	case 1:
		r.Dev, r.Via, r.OnLink = rapid.SampledFrom([]string{"flannel.1", "flannel.9"}).Draw(t, "dev"), dst.Addr(), true
	case 2:
		r.Dev, r.Via = "eth0", netip.MustParseAddr("10.77.0.2")
	case 3:
		r.Dev = rapid.SampledFrom([]string{"eth0", "docker0"}).Draw(t, "dev")
	}
	return r
}

func drawAddress(t *rapid.T) state.Address {
	return state.Address{
		Dev: rapid.SampledFrom(formerDevs).Draw(t, "dev"),
		Prefix: netip.MustParsePrefix(rapid.SampledFrom([]string{
			"10.244.0.0/32", "10.244.7.0/32", "10.244.0.0/24", "192.0.2.1/32", "fd24::/128", "fd24::/64", "fe80::1/64"}).Draw(t, "address")),
	}
}

func drawNeighbour(t *rapid.T) state.NeighbourKey {
	return state.NeighbourKey{Dev: rapid.SampledFrom(formerDevs).Draw(t, "dev"), Addr: drawDst(t).Addr()}
}

func drawFDB(t *rapid.T) state.FDBKey {
	return state.FDBKey{Dev: rapid.SampledFrom(formerDevs).Draw(t, "dev"), MAC: rapid.SampledFrom(someMACs).Draw(t, "mac")}
}

func times(t *rapid.T, n int, f func()) {
	for range rapid.IntRange(0, n).Draw(t, "n") {
		f()
	}
}

func drawHave(t *rapid.T) have {
	h := newHave()
	h.renames = rapid.Bool().Draw(t, "renames")
	h.links["eth0"] = device{Link: state.Link{MTU: 1500}, Index: 2, Up: true}
	h.links["docker0"] = device{Link: state.Link{Kind: "bridge", MTU: 1500}, Index: 3, Up: true}
	for i, dev := range formerDevs {
		if !rapid.Bool().Draw(t, dev) {
			continue
		}
		d := device{Link: drawLink(t, dev), Index: int32(4 + i), Up: rapid.Bool().Draw(t, "up")}
		d.MTU = 1400
		d.Owner = rapid.SampledFrom([]string{"", "weft:a", "somebody's"}).Draw(t, "owner")
		d.Odd = rapid.SampledFrom([]string{"", "", "group"}).Draw(t, "odd")
		h.links[dev] = d
	}
	on := func(dev string) bool { _, ok := h.links[dev]; return ok || dev == "" }
	times(t, 6, func() {
		a := drawAddress(t)
		for b := range h.addresses {
			if b.Dev == a.Dev && b.Prefix.Addr() == a.Prefix.Addr() {
				return
			}
		}
		if on(a.Dev) {
			h.addresses[a] = address{}
		}
	})
	times(t, 4, func() {
		if k := drawNeighbour(t); on(k.Dev) {
			h.neighbour[k] = rapid.SampledFrom(someMACs).Draw(t, "mac")
		}
	})
	times(t, 4, func() {
		if k := drawFDB(t); on(k.Dev) {
			h.fdb[k] = fdbEntry{Dst: netip.MustParseAddr("10.77.0.2"), Odd: rapid.Bool().Draw(t, "odd")}
		}
	})
	times(t, 10, func() {
		dst := drawDst(t)
		key := state.RouteKey{Dst: dst, Metric: rapid.SampledFrom([]int{defaultMetric(dst), standbyMetric}).Draw(t, "metric")}
		r := drawRoute(t, dst, unix.RTPROT_BOOT, state.Protocol, unix.RTPROT_STATIC)
		if on(r.Dev) && !slices.Contains(h.routes[key], r) {
			h.routes[key] = append(h.routes[key], r)
		}
	})
	times(t, 2, func() { h.connected[drawDst(t)] = connected{Dev: "docker0"} })
	times(t, 4, func() {
		h.locals[drawDst(t).Addr()] = local{rapid.Bool().Draw(t, "ours"), rapid.Bool().Draw(t, "device")}
	})
	return h
}

func drawWant(t *rapid.T) state.State {
	s := state.New()
	for f, dev := range overlayDevs {
		if rapid.Bool().Draw(t, dev) {
			l := drawLink(t, dev)
			*l.Prune.Ref(family.Of(testNetworks[f].Addr())) = ranges.Of(testNetworks[f])
			s.Links[dev] = l
		}
	}
	has := func(dev string) bool { _, ours := s.Links[dev]; return ours || !strings.HasPrefix(dev, "flannel") }
	times(t, 2, func() {
		a := drawAddress(t)
		for b := range s.Addresses {
			if b.Dev == a.Dev && b.Prefix.Addr() == a.Prefix.Addr() {
				return
			}
		}
		if has(a.Dev) {
			s.Addresses[a] = true
		}
	})
	times(t, 4, func() {
		if k := drawNeighbour(t); has(k.Dev) {
			s.Neighbours[k] = rapid.SampledFrom(someMACs).Draw(t, "mac")
		}
	})
	times(t, 4, func() {
		if k := drawFDB(t); has(k.Dev) {
			s.FDB[k] = netip.MustParseAddr("10.77.0.3")
		}
	})
	times(t, 2, func() { s.Locals[drawDst(t).Addr()] = true })
	times(t, 6, func() {
		dst := drawDst(t)
		if r := drawRoute(t, dst, state.Protocol); has(r.Dev) {
			s.Routes[state.RouteKey{Dst: dst, Metric: rapid.SampledFrom([]int{0, standbyMetric}).Draw(t, "metric")}] = r.Route
		}
	})
	return s
}

func show(steps []step) string {
	var b strings.Builder
	for _, c := range changes(steps) {
		fmt.Fprintf(&b, "%s %s %s: %s -> %s\n", c.Op, c.Kind, c.Object, c.Have, c.Want)
	}
	return b.String()
}

func TestPassGivesWantAndThenRests(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, want := model{drawHave(t)}, drawWant(t)
		before := m.have.clone()
		did := m.pass(t, want, testScope)
		checkWanted(t, m.have, want)
		checkForeign(t, before, m.have, normalised(want))
		// Only what had to wait for a device, or for another object to go, may be left.
		if again := m.pass(t, want, testScope); len(again) > 0 {
			t.Fatalf("first:\n%ssecond:\n%s", show(did), show(again))
		}
	})
}

func TestNothingIsRemovedBeforeThePeersAreComplete(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, want := model{drawHave(t)}, drawWant(t)
		sc := testScope
		sc.Complete = false
		remade := map[string]bool{}
		for _, s := range planLinks(m.have, want, sc).steps {
			if s := s.(*linkStep); s.recreate {
				remade[s.name] = true
			}
		}
		first := planLinks(m.have, want, sc)
		m.take(t, first.steps)
		for _, s := range planRest(m.have, want, sc).steps {
			if s.operation() != state.Remove {
				continue
			}
			// What stands in the way of a wanted object of the same key is replaced in two steps.
			switch s := s.(type) {
			case *routeStep:
				if _, ok := normalised(want).Routes[s.key]; ok {
					continue
				}
			case *addressStep:
				if slices.ContainsFunc(slices.Collect(maps.Keys(want.Addresses)), func(a state.Address) bool {
					return a.Dev == s.key.Dev && a.Prefix.Addr() == s.key.Prefix.Addr()
				}) {
					continue
				}
			}
			t.Fatalf("removes %s", s.change().Object)
		}
	})
}

func checkWanted(t *rapid.T, h have, want state.State) {
	there := func(dev string) bool { _, ok := h.links[dev]; return ok }
	for name, l := range want.Links {
		if d := h.links[name]; d.Link != h.stored(l, d) || !d.Up {
			t.Fatalf("link %s is %+v", name, d)
		}
	}
	for a := range want.Addresses {
		if _, ok := h.addresses[a]; !ok && there(a.Dev) {
			t.Fatalf("no address %s", a)
		}
	}
	for k, v := range want.Neighbours {
		if h.neighbour[k] != v && there(k.Dev) {
			t.Fatalf("neighbour %s is %s", k, h.neighbour[k])
		}
	}
	for k, v := range want.FDB {
		if h.fdb[k] != (fdbEntry{Dst: v}) && there(k.Dev) {
			t.Fatalf("fdb %s is %v", k, h.fdb[k])
		}
	}
	for a := range want.Locals {
		if !h.locals[a].Ours {
			t.Fatalf("%s is not local", a)
		}
	}
	for a, l := range h.locals {
		if l.Ours && !want.Locals[a] && l.Device && inside(netip.PrefixFrom(a, a.BitLen()), testNetworks) {
			t.Fatalf("%s is left", a)
		}
	}
	for k, v := range normalised(want).Routes {
		if _, clash := h.connected[k.Dst]; clash || v.Dev != "" && !there(v.Dev) {
			continue
		}
		at := slices.Index(h.routes[k], route{Route: v})
		if at < 0 || at > 0 && k.Dst.Addr().Is4() {
			t.Fatalf("route %s is %v", k, h.routes[k])
		}
	}
}

// checkForeign makes sure that what has neither a mark nor a form of ours is still there.
func checkForeign(t *rapid.T, before, after have, want state.State) {
	for key, rs := range before.routes {
		_, wanted := want.Routes[key]
		for _, r := range rs {
			_, dev := after.links[r.Dev]
			if r.Protocol == unix.RTPROT_STATIC && !wanted && (dev || r.Dev == "") && !slices.Contains(after.routes[key], r) && after.links[r.Dev].Index == before.links[r.Dev].Index && !remadeIn(before, want, r.Dev) {
				t.Fatalf("route %s %s is gone", key, r)
			}
		}
	}
	for a, l := range before.locals {
		if l.Ours && !after.locals[a].Ours && !inside(netip.PrefixFrom(a, a.BitLen()), testNetworks) {
			t.Fatalf("%s is not local any more", a)
		}
	}
	for name, d := range before.links {
		_, wanted := want.Links[name]
		if _, ok := after.links[name]; !ok && (d.Owner == "somebody's" || d.Kind != kindVXLAN || wanted) {
			t.Fatalf("link %s is gone", name)
		}
	}
	for a := range before.addresses {
		if _, ok := after.addresses[a]; ok || !strings.HasPrefix(a.Prefix.String(), "192.") && !strings.HasPrefix(a.Prefix.String(), "fe80") {
			continue
		}
		if _, stays := after.links[a.Dev]; stays && !remadeIn(before, want, a.Dev) {
			t.Fatalf("address %s is gone", a)
		}
	}
}

func remadeIn(before have, want state.State, dev string) bool {
	l, ok := want.Links[dev]
	d := before.links[dev]
	return ok && mustRecreate(d, before.stored(l, d)) != ""
}

func TestReleasesThatRenameLive(t *testing.T) {
	for release, want := range map[string]bool{
		"6.2.0": true, "6.18.44-fc-v657": true, "7.0": true, "6.2-rc1": true, "10.1.2": true, "6.1.99": false, "5.15.0-91-generic": false, "": false, "six": false,
	} {
		if got := renamesLive(release); got != want {
			t.Errorf("%q: %v", release, got)
		}
	}
}

// IPv6 routes a new address a moment after its device has it.
func TestAnAddressIsHeldUntilItsDeviceHasTakenOver(t *testing.T) {
	for _, a := range []string{"10.244.0.0", "fd24::"} {
		addr := netip.MustParseAddr(a)
		want := state.New()
		want.Addresses[state.Address{Dev: "eth0", Prefix: netip.PrefixFrom(addr, addr.BitLen())}] = true
		for _, routed := range []bool{false, true} {
			h := newHave()
			h.links["eth0"] = device{Link: state.Link{MTU: 1500}, Index: 2, Up: true}
			h.addresses[state.Address{Dev: "eth0", Prefix: netip.PrefixFrom(addr, addr.BitLen())}] = address{}
			h.locals[addr] = local{Ours: true, Device: routed}
			if steps := planRest(h, want, testScope).steps; len(steps) > 0 != routed {
				t.Errorf("%s, routed to its device: %v; does\n%s", a, routed, show(steps))
			}
		}
	}
}
