package probe

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestGoodNeedsTheFullSizeAndOneMore(t *testing.T) {
	m := newSim(t, target(2, "vxlan"))
	var sizes []int
	m.fate = func(_ *Target, size int) (time.Duration, error) {
		sizes = append(sizes, size)
		return time.Millisecond, nil
	}
	m.await(0, Good, time.Second)
	if len(sizes) != 2 || sizes[0] != 1450 || sizes[1] != 36 {
		t.Errorf("sizes %v, want 1450 and 36", sizes)
	}
	m.run(time.Minute, nil)
	if n := len(sizes); n < 58 || n > 70 {
		t.Errorf("%d probes in a minute, want about one per second", n)
	}
	for _, size := range sizes[2:] {
		if size != 36 {
			t.Errorf("a later probe has %d bytes", size)
		}
	}
	if h := m.health(0); h.RTT != time.Millisecond || h.Err != "" || h.Try || m.news != 1 {
		t.Errorf("%+v, %d changes", h, m.news)
	}
}

func TestSlowPathIsGood(t *testing.T) {
	m := newSim(t, target(2, "vxlan"))
	m.fate = func(*Target, int) (time.Duration, error) { return 900 * time.Millisecond, nil }
	m.await(0, Good, 3*time.Second)
	m.run(time.Minute, func() bool {
		if m.health(0).Verdict != Good {
			t.Fatalf("%+v", m.health(0))
		}
		return false
	})
}

func TestSomeLossKillsNoWay(t *testing.T) {
	m := newSim(t, target(2, "vxlan"))
	m.await(0, Good, time.Second)
	r := rand.New(rand.NewChaCha8([32]byte{}))
	inRow := 0
	m.fate = func(*Target, int) (time.Duration, error) {
		if inRow++; inRow <= 2 && r.Float64() < 0.3 {
			return lost, nil
		}
		inRow = 0
		return time.Millisecond, nil
	}
	m.run(10*time.Minute, func() bool { return m.health(0).Verdict != Good })
	if h := m.health(0); h.Verdict != Good || m.s.stats.Lost < 50 {
		t.Errorf("%+v after %+v", h, m.s.stats)
	}
}

func TestBreakIsNoticedWithinTwoSeconds(t *testing.T) {
	for _, n := range []int{1, 2, 400, 512} {
		m := newSim(t, targets(n)...)
		m.run(10*time.Second, nil)
		var worst time.Duration
		for i := range min(n, 40) {
			m.run(time.Duration(rand.N(1000))*time.Millisecond, nil)
			bad := m.s.ways[i].target.ID
			m.fate = func(t *Target, _ int) (time.Duration, error) {
				if t.ID == bad {
					return lost, nil
				}
				return time.Millisecond, nil
			}
			worst = max(worst, m.await(i, Dead, 3*time.Second))
		}
		t.Logf("%d targets: %v", n, worst)
		// Beyond relaxed the pace is slower, and the next probe of a broken way later by that much.
		if limit := 2*time.Second + m.s.pace.steady - steady; worst > limit {
			t.Errorf("%d targets: noticed after %v", n, worst)
		}
		dead := 0
		for i := range m.s.ways {
			if m.health(i).Verdict == Dead {
				dead++
			}
		}
		if dead > min(n, 40) {
			t.Errorf("%d targets: %d are dead", n, dead)
		}
	}
}

func TestWithoutCPUNothingIsLost(t *testing.T) {
	m := newSim(t, targets(50)...)
	m.fate = func(*Target, int) (time.Duration, error) { return 10 * time.Millisecond, nil }
	m.run(10*time.Second, nil)
	for range 100 { // the process runs for a moment every 700 ms, and the answers are read last
		m.now = m.now.Add(700 * time.Millisecond)
		m.wake = m.s.step(m.now, m)
		m.run(20*time.Millisecond, nil)
	}
	if m.s.stats.Lost > 0 || m.s.stats.Answered < 2000 {
		t.Errorf("%+v", m.s.stats)
	}
}

