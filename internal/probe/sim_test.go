package probe

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lease"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

const lost = time.Duration(-1)

// A sim runs a schedule in time of its own, over a network that fate decides about.
type sim struct {
	t       testing.TB
	s       *schedule
	now     time.Time
	wake    time.Time
	fate    func(t *Target, size int) (time.Duration, error) // round trip or lost
	answers []arrival
	sentAt  []time.Time
	news    int

	kind   kind        // of the probe that fate decides about
	agent  bool        // which it says that the peer's agent answers
	called []lease.Key // the ways over which calls were answered
}

type arrival struct {
	at time.Time
	answer
}

func newSim(t testing.TB, targets ...Target) *sim {
	m := &sim{t: t, s: newSchedule(noon, rand.NewChaCha8([32]byte{byte(len(targets))})), now: noon}
	m.fate = func(*Target, int) (time.Duration, error) { return time.Millisecond, nil }
	m.set(targets...)
	return m
}

func (m *sim) set(targets ...Target) {
	m.s.set(targets, m.now)
	m.wake = m.now
}

func (m *sim) send(t *Target, k kind, size int, seq uint16, cookie uint64) error {
	if k == called {
		m.called = append(m.called, t.Key)
		return nil
	}
	m.kind, m.agent = k, false
	m.sentAt = append(m.sentAt, m.now)
	rtt, err := m.fate(t, size)
	if m.agent {
		cookie = ^cookie
	}
	if err == nil && rtt != lost {
		m.answers = append(m.answers, arrival{m.now.Add(rtt), answer{from: t.Dst, to: t.Src, seq: seq, cookie: cookie, size: size}})
	}
	return err
}

func (m *sim) catchUp() {
	m.answers = slices.DeleteFunc(m.answers, func(a arrival) bool {
		if a.at.After(m.now) {
			return false
		}
		m.s.reply(m.now, a.answer)
		return true
	})
}

// run lets time go by until d is over, or until done, if there is one, says so.
func (m *sim) run(d time.Duration, done func() bool) bool {
	m.t.Helper()
	for end := m.now.Add(d); ; {
		if done != nil && done() {
			return true
		}
		first := -1
		for i, a := range m.answers {
			if first < 0 || a.at.Before(m.answers[first].at) {
				first = i
			}
		}
		switch {
		case first >= 0 && !m.answers[first].at.After(end) && (m.wake.IsZero() || !m.answers[first].at.After(m.wake)):
			a := m.answers[first]
			m.answers = append(m.answers[:first], m.answers[first+1:]...)
			m.now = later(m.now, a.at)
			if due, ok := m.s.reply(m.now, a.answer); ok && due.Before(m.wake) {
				m.wake = later(due, m.now)
			}
		case !m.wake.IsZero() && !m.wake.After(end):
			m.now = later(m.now, m.wake)
			m.wake = m.s.step(m.now, m)
		default:
			m.now = end
			return false
		}
		if m.s.changed {
			m.s.changed = false
			m.news++
		}
	}
}

func (m *sim) health(i int) Health { return m.s.ways[i].health() }

// await runs until a way has a verdict and returns how long that took.
func (m *sim) await(i int, v Verdict, limit time.Duration) time.Duration {
	m.t.Helper()
	start := m.now
	if !m.run(limit, func() bool { return m.health(i).Verdict == v }) {
		m.t.Fatalf("way %d is %+v after %v, want %v", i, m.health(i), limit, v)
	}
	return m.now.Sub(start)
}

// target returns a way to a peer's subnet.
func target(peer int, key string) Target {
	sub := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(64 + peer>>8), byte(peer), 0}), 24)
	return Target{ID: ID{sub, lease.Key(key)}, Dev: key, Src: netip.MustParseAddr("10.244.1.0"), Dst: sub.Addr(), Size: 1450}
}

func targets(n int) []Target {
	list := make([]Target, n)
	for i := range list {
		list[i] = target(i/2, fmt.Sprint("way", i%2))
	}
	return list
}
