package lab

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// A Mesh sends a stream of numbered UDP datagrams from every pod to every other one, in each family that
// both have, and knows of every single datagram whether it arrived. A pod has one socket per family for all
// its streams, so that even small machines carry many.
type Mesh struct {
	ends  []*meshEnd
	quit  chan struct{}
	nonce [8]byte // tells our datagrams from all others
	work  sync.WaitGroup
}

// A meshEnd is one address of one pod.
type meshEnd struct {
	mesh     *Mesh
	pod      *Pod
	addr     netip.Addr
	index    int
	file     *os.File
	peers    []*meshEnd
	interval time.Duration
	size     int
	taking   sync.Mutex // held from taking a datagram out of the socket until it is noted

	mu     sync.Mutex        // guards what follows
	sentAt []time.Time       // by number; a number goes to all peers at once
	failed map[string]int    // what sending said, by peer and error
	heard  map[int][]arrival // by index of the sender, by number
}

// An arrival says how often a datagram came in: 0, 1, or 2 for more than once.
type arrival uint8

// A Gap is a run of datagrams of one stream that did not arrive.
type Gap struct {
	From, To    string // pods
	Addr        netip.Addr
	First, Last int // numbers
	Begin, End  time.Time
}

func (g Gap) String() string {
	return fmt.Sprintf("%s to %s (%s): %d lost, %d to %d, sent from %s on for %v", g.From, g.To, g.Addr, g.Last-g.First+1,
		g.First, g.Last, g.Begin.Format("15:04:05.000"), g.End.Sub(g.Begin).Round(time.Millisecond))
}

// A Tally is what became of the datagrams of a span of time.
type Tally struct {
	Streams, Sent, Lost, Doubled int
	Gaps                         []Gap
	Errors                       map[string]int // why datagrams could not even be sent, and how often
}

const (
	meshPort   = 7000
	meshHeader = 8 + 2 + 8 // nonce, sender, number
)

// StartMesh sends a datagram with size bytes of data on every stream every interval, until Stop.
func StartMesh(pods []*Pod, interval time.Duration, size int) (*Mesh, error) {
	m := &Mesh{quit: make(chan struct{})}
	_, _ = rand.Read(m.nonce[:]) // never fails
	port := uint16(meshPort + size%1000)
	for _, p := range pods {
		for _, a := range p.Addrs() {
			e := &meshEnd{
				mesh: m, pod: p, addr: a, index: len(m.ends), interval: interval, size: max(size, meshHeader),
				failed: map[string]int{}, heard: map[int][]arrival{},
			}
			if err := e.open(port); err != nil {
				return nil, errors.Join(err, m.close())
			}
			m.ends = append(m.ends, e)
		}
	}
	for _, e := range m.ends {
		for _, peer := range m.ends {
			if e.pod != peer.pod && family.Of(e.addr) == family.Of(peer.addr) {
				e.peers = append(e.peers, peer)
			}
		}
		m.work.Go(e.receive)
	}
	for _, e := range m.ends {
		m.work.Go(func() { e.send(port) })
	}
	return m, nil
}

func (e *meshEnd) open(port uint16) error {
	return e.pod.Do(func() error {
		domain := unix.AF_INET
		if e.addr.Is6() {
			domain = unix.AF_INET6
		}
		fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("mesh socket: %w", err)
		}
		e.file = os.NewFile(uintptr(fd), "mesh")
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16<<20),
			unix.Bind(fd, sockaddrPort(e.addr, port)))
	})
}

func sockaddrPort(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
}

// send keeps pace by absolute times: a thread that wakes late sends what is due and leaves out what it
// missed, so that a busy machine means a slower stream and not a burst.
func (e *meshEnd) send(port uint16) {
	raw, err := e.file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, e.size)
	copy(buf, e.mesh.nonce[:])
	binary.BigEndian.PutUint16(buf[8:], uint16(e.index))
	to := make([]unix.Sockaddr, len(e.peers))
	for i, p := range e.peers {
		to[i] = sockaddrPort(p.addr, port)
	}
	next := time.Now().Add(e.interval * time.Duration(e.index) / time.Duration(len(e.mesh.ends)))
	for number := uint64(0); ; number++ {
		select {
		case <-e.mesh.quit:
			return
		default:
		}
		pace(time.Until(next))
		e.note()
		binary.BigEndian.PutUint64(buf[10:], number)
		for i, addr := range to {
			var sendErr error
			err := raw.Control(func(fd uintptr) { sendErr = unix.Sendto(int(fd), buf, 0, addr) })
			if err := errors.Join(err, sendErr); err != nil {
				e.fail(e.peers[i], err)
			}
		}
		for next = next.Add(e.interval); time.Since(next) > 0; next = next.Add(e.interval) {
		}
	}
}

