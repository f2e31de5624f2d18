package probe

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"
)

const (
	steady = time.Second            // between the probes of a way
	quick  = 200 * time.Millisecond // the same where an answer is needed soon

	minTimeout = 300 * time.Millisecond
	maxTimeout = time.Second

	deadAfter  = 4 // losses in a row
	goodAfter  = 2 // answers in a row: one of full size and one more
	aliveAfter = 5 // answers in a row of a way that was dead
	quickTries = 5 // of an unproven way, before the pace slows down
	doubtAfter = 2 // losses in a row after which a way no longer counts as answering

	flapMemory = 10 * time.Minute
)

// quiet is for how long a way that was dead must answer without a loss before it is good again, by how often
// it died within flapMemory.
var quiet = [...]time.Duration{0, time.Second, 5 * time.Second, 20 * time.Second, time.Minute}

// A pace is how often to probe. It stretches with the number of targets.
type pace struct {
	steady time.Duration
	rand   *rand.Rand
}

// every returns the time to the next probe. Jitter only shortens it: a break is to be noticed in time.
func (p pace) every() time.Duration {
	return p.steady - time.Duration(p.rand.Float64()*0.1*float64(p.steady))
}

// An echo is a probe without an answer so far.
type echo struct {
	seq  uint16
	full bool
	sent time.Time
}

// A way is the state of one target:
//
//	          full size answered, and one more
//	Unknown ────────────────────────────────────► Good
//	   │                                          │  ▲
//	   │ 4 losses in a row       4 losses in a row│  │ full size answered, 5 in a row, for as long
//	   └──────────────────► Dead ◄────────────────┘  │ as quiet says
//	                          └──────────────────────┘
//
// The next probe is always due at sendAt: sending sets it to the pace of a way that does not answer, and an
// answer postpones it (a good way) or hastens it (one that is about to become good).
type way struct {
	target Target
	group  *group
	index  int  // in the schedule
	gone   bool // no longer in the schedule

	verdict Verdict
	since   time.Time
	turned  bool // the verdict is news
	rtt     time.Duration
	sendAt  time.Time
	out     [8]echo // the first outN, oldest first
	outN    int

	proven      bool // an echo of full size came back since the way was last dead
	smaller     bool // small ones come back, and none of full size
	tries       int  // probes since the verdict changed
	losses      int  // in a row
	streak      int  // answers in a row
	streakSince time.Time
	deaths      [len(quiet) - 1]time.Time // when it was good and died, latest first
	err         error                     // of the last probe that could not be sent
}

// full says whether the next probe has full size. Every third of an unproven way is small, to tell a way
// that carries nothing from one that does not carry large packets.
func (w *way) full() bool { return !w.proven && w.tries%3 != 2 }

func (w *way) good() bool { return w.verdict == Good }

// urgent says that the next probe decides whether a way in use is dead.
func (w *way) urgent() bool { return w.verdict == Good && (w.losses > 0 || w.outN > 0) }

// answering says that the way has begun to answer, whatever its verdict still is.
func (w *way) answering() bool { return w.proven && w.losses < doubtAfter }

func (w *way) timeout() time.Duration {
	if w.rtt == 0 {
		return maxTimeout
	}
	return min(max(minTimeout, 4*w.rtt), maxTimeout)
}

