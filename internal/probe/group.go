package probe

import (
	"slices"
	"time"
)

const (
	tryFor    = 3 * time.Second // how long a way is tried; up to tryJitter longer
	tryJitter = time.Second     // so that two nodes do not rotate in step
	trySlower = 6               // how often the time doubles, once per round in which nothing answers
)

// A group is the ways to one peer, in the order of preference, the most basic one last. While none is good
// it chooses one to use on trial:
//
//	idle ── all are dead ──► trying ── one is good ──► idle
//
// The choice rotates from the last way to the first. It goes at once to a way that begins to answer, and
// stays there while that lasts: the peer's answers reach us, so if it does the same, both meet on that way.
type group struct {
	ways  []*way
	try   *way // nil: idle
	until time.Time
	turns int  // since something last answered
	met   bool // the peer's kernel has answered since there was last nothing on trial
}

// calls says that the peer's agent is to answer: while nobody does, and as long as its kernel does not.
func (g *group) calls() bool {
	return g.try != nil || !g.met && slices.ContainsFunc(g.ways, (*way).good)
}

// choose brings try up to date and reports whether it changed.
func (g *group) choose(now time.Time, p pace) bool {
	was := g.try
	g.try = g.next(now, p)
	return g.try != was
}

func (g *group) next(now time.Time, p pace) *way {
	alive := func(w *way) bool { return w.verdict != Dead }
	if len(g.ways) == 0 || slices.ContainsFunc(g.ways, (*way).good) {
		return nil
	}
	if g.try == nil && slices.ContainsFunc(g.ways, alive) {
		return nil
	}
	at := slices.Index(g.ways, g.try)
	if at >= 0 && g.try.answering() {
		return g.hold(g.try, 0, now, p)
	}
	for _, w := range slices.Backward(g.ways) {
		if w.answering() {
			return g.hold(w, 0, now, p)
		}
	}
	switch {
	case at < 0:
		return g.hold(g.ways[len(g.ways)-1], 0, now, p)
	case now.Before(g.until):
		return g.try
	case at == 0:
		at = len(g.ways)
	}
	return g.hold(g.ways[at-1], g.turns+1, now, p)
}

// hold keeps w on trial for a while.
func (g *group) hold(w *way, turns int, now time.Time, p pace) *way {
	g.turns = turns
	d := tryFor + time.Duration(p.rand.Float64()*float64(tryJitter))
	g.until = now.Add(d << min(turns/len(g.ways), trySlower))
	return w
}
