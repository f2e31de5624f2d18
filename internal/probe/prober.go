package probe

import (
	"context"
	crand "crypto/rand"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// reopenAfter is the time from a failure to open a socket to the next attempt.
const reopenAfter = time.Second

// A Prober probes targets. Its methods may be called from several goroutines.
type Prober struct {
	log       *slog.Logger
	namespace netns.NsHandle
	id        uint16
	wake      chan struct{} // capacity 1

	mu       sync.Mutex // guards what follows
	schedule *schedule
	last     []Target
	used     family.Pair[bool] // families of targets
	calling  family.Pair[bool] // families in which we call peers
	next     time.Time         // when step wants to be called; zero: never
	sockets  family.Pair[port]
	running  sync.WaitGroup // receivers
}

// A port is the socket of a family, opened when there are targets.
type port struct {
	socket *socket // nil: closed
	err    error   // why it could not be opened,
	retry  time.Time
}

// Open returns a prober for the calling thread's network namespace. It opens no socket before there are
// targets; that it cannot is seen in their health. Run releases what it holds.
func Open(log *slog.Logger) *Prober {
	namespace, err := netns.Get()
	if err != nil {
		namespace = netns.None() // no /proc: probing will be done where Run runs
	}
	var seed [32]byte
	_, _ = crand.Read(seed[:]) // never fails
	s := newSchedule(time.Now(), rand.NewChaCha8(seed))
	return &Prober{
		log: log, namespace: namespace, id: uint16(s.rand.Uint32() >> 17), wake: make(chan struct{}, 1), schedule: s,
	}
}

// Set takes the complete set of targets. Within a subnet their order is that of preference, the last one
// being the most basic. Targets that are as before keep what is known of them, also if only their size went
// down; the rest starts as unknown. Of several with one ID the first counts.
func (p *Prober) Set(targets []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Equal(targets, p.last) {
		return
	}
	p.last = slices.Clone(targets)
	p.used = family.Pair[bool]{}
	for _, t := range targets {
		if t.Dst.IsValid() {
			*p.used.Ref(family.Of(t.Dst)) = true
		}
	}
	p.schedule.set(p.last, time.Now())
	p.calling = p.schedule.calling()
	p.poke()
}

// Health returns what is known of each target.
func (p *Prober) Health() map[ID]Health {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := make(map[ID]Health, len(p.schedule.ways))
	for _, w := range p.schedule.ways {
		h[w.target.ID] = w.health()
	}
	return h
}

// Stats returns the counters.
func (p *Prober) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.schedule.stats
}

// Run probes until ctx ends, and returns nil then. It may be called once. After each change of a verdict or
// of a trial it calls changed, from one goroutine, which waits for it.
func (p *Prober) Run(ctx context.Context, changed func()) error {
	defer p.release()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-p.wake:
		}
		next, news := p.step()
		if news {
			changed()
		}
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// step does what is due, and returns when to do so again and whether there is news.
func (p *Prober) step() (next time.Time, news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closeUnused()
	p.next = p.schedule.step(time.Now(), p)
	if news, p.schedule.changed = p.schedule.changed, false; news {
		p.calling = p.schedule.calling()
	}
	for _, f := range family.All() {
		if s := p.sockets.Ref(f).socket; s != nil {
			s.hearCalls(p.calling.Of(f))
		}
	}
	return p.next, news
}

// poke has Run make a step.
func (p *Prober) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// send opens the socket if need be.
func (p *Prober) send(t *Target, k kind, size int, seq uint16, cookie uint64) error {
	if !t.Dst.IsValid() {
		return unix.EDESTADDRREQ
	}
	f := family.Of(t.Dst)
	o := p.sockets.Ref(f)
	if o.socket == nil {
		if !p.used.Of(f) {
			return net.ErrClosed // and not to be opened any more
		}
		if err := p.open(f, o); err != nil {
			return err
		}
	}
	return o.socket.send(t, k, size, seq, cookie)
}

// catchUp reads what the receivers have not come to. Like send it is called by step, which holds the lock.
func (p *Prober) catchUp() {
	take := func(a answer) { p.schedule.receive(time.Now(), a, p) }
	for _, f := range family.All() {
		if s := p.sockets.Ref(f).socket; s != nil {
			_ = s.drain(&s.late, take) // what is wrong shows in what is lost
		}
	}
}

func (p *Prober) open(f family.Family, o *port) error {
	now := time.Now()
	if o.err != nil && now.Before(o.retry) {
		return o.err
	}
	o.retry = now.Add(reopenAfter)
	o.err = within(p.namespace, func() (err error) {
		o.socket, err = openSocket(f == family.V6, p.id)
		return err
	})
	if o.err != nil {
		o.socket, o.err = nil, fmt.Errorf("raw ICMP socket: %w", o.err)
		return o.err
	}
	s := o.socket
	p.running.Go(func() { p.receive(f, s) })
	return nil
}

// receive takes answers until the socket is closed.
func (p *Prober) receive(f family.Family, s *socket) {
	err := s.receive(p.answer)
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.sockets.Ref(f); o.socket == s { // not closed by us: the next probe opens another
		p.log.Warn("probing: receive failed", "family", f, "err", err)
		s.close()
		o.socket = nil
	}
}

func (p *Prober) answer(a answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	due, ok := p.schedule.receive(time.Now(), a, p)
	if p.schedule.changed || ok && due.Before(p.next) {
		p.poke()
	}
}

// closeUnused has the sockets of families without targets closed. That waits for the receiver, who may be
// waiting for the lock with an answer.
func (p *Prober) closeUnused() {
	for _, f := range family.All() {
		if o := p.sockets.Ref(f); !p.used.Of(f) && o.socket != nil {
			p.running.Go(o.socket.close)
			o.socket = nil
		}
	}
}

// release ends the receivers and lets go of the namespace.
func (p *Prober) release() {
	p.mu.Lock()
	p.used = family.Pair[bool]{}
	p.closeUnused()
	p.mu.Unlock()
	p.running.Wait()
	if p.namespace.IsOpen() {
		_ = p.namespace.Close()
	}
}

// within calls f in a network namespace. As a rule it is the thread's own, and no capability is needed.
func within(namespace netns.NsHandle, f func() error) error {
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil || !namespace.IsOpen() {
		defer runtime.UnlockOSThread()
		return f()
	}
	defer own.Close()
	if own.Equal(namespace) {
		defer runtime.UnlockOSThread()
		return f()
	}
	if err := netns.Set(namespace); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = f()
	if netns.Set(own) == nil {
		runtime.UnlockOSThread() // else the thread stays ours, and ends with the goroutine
	}
	return err
}
