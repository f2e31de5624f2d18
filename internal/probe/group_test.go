package probe

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// trial returns the key of the way on trial.
func (m *sim) trial() (key string) {
	m.t.Helper()
	n := 0
	for i, w := range m.s.ways {
		if m.health(i).Try {
			key = string(w.target.Key)
			n++
		}
	}
	if n > 1 {
		m.t.Errorf("%d ways on trial", n)
	}
	return key
}

func TestTrialRotates(t *testing.T) {
	m := newSim(t, target(2, "wireguard"), target(2, "hostgw"), target(2, "vxlan"))
	m.fate = func(*Target, int) (time.Duration, error) { return lost, nil }
	dead := func() (n int) {
		for i := range m.s.ways {
			if m.health(i).Verdict == Dead {
				n++
			}
		}
		return n
	}
	m.run(time.Minute, func() bool {
		if dead() < 3 && m.trial() != "" {
			t.Error("a trial before all are dead")
		}
		return dead() == 3
	})
	for round, slower := range []time.Duration{1, 2, 4, 8} {
		for _, want := range []string{"vxlan", "hostgw", "wireguard"} {
			if got := m.trial(); got != want {
				t.Fatalf("%s is on trial, want %s", got, want)
			}
			start := m.now
			m.run(time.Minute, func() bool { return m.trial() != want })
			if d := m.now.Sub(start); d < 3*time.Second*slower || d > 4*time.Second*slower+100*time.Millisecond {
				t.Errorf("round %d: %s was on trial for %v", round, want, d)
			}
		}
	}
	m.fate = func(t *Target, _ int) (time.Duration, error) {
		if t.Key == "hostgw" {
			return time.Millisecond, nil
		}
		return lost, nil
	}
	start := m.now
	m.run(time.Minute, func() bool { return m.trial() == "hostgw" })
	if d := m.now.Sub(start); d > 1300*time.Millisecond {
		t.Errorf("the way that answers is on trial after %v", d)
	}
	m.run(time.Minute, func() bool {
		if h := m.health(1); h.Verdict == Dead && m.trial() != "hostgw" {
			t.Fatal("the way that answers is not kept on trial")
		}
		return m.health(1).Verdict == Good
	})
	if got := m.trial(); got != "" || m.health(1).Verdict != Good {
		t.Errorf("%s is on trial", got)
	}
}

func TestTrialWhoseTargetGoes(t *testing.T) {
	a, b := target(2, "hostgw"), target(2, "vxlan")
	m := newSim(t, a, b)
	m.fate = func(*Target, int) (time.Duration, error) { return lost, nil }
	m.run(time.Minute, func() bool { return m.trial() == "vxlan" })
	m.set(a)
	if got := m.trial(); got != "hostgw" {
		t.Errorf("%q is on trial", got)
	}
	m.set(a, b) // b is unknown, a on trial
	if got := m.trial(); got != "hostgw" {
		t.Errorf("%q is on trial", got)
	}
}

// Two nodes join each other by several ways and use what their schedules say: the first good one, else the
// one on trial, else what they used before.
type pair struct {
	m    [2]*sim
	uses [2]string
	up   [2]map[string]bool // of the way from one node to the other

	strangers bool // who believe probes that come back, and not those that do not
}

func newPair(t *testing.T, keys ...string) *pair {
	p := &pair{}
	var list []Target
	for _, k := range keys {
		list = append(list, target(2, k))
	}
	for i := range p.m {
		p.up[i] = map[string]bool{}
		p.uses[i] = keys[len(keys)-1]
		p.m[i] = newSim(t, list...)
		for range i {
			p.m[i].s.rand.Uint64() // so that the two differ
		}
		p.m[i].fate = func(t *Target, _ int) (time.Duration, error) {
			back := p.up[1-i][p.uses[1-i]]
			if !back && p.m[i].kind == call && p.m[1-i].s.groups[t.Subnet].calls() {
				p.m[i].agent = true
				for _, up := range p.up[1-i] {
					back = back || up
				}
			}
			if p.up[i][string(t.Key)] && back {
				return time.Millisecond, nil
			}
			return lost, nil
		}
	}
	p.set(true, keys...)
	return p
}

// set says of ways, both directions, whether they carry packets.
func (p *pair) set(up bool, keys ...string) {
	for i := range p.up {
		for _, k := range keys {
			p.up[i][k] = up
		}
	}
}

