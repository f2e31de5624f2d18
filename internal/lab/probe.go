package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"
)

// A Probe pings one address at a steady rate and knows exactly which requests were answered.
type Probe struct {
	socket *echoSocket
	quit   chan struct{}
	sender sync.WaitGroup
	reader sync.WaitGroup

	mu     sync.Mutex // guards what follows
	began  time.Time
	sentAt []time.Duration // since began, by number
	heard  []bool          // by number
	count  int             // of heard
	errs   map[string]int  // what sending said
}

// A Loss is what a probe found.
type Loss struct {
	Sent, Lost int
	Longest    time.Duration  // longest time between two answered requests with lost ones in between
	Errors     map[string]int // why requests could not even be sent, and how often
}

func (l Loss) String() string {
	s := fmt.Sprintf("%d of %d lost", l.Lost, l.Sent)
	if l.Lost > 0 {
		s += fmt.Sprintf(", longest outage %v", l.Longest.Round(time.Millisecond))
	}
	for e, n := range l.Errors {
		s += fmt.Sprintf(", %d times %s", n, e)
	}
	return s
}

// StartProbe pings to from the given place every interval until Stop.
func StartProbe(at Place, to netip.Addr, interval time.Duration) (*Probe, error) {
	s, err := openEcho(at, to)
	if err != nil {
		return nil, err
	}
	p := &Probe{socket: s, quit: make(chan struct{}), began: time.Now(), errs: map[string]int{}}
	p.sender.Go(func() { p.send(interval) })
	p.reader.Go(p.read)
	return p, nil
}

func (p *Probe) send(interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for number := uint64(0); ; number++ {
		p.mu.Lock()
		p.sentAt = append(p.sentAt, time.Since(p.began))
		p.heard = append(p.heard, false)
		p.mu.Unlock()
		if err := p.socket.send(number); err != nil {
			p.mu.Lock()
			p.errs[err.Error()]++
			p.mu.Unlock()
		}
		select {
		case <-p.quit:
			return
		case <-tick.C:
		}
	}
}

// read notes replies until the socket is closed.
func (p *Probe) read() {
	for {
		number, err := p.socket.receive(time.Time{})
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier request
		}
		p.mu.Lock()
		if number < uint64(len(p.heard)) && !p.heard[number] {
			p.heard[number] = true
			p.count++
		}
		p.mu.Unlock()
	}
}

// Answered returns how many requests have been answered so far.
func (p *Probe) Answered() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

// Stop ends the probe. A request that is not answered within five seconds after that is lost: before, the machine
// may only be busy.
func (p *Probe) Stop() Loss {
	close(p.quit)
	p.sender.Wait()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline) && p.Answered() < len(p.sentAt); {
		time.Sleep(pollEvery)
	}
	_ = p.socket.close() // wakes the reader
	p.reader.Wait()
	return p.loss()
}

func (p *Probe) loss() Loss {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := Loss{Sent: len(p.sentAt), Lost: len(p.sentAt) - p.count, Errors: p.errs}
	last, lost := time.Duration(0), false // of the last answered request; has one been lost since
	for i, at := range p.sentAt {
		if !p.heard[i] {
			lost = true
			continue
		}
		if lost {
			l.Longest = max(l.Longest, at-last)
		}
		last, lost = at, false
	}
	if n := len(p.sentAt); lost && n > 0 {
		l.Longest = max(l.Longest, p.sentAt[n-1]-last)
	}
	return l
}

// A Pair is one direction between two pods, in one family.
type Pair struct {
	From, To *Pod
	Addr     netip.Addr // of To
	RTT      time.Duration
	Err      error // nil: answered
}

func (p Pair) String() string {
	return fmt.Sprintf("%s on %s to %s on %s (%s)", p.From.Name, p.From.Node.Name, p.To.Name, p.To.Node.Name, p.Addr)
}

// PingAll pings every pod from every other one, once per family, all at the same time.
func (l *Lab) PingAll(timeout time.Duration) ([]Pair, error) {
	pods, err := l.Pods()
	if err != nil {
		return nil, err
	}
	var pairs []Pair
	for _, from := range pods {
		for _, to := range pods {
			for _, a := range to.Addrs() {
				if from.Name != to.Name {
					pairs = append(pairs, Pair{From: from, To: to, Addr: a})
				}
			}
		}
	}
	var wg sync.WaitGroup
	for i := range pairs {
		wg.Go(func() { pairs[i].RTT, pairs[i].Err = Ping(pairs[i].From, pairs[i].Addr, timeout) })
	}
	wg.Wait()
	return pairs, nil
}
