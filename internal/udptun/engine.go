package udptun

import (
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/state"
)

// maxQueues bounds how many queues are taken unasked. Traffic with one peer uses one of them.
const maxQueues = 4

// MaxQueues is how many queues may be asked for.
const MaxQueues = 64

// An engine is one device with its sockets and the workers between them.
type engine struct {
	dev   string
	log   *slog.Logger
	count counters
	table atomic.Pointer[table]

	want    state.Tunnel
	device  *device
	sockets *sockets

	stop    int // eventfd; -1: no workers
	wg      sync.WaitGroup
	running atomic.Int32 // workers that have not ended
	workers int32        // how many there should be
}

func newEngine(dev string, log *slog.Logger) *engine {
	return &engine{dev: dev, log: log, stop: -1}
}

func queues(w state.Tunnel) int {
	if w.Queues > 0 {
		return w.Queues
	}
	return min(runtime.NumCPU(), maxQueues)
}

// healthy says whether all workers work. They end by themselves when the device was deleted.
func (e *engine) healthy() bool { return e.device != nil && e.running.Load() == e.workers }

// apply makes the engine as want says. What does not differ stays open: packets that wait in it are not
// lost.
func (e *engine) apply(want state.Tunnel, peers map[netip.Prefix]netip.Addr) error {
	old := e.table.Load()
	if !old.same(peers) || want.Port != e.want.Port {
		e.table.Store(newTable(peers, want.Port, old))
	}
	if e.healthy() && want == e.want {
		return nil
	}
	whole := e.healthy()
	e.halt()
	if e.device != nil && (!whole || queues(want) != len(e.device.queues)) {
		e.device.close()
		e.device = nil
	}
	if e.sockets != nil && (queues(want) != len(e.sockets.all) || want.Off != e.want.Off ||
		want.Local != e.want.Local || want.Port != e.want.Port) {
		e.sockets.close()
		e.sockets = nil
	}
	if err := e.open(want); err != nil {
		e.close()
		return err
	}
	e.want = want
	if err := e.start(); err != nil {
		e.close() // or it would count as healthy, with no worker of none
		return err
	}
	return nil
}

func (e *engine) open(want state.Tunnel) (err error) {
	if e.sockets == nil {
		if e.sockets, err = openSockets(want.Local, want.Port, queues(want), want.Off); err != nil {
			return err
		}
	}
	if e.device == nil {
		e.device, err = openDevice(e.dev, queues(want), want.Off)
	} else if want.Off != e.want.Off {
		// Not by opening it anew: a device without queues has no carrier, and drops packets until the kernel has taken
		// notice that it has one again.
		err = e.device.offload(want.Off)
	}
	return err
}

// start starts the workers.
func (e *engine) start() error {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	e.stop = stop
	n := len(e.device.queues)
	// A worker that sleeps in poll still counts as running for the scheduler until it is found out, which
	// takes up to 10 ms; with a slot for each nobody waits for that.
	if slots := runtime.NumCPU() + n; runtime.GOMAXPROCS(0) < slots {
		runtime.GOMAXPROCS(slots)
	}
	e.workers = int32(n)
	e.running.Store(e.workers)
	finder := &pathFinder{sockets: e.sockets.finder}
	for i, queue := range e.device.queues {
		pair := e.sockets.all[i]
		s := &sender{
			queue: queue, sockets: pair, path: finder, table: &e.table, count: &e.count,
			icmp: errorWriter{queue: queue, from: e.want.Addr, count: &e.count}, batch: 1, log: e.log.Warn,
		}
		if e.sockets.segment {
			s.batch = maxSegments
		}
		var rs []*receiver
		for _, f := range family.All() {
			if fd := pair.Of(f); fd >= 0 {
				rs = append(rs, &receiver{
					socket: fd, queue: queue, v6: f == family.V6, table: &e.table, count: &e.count,
					tcp: e.device.tso, udp: e.uso(), any: e.want.Off.SourceCheck,
				})
			}
		}
		e.work(newWorker(stop, s, rs...).run)
	}
	e.log.Info("tunnel runs", "dev", e.dev, "port", e.want.Port, "local", e.want.Local, "queues", len(e.device.queues), "use", e.uses())
	return nil
}

// work runs f on a thread of its own, which ends with it.
func (e *engine) work(f func() bool) {
	e.wg.Go(func() {
		runtime.LockOSThread()
		hurry()
		defer e.running.Add(-1)
		if !f() {
			e.log.Error("device or socket of the tunnel is gone", "dev", e.dev)
		}
	})
}

// hurry asks the scheduler for short waits rather than long turns. A worker stands for what the kernel does at
// once in a softirq; where CPUs are busy its share is as good, but every wait is part of each packet's way.
func hurry() {
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil || a.Policy != unix.SCHED_NORMAL {
		return // the operator has chosen another policy
	}
	a.Nice = min(a.Nice, -10)
	a.Runtime = 100_000            // ns: the shortest turn (Linux 6.12)
	_ = unix.SchedSetAttr(0, a, 0) // without the right to it: as it was
}

// halt ends the workers. Device and sockets stay open and go on queueing.
func (e *engine) halt() {
	if e.stop < 0 {
		return
	}
	var one [8]byte
	native.PutUint64(one[:], 1)
	_, _ = unix.Write(e.stop, one[:]) // cannot fail: the counter is 0
	e.wg.Wait()
	_ = unix.Close(e.stop)
	e.stop, e.workers = -1, 0
}

// close ends the workers and lets go of everything. The device stays, with what hangs on it.
func (e *engine) close() {
	e.halt()
	if e.device != nil {
		e.device.close()
		e.device = nil
	}
	if e.sockets != nil {
		e.sockets.close()
		e.sockets = nil
	}
}

// uso says whether UDP is joined for the device. The kernel cuts what it is given there as it does for UDP_SEGMENT.
func (e *engine) uso() bool { return e.device.uso && e.sockets.cuts }

// uses names the offloads in use.
func (e *engine) uses() []string {
	var use []string
	for _, o := range []struct {
		name string
		on   bool
	}{
		{"checksum", e.device.sum}, {"tso", e.device.tso}, {"uso", e.uso()},
		{"udp_segment", e.sockets.segment}, {"udp_gro", e.sockets.gro},
	} {
		if o.on {
			use = append(use, o.name)
		}
	}
	return use
}

func (e *engine) stats(s *Stats) {
	c := &e.count
	*s = Stats{
		Dev: e.dev, Drops: map[string]uint64{}, Reads: c.reads.Load(), Sends: c.sends.Load(),
		Receives: c.receives.Load(), Writes: c.writes.Load(), ICMP: c.icmp.Load(),
	}
	for d := range drops {
		s.Drops[d.String()] = c.drops[d].Load()
	}
	if e.device != nil && e.sockets != nil {
		s.Use = e.uses()
	}
	t := e.table.Load()
	if t == nil {
		return
	}
	for _, p := range t.sorted() {
		ps := PeerStats{
			Addr: p.addr, TxPackets: p.tx.packets.Load(), TxBytes: p.tx.bytes.Load(),
			RxPackets: p.rx.packets.Load(), RxBytes: p.rx.bytes.Load(), Spoofed: p.spoof.Load(),
		}
		if l := p.limit.Load(); l < noLimit {
			ps.MaxPacket = int(l)
		}
		s.Peers = append(s.Peers, ps)
	}
}