// run returns for how long nothing came through from the first node to the second, and back.
func (p *pair) run(d time.Duration) (out [2]time.Duration) {
	const tick = 10 * time.Millisecond
	for range d / tick {
		for i, m := range p.m {
			m.run(tick, nil)
			for j := len(m.s.ways) - 1; j >= 0; j-- {
				if h := m.health(j); h.Verdict == Good || h.Try && !p.strangers {
					p.uses[i] = string(m.s.ways[j].target.Key)
				}
			}
			if !p.up[i][p.uses[i]] {
				out[i] += tick
			}
		}
	}
	return out
}

func (p *pair) check(t *testing.T, what string, out [2]time.Duration, limit time.Duration, uses ...string) {
	t.Helper()
	t.Logf("%s: out for %v, then %v", what, out, p.uses)
	if max(out[0], out[1]) > limit || p.uses != [2]string(uses) {
		t.Errorf("%s: out for %v, then %v; want less than %v, and %v", what, out, p.uses, limit, uses)
	}
}

func TestTwoNodesLeaveADeadWay(t *testing.T) {
	p := newPair(t, "hostgw", "vxlan")
	p.run(10 * time.Second)
	for range 3 {
		p.set(false, "hostgw")
		p.check(t, "break", p.run(30*time.Second), 3*time.Second, "vxlan", "vxlan")
		p.set(true, "hostgw")
		p.check(t, "healed", p.run(2*time.Minute), 0, "hostgw", "hostgw")
	}
	p = newPair(t, "hostgw", "vxlan")
	p.run(10 * time.Second)
	p.up[0]["hostgw"] = false
	p.check(t, "break of one direction", p.run(30*time.Second), 3*time.Second, "vxlan", "hostgw")
	p.set(true, "hostgw")
	p.check(t, "healed", p.run(2*time.Minute), 0, "hostgw", "hostgw")
}

func TestTwoNodesMeetOnTheOnlyWayThatWorks(t *testing.T) {
	p := newPair(t, "wireguard", "hostgw", "udp", "vxlan")
	p.run(10 * time.Second)
	p.set(false, "wireguard", "udp", "vxlan")
	p.check(t, "one is left", p.run(time.Minute), 20*time.Second, "hostgw", "hostgw")
	p.set(false, "hostgw")
	p.run(5 * time.Minute)
	p.set(true, "udp")
	p.check(t, "one is back after a long time", p.run(3*time.Minute), time.Minute, "udp", "udp")
}

// Neither has ever heard of the other, and so neither leaves the way in use, which is dead, before another one is good.
func TestTwoStrangersLeaveADeadWay(t *testing.T) {
	p := newPair(t, "wireguard", "hostgw", "vxlan")
	p.strangers = true
	p.set(false, "wireguard", "hostgw", "vxlan")
	p.run(time.Minute)
	p.set(true, "hostgw")
	p.check(t, "another way works", p.run(time.Minute), 5*time.Second, "hostgw", "hostgw")

	p = newPair(t, "hostgw", "vxlan")
	p.strangers = true
	p.up[0]["hostgw"], p.up[1]["vxlan"] = false, false
	p.check(t, "one way per direction", p.run(time.Minute), 10*time.Second, "vxlan", "hostgw")
}

// Whatever broke and healed in whatever order: if then each direction has a way that works, the nodes find
// them.
func TestTwoNodesAlwaysMeet(t *testing.T) {
	keys := []string{"wireguard", "hostgw", "vxlan"}
	rapid.Check(t, func(r *rapid.T) {
		p := newPair(t, keys[rapid.IntRange(0, 1).Draw(r, "ways"):]...)
		p.strangers = rapid.Bool().Draw(r, "strangers")
		p.run(time.Duration(rapid.IntRange(0, 5000).Draw(r, "start")) * time.Millisecond)
		for range rapid.IntRange(1, 12).Draw(r, "events") {
			i, k := rapid.IntRange(0, 1).Draw(r, "node"), rapid.SampledFrom(keys).Draw(r, "way")
			p.up[i][k] = rapid.Bool().Draw(r, "up")
			p.run(time.Duration(rapid.IntRange(0, 20000).Draw(r, "ms")) * time.Millisecond)
		}
		for i := range p.up {
			p.up[i][string(p.m[i].s.ways[rapid.IntRange(0, len(p.m[i].s.ways)-1).Draw(r, "works")].target.Key)] = true
		}
		p.run(3 * time.Minute)
		if out := p.run(time.Minute); out[0]+out[1] > 0 {
			r.Errorf("out for %v, uses %v, up %v", out, p.uses, p.up)
		}
	})
}
