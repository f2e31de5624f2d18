package udptun

import "golang.org/x/sys/unix"

// arenaSize is that of a worker's room for packets: four as large as they get, so that the end of one receive is
// joined with the beginning of the next. Much more would fall out of the CPU's second cache between being received
// and being written.
const arenaSize = 1 << 18

// lookUp is after how many turns a worker that is never idle looks whether it has to stop.
const lookUp = 16

// A worker serves one queue of the device and the sockets beside it, both ways, on one thread. What it writes
// to the device often makes the pod answer within that very call: an acknowledgement of TCP brings the next
// segments. The worker finds them there without being woken.
type worker struct {
	send  *sender
	recv  []*receiver // one per family
	sleep sleeper
}

// newWorker returns a worker that sends with s and receives with rs, until stop can be read.
func newWorker(stop int, s *sender, rs ...*receiver) *worker {
	w := &worker{send: s, recv: rs}
	arena := make([]byte, arenaSize) // one for all: what is in it has left when a burst is over
	fds := []int{s.queue}
	s.alloc(arena, stop)
	for _, r := range rs {
		r.alloc(arena)
		fds = append(fds, r.socket)
	}
	w.sleep = newSleeper(unix.POLLIN, stop, fds...)
	return w
}

// run works until it is told to stop. It returns false when the device or a socket is gone.
func (w *worker) run() bool {
	for turns := 1; ; turns++ {
		got, idle, ok := w.turn()
		wait := -1
		switch {
		case !ok:
			return false
		case !idle && turns%lookUp == 0:
			wait = 0
		case !idle:
			continue
		case got > 0:
			// Those who made these packets, or take them, may be about to make more. Whoever is put to sleep
			// has to be woken, which costs more than to let them have the CPU and look again.
			yield()
			continue
		}
		if stop, ok := w.sleep.wait(wait); stop || !ok {
			return ok
		}
	}
}

// turn takes one burst from everywhere, the sockets first. It returns how many reads brought something; idle says
// that there is no more for now.
func (w *worker) turn() (got int, idle, ok bool) {
	idle = true
	for _, r := range w.recv {
		i, ok := r.burst()
		r.flushAll()
		if !ok {
			return got, false, false
		}
		got, idle = got+r.got, idle && i
	}
	i, ok := w.send.burst()
	w.send.flushAll()
	return got + w.send.got, idle && i, ok
}