// pace sleeps in the kernel: the runtime's timers are no finer than a millisecond.
func pace(d time.Duration) {
	if d > 0 {
		t := unix.NsecToTimespec(d.Nanoseconds())
		_ = unix.Nanosleep(&t, nil) // a signal makes it shorter, which does no harm
	}
}

func (e *meshEnd) note() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sentAt = append(e.sentAt, time.Now())
}

func (e *meshEnd) fail(to *meshEnd, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failed[fmt.Sprintf("%s to %s: %v", e.pod.Name, to.pod.Name, err)]++
}

// receive notes what arrives until the file is closed.
func (e *meshEnd) receive() {
	raw, err := e.file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 1<<16)
	for err == nil {
		err = raw.Read(func(fd uintptr) bool { return e.take(fd, buf) })
	}
}

// take notes what is in the socket. It returns false if there may come more.
func (e *meshEnd) take(fd uintptr, buf []byte) (closed bool) {
	for {
		err := e.takeOne(fd, buf)
		if closed = errors.Is(err, unix.EBADF); closed || errors.Is(err, unix.EAGAIN) {
			return closed
		}
	}
}

func (e *meshEnd) takeOne(fd uintptr, buf []byte) error {
	e.taking.Lock()
	defer e.taking.Unlock()
	n, _, err := unix.Recvfrom(int(fd), buf, 0)
	if err == nil && n == e.size && [8]byte(buf[:8]) == e.mesh.nonce {
		e.hear(int(binary.BigEndian.Uint16(buf[8:])), int(binary.BigEndian.Uint64(buf[10:])))
	}
	return err
}

// catchUp notes what has arrived and the receiver, on a busy machine, has not come to.
func (e *meshEnd) catchUp() {
	if e.file == nil {
		return
	}
	if raw, err := e.file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { e.take(fd, make([]byte, 1<<16)) }) // closed: the receiver has seen to it
	}
}

func (e *meshEnd) hear(from, number int) {
	if from >= len(e.mesh.ends) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	h := e.heard[from]
	for len(h) <= number {
		h = append(h, 0)
	}
	h[number] = min(h[number]+1, 2)
	e.heard[from] = h
}

// Settle is how long after it was sent a datagram may still be on its way.
const Settle = time.Second

// Tally says what became of the datagrams that were sent between two moments; the later one should be Settle
// ago at least.
func (m *Mesh) Tally(begin, end time.Time) Tally {
	t := Tally{Errors: map[string]int{}}
	for _, e := range m.ends {
		e.catchUp()
	}
	for _, e := range m.ends {
		e.mu.Lock()
		sentAt := slices.Clone(e.sentAt)
		for what, n := range e.failed {
			t.Errors[what] += n
		}
		e.mu.Unlock()
		first, _ := slices.BinarySearchFunc(sentAt, begin, time.Time.Compare)
		last, _ := slices.BinarySearchFunc(sentAt, end, time.Time.Compare)
		for _, peer := range e.peers {
			peer.mu.Lock()
			heard := slices.Clone(peer.heard[e.index])
			peer.mu.Unlock()
			t.Streams++
			t.Sent += last - first
			t.stream(e, peer, sentAt, heard, first, last)
		}
	}
	return t
}

func (t *Tally) stream(from, to *meshEnd, sentAt []time.Time, heard []arrival, first, last int) {
	var gap *Gap
	for i := first; i < last; i++ {
		if i < len(heard) && heard[i] > 0 {
			if gap = nil; heard[i] > 1 {
				t.Doubled++
			}
			continue
		}
		t.Lost++
		if gap == nil {
			t.Gaps = append(t.Gaps, Gap{From: from.pod.Name, To: to.pod.Name, Addr: to.addr, First: i, Begin: sentAt[i]})
			gap = &t.Gaps[len(t.Gaps)-1]
		}
		gap.Last, gap.End = i, sentAt[i]
	}
}

// Longest returns the longest time in which all datagrams of a stream were lost.
func (t Tally) Longest() time.Duration {
	longest := time.Duration(0)
	for _, g := range t.Gaps {
		longest = max(longest, g.End.Sub(g.Begin))
	}
	return longest
}

// Rate returns how many datagrams per second a stream had on average.
func (t Tally) Rate(d time.Duration) float64 {
	return float64(t.Sent) / float64(max(t.Streams, 1)) / d.Seconds()
}

// Stop ends all streams.
func (m *Mesh) Stop() error {
	close(m.quit)
	err := m.close()
	m.work.Wait()
	return err
}

func (m *Mesh) close() error {
	var errs []error
	for _, e := range m.ends {
		if e.file != nil {
			errs = append(errs, e.file.Close())
		}
	}
	return errors.Join(errs...)
}