func TestFlappingWayRestsLongerEachTime(t *testing.T) {
	m := newSim(t, target(2, "vxlan"))
	up := true
	m.fate = func(*Target, int) (time.Duration, error) {
		if up {
			return time.Millisecond, nil
		}
		return lost, nil
	}
	m.await(0, Good, time.Second)
	for i, want := range []time.Duration{1, 5, 20, 60, 60} {
		want *= time.Second
		up = false
		m.await(0, Dead, 3*time.Second)
		up = true
		if got := m.await(0, Good, 2*time.Minute); got < want || got > want+3*time.Second {
			t.Errorf("death %d: good again after %v, want %v", i+1, got, want)
		}
	}
	m.run(flapMemory, nil)
	up = false
	m.await(0, Dead, 3*time.Second)
	up = true
	if got := m.await(0, Good, 2*time.Minute); got > 4*time.Second {
		t.Errorf("long after: good again after %v", got)
	}
}

func TestDeadWayThatLosesSomeStaysDead(t *testing.T) {
	m := newSim(t, target(2, "vxlan"))
	m.fate = func(*Target, int) (time.Duration, error) { return lost, nil }
	m.await(0, Dead, 3*time.Second)
	n := 0
	m.fate = func(*Target, int) (time.Duration, error) {
		if n++; n%4 == 0 {
			return lost, nil
		}
		return time.Millisecond, nil
	}
	if m.run(5*time.Minute, func() bool { return m.health(0).Verdict != Dead }) {
		t.Errorf("%+v", m.health(0))
	}
}

func TestReasons(t *testing.T) {
	for _, c := range []struct {
		name string
		fate func(size int) (time.Duration, error)
		want string
	}{
		{"nothing comes back", func(int) (time.Duration, error) { return lost, nil }, "no answer"},
		{"the path is narrow", func(size int) (time.Duration, error) {
			if size > 1000 {
				return lost, nil
			}
			return time.Millisecond, nil
		}, "packets of 1450 bytes do not come through, small ones do"},
		{"the device is narrow", func(size int) (time.Duration, error) {
			if size > 1000 {
				return lost, unix.EMSGSIZE
			}
			return time.Millisecond, nil
		}, "vxlan does not take packets of 1450 bytes"},
		{"a firewall refuses", func(int) (time.Duration, error) { return lost, unix.EPERM }, "send on vxlan: operation not permitted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newSim(t, target(2, "vxlan"))
			m.fate = func(_ *Target, size int) (time.Duration, error) { return c.fate(size) }
			m.await(0, Dead, 5*time.Second)
			m.run(10*time.Second, nil) // so that the reason is known
			m.run(time.Minute, func() bool {
				if h := m.health(0); h.Verdict != Dead || h.Err != c.want {
					t.Fatalf("%v, %q; want %q", h.Verdict, h.Err, c.want)
				}
				return false
			})
			m.fate = func(*Target, int) (time.Duration, error) { return time.Millisecond, nil }
			m.await(0, Good, 5*time.Second)
			if h := m.health(0); h.Err != "" {
				t.Errorf("healed, and still %q", h.Err)
			}
		})
	}
}

func TestUnprovenWayIsAskedLessAndLess(t *testing.T) {
	m := newSim(t, target(2, "vxlan"))
	m.fate = func(*Target, int) (time.Duration, error) { return lost, unix.ENETUNREACH }
	m.run(time.Minute, nil)
	if n := len(m.sentAt); n < 58 || n > 75 {
		t.Errorf("%d probes in a minute", n)
	}
	if gap := m.sentAt[1].Sub(m.sentAt[0]); gap != quick {
		t.Errorf("second probe after %v", gap)
	}
	if strings.Contains(m.health(0).Err, "%!") {
		t.Error(m.health(0).Err)
	}
}
