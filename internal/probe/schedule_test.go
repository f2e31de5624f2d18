package probe

import (
	"net/netip"
	"testing"
	"time"
)

func TestRateIsBounded(t *testing.T) {
	const n = 2000
	m := newSim(t, targets(n)...)
	m.run(20*time.Second, nil)
	for i := range n {
		if h := m.health(i); h.Verdict != Good {
			t.Fatalf("way %d of %d: %+v", i, n, h)
		}
	}
	m.fate = func(*Target, int) (time.Duration, error) { return lost, nil }
	m.run(30*time.Second, nil)
	dead := 0
	for i := range n {
		if m.health(i).Verdict == Dead {
			dead++
		}
	}
	if dead != n {
		t.Errorf("%d of %d ways are dead half a minute after all broke", dead, n)
	}
	most := 0
	for i, j := 0, 0; j < len(m.sentAt); j++ {
		for m.sentAt[j].Sub(m.sentAt[i]) >= time.Second {
			i++
		}
		most = max(most, j-i+1)
	}
	t.Logf("%d probes in 50 s, at most %d in one", len(m.sentAt), most)
	if most > perSecond {
		t.Errorf("%d probes within a second", most)
	}
}

func TestProbesAreSpreadOut(t *testing.T) {
	const n = 300
	m := newSim(t, targets(n)...)
	m.run(10*time.Second, nil)
	start := m.now
	m.run(20*time.Second, nil)
	var slots [200]int // of a tenth of a second
	for _, at := range m.sentAt {
		if i := int(at.Sub(start) / (100 * time.Millisecond)); at.After(start) && i < len(slots) {
			slots[i]++
		}
	}
	for i, c := range slots {
		if c > 3*n/10 {
			t.Errorf("%d probes in a tenth of a second (%d)", c, i)
		}
	}
}

func TestOnlyAnswersCount(t *testing.T) {
	m := newSim(t, target(2, "vxlan"))
	m.fate = func(*Target, int) (time.Duration, error) { return time.Millisecond, nil }
	m.wake = m.s.step(m.now, m)
	right := m.answers[0].answer
	m.answers = nil
	forge := func(f func(*answer)) answer {
		a := right
		f(&a)
		return a
	}
	for name, a := range map[string]answer{
		"another cookie":   forge(func(a *answer) { a.cookie++ }),
		"another sequence": forge(func(a *answer) { a.seq++ }),
		"same slot":        forge(func(a *answer) { a.seq += flightSize }),
		"another source":   forge(func(a *answer) { a.from = netip.MustParseAddr("10.66.2.9") }),
		"to another":       forge(func(a *answer) { a.to = netip.MustParseAddr("10.244.9.0") }),
		"cut short":        forge(func(a *answer) { a.size = 36 }),
		"empty":            {},
	} {
		if _, ok := m.s.reply(m.now, a); ok {
			t.Errorf("%s: counted", name)
		}
	}
	if _, ok := m.s.reply(m.now, right); !ok {
		t.Error("the answer does not count")
	}
	if _, ok := m.s.reply(m.now, right); ok {
		t.Error("it counts twice")
	}
	m.fate = func(*Target, int) (time.Duration, error) { return 1100 * time.Millisecond, nil }
	m.run(time.Minute, nil)
	if h, st := m.health(0), m.s.stats; h.Verdict != Dead || st.Answered != 1 || st.Ignored < 50 {
		t.Errorf("late answers: %+v, %+v", h, st)
	}
}

func TestSetKeepsWhatIsKnown(t *testing.T) {
	a, b, c := target(2, "hostgw"), target(2, "vxlan"), target(3, "vxlan")
	m := newSim(t, a, b)
	m.run(5*time.Second, nil)
	verdicts := func(want ...Verdict) {
		t.Helper()
		for i, v := range want {
			if got := m.health(i).Verdict; got != v {
				t.Errorf("way %d is %v, want %v", i, got, v)
			}
		}
	}
	since := m.health(0).Since
	m.set(c, b, a, b) // another order, a new one, one twice
	if len(m.s.ways) != 3 || !m.health(2).Since.Equal(since) {
		t.Errorf("%d ways, since %v, want %v", len(m.s.ways), m.health(2).Since, since)
	}
	verdicts(Unknown, Good, Good)
	a.Size -= 50
	m.set(a, b)
	verdicts(Good, Good)
	a.Size += 100
	b.Dev = "flannel.2"
	m.set(a, b)
	verdicts(Unknown, Unknown)
	m.run(5*time.Second, nil)
	verdicts(Good, Good)
	m.answers = nil
	m.set(a)
	m.set()
	if !m.s.step(m.now, m).IsZero() {
		t.Error("there is nothing to do, and it wants to be called")
	}
	m.set(a)
	verdicts(Unknown)
}

func TestAnswersAfterATargetIsGone(t *testing.T) {
	a := target(2, "hostgw")
	m := newSim(t, a)
	m.fate = func(*Target, int) (time.Duration, error) { return 50 * time.Millisecond, nil }
	m.run(10*time.Millisecond, nil)
	m.set()
	if len(m.answers) != 1 {
		t.Fatal("no probe")
	}
	if _, ok := m.s.reply(m.now, m.answers[0].answer); ok {
		t.Error("an answer to a target that is gone counts")
	}
}

// A loopback answers before the next step.
type loopback struct{ pending []answer }

func (l *loopback) send(t *Target, k kind, size int, seq uint16, cookie uint64) error {
	l.pending = append(l.pending, answer{from: t.Dst, to: t.Src, seq: seq, cookie: cookie, size: size})
	return nil
}

func (l *loopback) catchUp() {}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	m := newSim(t, targets(100)...)
	m.run(5*time.Second, nil)
	l, now := &loopback{pending: make([]answer, 0, 100)}, m.now
	n := testing.AllocsPerRun(200, func() {
		now = later(m.s.step(now, l), now)
		for _, a := range l.pending {
			m.s.reply(now, a)
		}
		l.pending = l.pending[:0]
	})
	if n != 0 || m.s.stats.Lost > 0 {
		t.Errorf("%v allocations per step, %+v", n, m.s.stats)
	}
}

func BenchmarkStep(b *testing.B) {
	m := newSim(b, targets(2000)...)
	m.run(20*time.Second, nil)
	l, now := &loopback{}, m.now
	for b.Loop() {
		now = later(m.s.step(now, l), now)
		for _, a := range l.pending {
			m.s.reply(now, a)
		}
		l.pending = l.pending[:0]
	}
	b.ReportMetric(float64(now.Sub(m.now).Milliseconds())/float64(b.N), "ms-between-steps")
}
