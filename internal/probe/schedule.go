package probe

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/weftnet/weft/internal/family"
)

const (
	// In any second at most perSecond probes leave this node: rate of them, and a burst.
	perSecond = 512
	burst     = 12
	rate      = perSecond - burst

	// With more targets than this the steady pace slows down; the rest of the rate is for ways in doubt.
	relaxed = rate * 95 / 100

	startOver = 300 * time.Millisecond // new targets start within this,
	startGap  = 2 * time.Millisecond   // or sooner, if they are few
	breather  = 5 * time.Millisecond   // between two steps: probes that are due together leave together
	starved   = 16 * time.Millisecond  // the same while the rate is used up

	// Of calls so many are answered in any one second: all those of as many peers as there may be, who share their
	// rates among them, over four ways each.
	answers = 4 * perSecond
)

// A network is where probes go.
type network interface {
	// send sends an echo of size bytes, IP header included. Errors are the kernel's.
	send(t *Target, k kind, size int, seq uint16, cookie uint64) error
	// catchUp passes what is waiting to the schedule's receive.
	catchUp()
}

// A schedule is all targets and when they are probed.
type schedule struct {
	epoch   time.Time
	rand    *rand.Rand
	ways    []*way
	due     []time.Duration // since epoch, by the index of ways: what a step looks through
	ready   []int           // the ways that a step is to probe, reused
	groups  map[netip.Prefix]*group
	peers   map[netip.Addr]*group // by the address of their ways
	flight  flight
	pace    pace
	tokens  float64
	filled  time.Time
	second  time.Time // in which calls
	given   int       // were answered so often
	cursor  int       // where the rate was used up
	changed bool
	stats   Stats
}

func newSchedule(now time.Time, src rand.Source) *schedule {
	r := rand.New(src)
	return &schedule{
		epoch: now, rand: r, filled: now, tokens: burst, pace: pace{steady: steady, rand: r}, flight: flight{rand: r},
	}
}

// set takes the complete set of targets. What is unchanged keeps its state; so does a target whose size went
// down.
func (s *schedule) set(targets []Target, now time.Time) {
	had := make(map[ID]*way, len(s.ways))
	for _, w := range s.ways {
		w.gone, w.group = true, nil
		had[w.target.ID] = w
	}
	former := s.groups
	s.groups = make(map[netip.Prefix]*group, len(former))
	s.peers = make(map[netip.Addr]*group, len(former))
	s.ways = make([]*way, 0, len(targets))
	seen := make(map[ID]bool, len(targets))
	var fresh []*way
	for _, t := range targets {
		if seen[t.ID] {
			continue
		}
		seen[t.ID] = true
		w := had[t.ID]
		if w == nil || !t.follows(w.target) {
			w = &way{since: now}
			fresh = append(fresh, w)
		}
		w.target, w.gone, w.index = t, false, len(s.ways)
		s.ways = append(s.ways, w)
		s.join(w, former)
	}
	spread := float64(min(startOver, startGap*time.Duration(max(0, len(fresh)-1))))
	for _, w := range fresh {
		w.sendAt = now.Add(time.Duration(s.rand.Float64() * spread))
	}
	s.restart(now)
}

// restart brings up to date what follows from the set of ways.
func (s *schedule) restart(now time.Time) {
	s.pace.steady = max(steady, steady*time.Duration(len(s.ways))/relaxed)
	s.due = slices.Grow(s.due[:0], len(s.ways))[:len(s.ways)]
	s.cursor = 0
	for _, g := range s.groups {
		s.choose(g, now)
	}
	for _, w := range s.ways {
		s.settle(w)
	}
}

// follows says that what is known of a former target holds for t.
func (t Target) follows(former Target) bool {
	same := former
	same.Size = t.Size
	return same == t && t.Size <= former.Size
}

// join puts w at the end of its group, which keeps its choice.
func (s *schedule) join(w *way, former map[netip.Prefix]*group) {
	g := s.groups[w.target.Subnet]
	if g == nil {
		if g = former[w.target.Subnet]; g == nil {
			g = &group{}
		}
		g.ways = g.ways[:0]
		s.groups[w.target.Subnet], s.peers[w.target.Dst] = g, g
	}
	g.ways = append(g.ways, w)
	w.group = g
}

// step does what is due and returns when it wants to be called again; zero for never.
func (s *schedule) step(now time.Time, tx network) time.Time {
	if len(s.ways) == 0 {
		return time.Time{}
	}
	s.refill(now)
	limit := now.Sub(s.epoch)
	s.ready = s.ready[:0]
	caughtUp := false
	for i, d := range s.due {
		if d > limit {
			continue
		}
		w := s.ways[i]
		if !caughtUp && w.overdue(now) {
			tx.catchUp() // this process may have been without CPU for longer than the answers took
			caughtUp = true
		}
		s.stats.Lost += uint64(w.expire(now))
		if w.urgent() {
			s.probe(w, now, tx)
		}
		s.choose(w.group, now)
		s.settle(w)
		if !w.sendAt.After(now) {
			s.ready = append(s.ready, i)
		}
	}
	if !s.ordinary(now, tx) {
		return now.Add(starved)
	}
	return later(s.epoch.Add(slices.Min(s.due)), now.Add(breather))
}

