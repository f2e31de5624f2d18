package probe

import "math/rand/v2"

// flightSize is a power of two, and more than the probes of a second (perSecond) with their time-out.
const flightSize = 1024

// A flight finds the way that an answer belongs to. It cannot grow: a probe takes the place of the one
// flightSize before it, whose time is over by then.
type flight struct {
	slots [flightSize]slot
	seq   uint16
	rand  *rand.Rand // must be hard to predict: nobody may answer a probe that did not reach him
}

type slot struct {
	way    *way // nil: none
	seq    uint16
	cookie uint64
}

// start makes a sequence number and a cookie for a probe.
func (f *flight) start(w *way) (seq uint16, cookie uint64) {
	f.seq++
	cookie = f.rand.Uint64()
	f.slots[f.seq%flightSize] = slot{way: w, seq: f.seq, cookie: cookie}
	return f.seq, cookie
}

// find returns the way of a probe, nil if there was no such probe.
func (f *flight) find(seq uint16, cookie uint64) *way {
	s := &f.slots[seq%flightSize]
	if s.way == nil || s.seq != seq || s.cookie != cookie {
		return nil
	}
	return s.way
}

// end forgets a probe.
func (f *flight) end(seq uint16) { f.slots[seq%flightSize] = slot{} }