// due returns when the way next wants attention.
func (w *way) due() time.Time {
	t := w.sendAt
	if w.outN > 0 {
		t = earlier(t, w.out[0].sent.Add(w.timeout()))
	}
	if w.group != nil && w.group.try == w {
		t = earlier(t, w.group.until)
	}
	return t
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// sent notes a probe. Its answer, if there is one, is told to reply.
func (w *way) sent(now time.Time, seq uint16, full bool, p pace) {
	if w.outN == len(w.out) {
		w.drop(1)
	}
	w.out[w.outN] = echo{seq: seq, full: full, sent: now}
	w.outN++
	w.tries++
	if full || w.proven { // that a small one left says nothing about large ones
		w.err = nil
	}
	w.sendAt = now.Add(w.unanswered(p))
}

// failed notes a probe that could not be sent, which is as bad as a lost one, and returns how many were lost
// by it.
func (w *way) failed(now time.Time, err error, p pace) (lost int) {
	w.tries++
	lost = w.lose(now)
	w.err = err
	w.sendAt = now.Add(w.unanswered(p))
	return lost
}

// drop forgets the n oldest probes.
func (w *way) drop(n int) { w.outN = copy(w.out[:], w.out[n:w.outN]) }

// unanswered returns the time from a probe to the next if no answer comes.
func (w *way) unanswered(p pace) time.Duration {
	switch w.verdict {
	case Good:
		if w.losses == 0 && w.outN == 1 {
			return w.timeout() * 2 / 3 // it is late, though not yet lost: ask again
		}
		return quick
	case Unknown:
		return min(quick<<max(0, min(w.tries-quickTries, 10)), p.every())
	}
	return p.every()
}

// overdue says that the time of a probe is over.
func (w *way) overdue(now time.Time) bool {
	return w.outN > 0 && !now.Before(w.out[0].sent.Add(w.timeout()))
}

// expire gives up the probes whose time is over and returns how many were lost.
func (w *way) expire(now time.Time) (lost int) {
	for w.overdue(now) {
		if !w.out[0].full {
			w.smaller = false
		}
		w.drop(1)
		lost += w.lose(now)
	}
	return lost
}

// lose counts a loss. If the way dies of it, what is still outstanding is lost too.
func (w *way) lose(now time.Time) (lost int) {
	w.losses++
	w.streak = 0
	if w.losses < deadAfter {
		return 1
	}
	w.proven = false // whatever broke may have made the path narrower
	if w.verdict == Dead {
		return 1
	}
	if w.verdict == Good {
		copy(w.deaths[1:], w.deaths[:])
		w.deaths[0] = now
	}
	lost = 1 + w.outN
	w.rtt, w.outN = 0, 0
	w.become(Dead, now)
	return lost
}

func (w *way) become(v Verdict, now time.Time) {
	w.verdict, w.since, w.tries, w.turned = v, now, 0, true
}

// reply notes the answer to a probe of some size and reports whether one was outstanding. skipped are the
// older probes that are given up with it.
func (w *way) reply(now time.Time, seq uint16, size int, p pace) (skipped int, ok bool) {
	i := 0
	for i < w.outN && w.out[i].seq != seq {
		i++
	}
	if i == w.outN || size != w.target.bytes(w.out[i].full) {
		return 0, false
	}
	e := w.out[i]
	w.drop(i + 1)
	w.sample(now.Sub(e.sent))
	if !w.proven && !e.full {
		w.smaller = true
		return i, true
	}
	if i > 0 {
		w.streak = 0
	}
	if w.streak == 0 {
		w.streakSince = now
	}
	w.streak++
	w.losses, w.err, w.proven, w.smaller = 0, nil, true, false
	w.answered(now, e, p)
	return i, true
}

func (w *way) sample(rtt time.Duration) {
	if w.rtt == 0 {
		w.rtt = max(rtt, 1)
	} else {
		w.rtt = max(w.rtt+(rtt-w.rtt)/8, 1)
	}
}

// answered draws the conclusion from an answer that counts.
func (w *way) answered(now time.Time, e echo, p pace) {
	enough := w.streak >= goodAfter
	if w.verdict == Dead {
		enough = w.streak >= aliveAfter && now.Sub(w.streakSince) >= w.quiet(now)
	}
	switch {
	case w.verdict == Good:
		w.sendAt = e.sent.Add(p.every())
	case enough:
		w.become(Good, now)
		w.sendAt = now.Add(time.Duration(p.rand.Float64() * float64(p.every()))) // a phase of its own
	case w.streak < aliveAfter:
		w.sendAt = e.sent.Add(quick)
	default:
		w.sendAt = e.sent.Add(p.every())
	}
}

// quiet returns for how long the way must answer now to be good again.
func (w *way) quiet(now time.Time) time.Duration {
	n := 0
	for n < len(w.deaths) && !w.deaths[n].IsZero() && now.Sub(w.deaths[n]) < flapMemory {
		n++
	}
	return quiet[n]
}

// health returns what the world is told.
func (w *way) health() Health {
	h := Health{Verdict: w.verdict, Since: w.since, RTT: w.rtt}
	if w.group != nil {
		h.Try, h.Called = w.group.try == w, w.good() && w.group.calls()
	}
	switch {
	case errors.Is(w.err, unix.EMSGSIZE):
		h.Err = fmt.Sprintf("%s does not take packets of %d bytes", w.target.Dev, w.target.Size)
	case w.err != nil:
		h.Err = fmt.Sprintf("send on %s: %v", w.target.Dev, w.err)
	case w.smaller:
		h.Err = fmt.Sprintf("packets of %d bytes do not come through, small ones do", w.target.Size)
	case w.losses >= doubtAfter:
		h.Err = "no answer"
	case w.verdict == Dead:
		h.Err = fmt.Sprintf("answers again, on probation for %v", max(w.quiet(w.streakSince), time.Second))
	}
	return h
}