// ordinary probes what is ready beside the urgent ones, in turn. It returns false if the rate was used up.
func (s *schedule) ordinary(now time.Time, tx network) bool {
	first, _ := slices.BinarySearch(s.ready, s.cursor)
	for _, list := range [][]int{s.ready[first:], s.ready[:first]} {
		for _, i := range list {
			w := s.ways[i]
			if !s.probe(w, now, tx) {
				s.cursor = i
				return false
			}
			s.choose(w.group, now)
			s.settle(w)
		}
	}
	return true
}

// probe sends one if it is time. It returns false if it is, and the rate is used up.
func (s *schedule) probe(w *way, now time.Time, tx network) bool {
	if w.sendAt.After(now) {
		return true
	}
	if s.tokens < 1 {
		return false
	}
	s.tokens--
	full := w.full()
	seq, cookie := s.flight.start(w)
	k := ordinary
	if w.group.calls() {
		k = call
	}
	if err := tx.send(&w.target, k, w.target.bytes(full), seq, cookie); err != nil {
		s.flight.end(seq)
		s.stats.Lost += uint64(w.failed(now, err, s.pace))
	} else {
		s.stats.Sent++
		w.sent(now, seq, full, s.pace)
	}
	return true
}

// An answer is an echo as it came in.
type answer struct {
	kind     kind
	from, to netip.Addr
	seq      uint16
	cookie   uint64
	size     int // in bytes, IP header included
}

// receive takes what came in. It returns when the way that it belongs to is due, false if there is none.
func (s *schedule) receive(now time.Time, a answer, tx network) (time.Time, bool) {
	if a.kind != call {
		return s.reply(now, a)
	}
	s.answer(now, a, tx)
	return time.Time{}, false
}

// answer answers a call, if we call that peer too, over all ways: which of them carry packets is not known.
func (s *schedule) answer(now time.Time, a answer, tx network) {
	if now.Sub(s.second) >= time.Second {
		s.second, s.given = now, 0
	}
	g := s.peers[a.from]
	if g == nil || !g.calls() || a.to != g.ways[0].target.Src || s.given+len(g.ways) > answers {
		s.stats.Ignored++
		return
	}
	s.given += len(g.ways)
	for _, w := range g.ways {
		_ = tx.send(&w.target, called, a.size, a.seq, ^a.cookie) // whoever calls calls again
	}
}

// reply takes an answer. It returns when its way is due, false if it belongs to no probe.
func (s *schedule) reply(now time.Time, a answer) (time.Time, bool) {
	w := s.flight.find(a.seq, a.cookie)
	if w == nil {
		w, a.kind = s.flight.find(a.seq, ^a.cookie), called
	}
	if w == nil || w.gone || !w.target.accepts(a) {
		s.stats.Ignored++
		return time.Time{}, false
	}
	skipped, ok := w.reply(now, a.seq, a.size, s.pace)
	if !ok {
		s.stats.Ignored++
	} else {
		s.flight.end(a.seq)
		s.stats.Answered++
		s.stats.Lost += uint64(skipped)
		s.met(w.group, a.kind)
	}
	s.choose(w.group, now)
	s.settle(w)
	return w.due(), ok
}

// accepts says whether an answer may come from the target.
func (t *Target) accepts(a answer) bool {
	// An IPv6 node may hold the address as the subnet-router anycast address too (RFC 4291, 2.6.1); if that
	// was there first, Linux answers from an address of its own choice. The cookie must do.
	return a.to == t.Src && (a.from == t.Dst || t.Dst.Is6())
}

func (s *schedule) choose(g *group, now time.Time) {
	former := g.try
	if !g.choose(now, s.pace) {
		return
	}
	s.changed = true
	if former == nil {
		g.met = false
	}
	for _, w := range []*way{former, g.try} {
		if w != nil && !w.gone {
			s.settle(w) // the time of a choice is kept in that of its way
		}
	}
}

// met notes who has answered.
func (s *schedule) met(g *group, k kind) {
	if k == ordinary && !g.met {
		s.changed = s.changed || g.calls() && g.try == nil
		g.met = true
	}
}

// calling returns the families in which a peer is called.
func (s *schedule) calling() (in family.Pair[bool]) {
	for subnet, g := range s.groups {
		if g.calls() {
			*in.Ref(family.Of(subnet.Addr())) = true
		}
	}
	return in
}

// settle ends whatever was done to a way.
func (s *schedule) settle(w *way) {
	s.due[w.index] = w.due().Sub(s.epoch)
	s.changed = s.changed || w.turned
	w.turned = false
}

func (s *schedule) refill(now time.Time) {
	s.tokens = min(burst, s.tokens+rate*now.Sub(s.filled).Seconds())
	s.filled = now
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
