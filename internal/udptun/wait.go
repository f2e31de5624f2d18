package udptun

import "golang.org/x/sys/unix"

// A sleeper is how a worker waits.
//
// A worker has a thread and sleeps in poll itself. The runtime's poller would be woken by every packet
// that arrives while the worker is busy anyway, and would wake it through another thread.
type sleeper []unix.PollFd // the first is readable when the worker has to end

// newSleeper returns a sleeper for events at any of fds, or at stop.
func newSleeper(events int16, stop int, fds ...int) sleeper {
	s := sleeper{{Fd: int32(stop), Events: unix.POLLIN}}
	for _, fd := range fds {
		s = append(s, unix.PollFd{Fd: int32(fd), Events: events})
	}
	return s
}

// wait waits until there is something to do, until the worker has to stop, or for ms milliseconds; -1: for as
// long as it takes. ok is false when a descriptor is of no more use.
func (s sleeper) wait(ms int) (stop, ok bool) {
	for {
		_, err := unix.Poll(s, ms)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return false, false
		case s[0].Revents != 0:
			return true, true
		}
		for _, p := range s[1:] {
			// A socket with a pending error is read to clear it; a device that is gone says so when read.
			if p.Revents&unix.POLLNVAL != 0 {
				return false, false
			}
		}
		return false, true
	}
}
