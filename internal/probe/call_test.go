package probe

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lease"
)

// calls has a peer call so often, and returns over which ways it is answered.
func (m *sim) calls(from Target, n int) []lease.Key {
	m.called = nil
	for range n {
		m.s.receive(m.now, answer{kind: call, from: from.Dst, to: from.Src, size: from.Size}, m)
	}
	return m.called
}

func TestCallsAreForWaysOnTrial(t *testing.T) {
	a, b, healthy := target(2, "hostgw"), target(2, "vxlan"), target(3, "vxlan")
	m := newSim(t, a, b, healthy)
	up := false
	m.fate = func(t *Target, _ int) (time.Duration, error) {
		if trial := m.trial() != "" && t.Subnet == a.Subnet; trial != (m.kind == call) {
			m.t.Errorf("%v: a probe of kind %d, trial %v", t.ID, m.kind, trial)
		}
		if up || t.Subnet == healthy.Subnet {
			return time.Millisecond, nil
		}
		return lost, nil
	}
	silent := func() {
		t.Helper()
		if got := m.calls(a, 1); got != nil || m.s.calling().V4 {
			t.Errorf("a call is heard (%v) and answered over %v", m.s.calling(), got)
		}
	}
	silent()
	m.run(time.Minute, func() bool { return m.trial() != "" })
	if got := m.calls(a, 1); !slices.Equal(got, []lease.Key{"hostgw", "vxlan"}) || !m.s.calling().V4 || m.s.calling().V6 {
		t.Errorf("answered over %v, listens %v", got, m.s.calling())
	}
	m.run(10*time.Second, nil)
	elsewhere := a
	elsewhere.Src = netip.MustParseAddr("10.244.1.1")
	for _, c := range []Target{healthy, target(4, "vxlan"), elsewhere} {
		if got := m.calls(c, 1); got != nil {
			t.Errorf("a call from %s to %s is answered over %v", c.Dst, c.Src, got)
		}
	}
	up = true
	m.await(0, Good, 10*time.Second)
	m.run(time.Second, nil)
	silent()
	up = false
	m.run(time.Minute, func() bool { return m.trial() != "" })
	m.set(healthy)
	silent()
}

// A peer whose agent alone answers is asked to go on doing so, until its kernel does.
func TestWhoAnswersIsKnown(t *testing.T) {
	m := newSim(t, target(2, "vxlan"))
	kernel, agent := false, true
	m.fate = func(*Target, int) (time.Duration, error) {
		if m.agent = !kernel; kernel || agent && m.kind == call {
			return time.Millisecond, nil
		}
		return lost, nil
	}
	for range 2 {
		m.await(0, Good, 10*time.Second)
		m.news = 0
		m.run(time.Minute, nil)
		if h := m.health(0); h.Verdict != Good || !h.Called || m.news != 0 || !m.s.calling().V4 {
			t.Errorf("the agent answers: %+v, %d changes, listens %v", h, m.news, m.s.calling())
		}
		kernel, m.news = true, 0
		m.run(time.Minute, nil)
		if h := m.health(0); h.Verdict != Good || h.Called || m.news != 1 || m.s.calling().V4 {
			t.Errorf("the kernel answers: %+v, %d changes, listens %v", h, m.news, m.s.calling())
		}
		kernel, agent = false, false
		m.await(0, Dead, 10*time.Second)
		agent = true
	}
}

// A cluster as large as may be in which nothing works: the calls of all peers are answered, whatever others send.
func TestCallsOfAllPeersAreAnswered(t *testing.T) {
	const n = 2000
	m := newSim(t, targets(n)...)
	m.fate = func(*Target, int) (time.Duration, error) { return lost, nil }
	m.run(time.Minute, nil)
	for i := range 10 * perSecond {
		m.run(time.Second/perSecond, nil)
		if got := m.calls(target(i%(n/2), ""), 1); len(got) != 2 {
			t.Fatalf("call %d is answered %d times", i, len(got))
		}
	}
	m.run(time.Second, nil)
	if got := len(m.calls(target(0, ""), 1e5)); got != answers {
		t.Errorf("of a flood %d are answered", got)
	}
}
