// Package udptun is the data plane of the udp backend: IP packets of pods, bare in UDP datagrams, between
// a TUN device and sockets.
//
//	pod ─► route "network dev flannel0" ─► TUN ─► sender ─► UDP ─► wire
//	wire ─► UDP ─► receiver ─► TUN ─► route to the bridge ─► pod
//
// A datagram holds one packet and nothing else. Each end takes one off its TTL. The port is the same
// everywhere, source and destination alike.
//
// Speed comes from staying big: the kernel hands over TCP and UDP in packets of up to 64 KiB with unfinished
// checksums (virtio-net headers, TSO, USO). The sender cuts them into packets of the right size, side by side,
// and sends them with one call (UDP_SEGMENT). The receiver gets them back with one call (UDP_GRO), checks
// them and joins them into one packet of up to 64 KiB for the device. A packet is touched once for its
// checksum on each side. Every offload has a switch, is probed when the tunnel starts, and is not relied
// on: without any of them each packet travels alone.
//
// What is carried as it is: ECN and DSCP bits, IP options, fragments. The outer header has neither DSCP nor
// ECN. Multicast and broadcast are counted and dropped.
package udptun

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftnet/weft/internal/state"
)

// A Tunnel keeps the data planes of one agent. Its methods may be called from several goroutines.
type Tunnel struct {
	log  *slog.Logger
	file string

	mu      sync.Mutex // guards what follows
	engines map[string]*engine
	saving  *time.Timer // nil: what is on disk is up to date
	closed  bool
}

// New returns a Tunnel without any data plane. File is where it remembers what it does, so that a later
// process can go on at once; empty: nowhere.
func New(file string, log *slog.Logger) *Tunnel {
	return &Tunnel{log: log, file: file, engines: map[string]*engine{}}
}

// Plan returns what Apply would change.
func (t *Tunnel) Plan(want state.State, complete bool) []state.Change {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.plan(t.completed(want, complete))
}

// Apply makes the data planes as want says, in the calling thread's network namespace. The table of peers
// is replaced in one step while packets flow; device and sockets are opened anew only if their
// parameters differ, or if they are gone. What want does not name is closed; its device stays for the
// kernel layer to remove. While complete is false the peers in want may not be all: nothing is taken away.
func (t *Tunnel) Apply(want state.State, complete bool) ([]state.Change, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, errors.New("tunnel is closed")
	}
	want = t.completed(want, complete)
	changes := t.plan(want)
	var errs []error
	for dev, e := range t.engines {
		if _, ok := want.Tunnels[dev]; !ok {
			e.close()
			delete(t.engines, dev)
		}
	}
	peers := peersOf(want)
	for _, dev := range slices.Sorted(maps.Keys(want.Tunnels)) {
		e, ok := t.engines[dev]
		if !ok {
			e = newEngine(dev, t.log)
			t.engines[dev] = e
		}
		if err := e.apply(want.Tunnels[dev], peers[dev]); err != nil {
			errs = append(errs, fmt.Errorf("tunnel %s: %w", dev, err))
		}
	}
	if len(changes) > 0 {
		t.save()
	}
	return changes, errors.Join(errs...)
}

// completed returns want, with what runs and is not in want added unless want is complete.
func (t *Tunnel) completed(want state.State, complete bool) state.State {
	if complete {
		return want
	}
	want.Tunnels, want.TunnelPeers = maps.Clone(want.Tunnels), maps.Clone(want.TunnelPeers)
	for dev, e := range t.engines {
		if _, ok := want.Tunnels[dev]; !ok && e.want.Port != 0 {
			want.Tunnels[dev] = e.want
		}
		tab := e.table.Load()
		if tab == nil {
			continue
		}
		for subnet, a := range tab.want {
			if k := (state.TunnelKey{Dev: dev, Subnet: subnet}); !want.TunnelPeers[k].IsValid() {
				want.TunnelPeers[k] = a
			}
		}
	}
	return want
}

func peersOf(s state.State) map[string]map[netip.Prefix]netip.Addr {
	m := map[string]map[netip.Prefix]netip.Addr{}
	for k, a := range s.TunnelPeers {
		if m[k.Dev] == nil {
			m[k.Dev] = map[netip.Prefix]netip.Addr{}
		}
		m[k.Dev][k.Subnet] = a
	}
	return m
}

// Close stops carrying packets. Devices stay, with addresses and routes, for the next process.
func (t *Tunnel) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	if t.saving != nil {
		t.saving.Stop() // a timer that has run out waits for the lock, and finds it closed
		err = t.write()
	}
	for _, e := range t.engines {
		e.close()
	}
	t.closed = true
	return err
}

// Stats returns what has been carried and dropped so far, per device.
func (t *Tunnel) Stats() []Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []Stats
	for _, dev := range slices.Sorted(maps.Keys(t.engines)) {
		var s Stats
		t.engines[dev].stats(&s)
		all = append(all, s)
	}
	return all
}

// A name is a device's, with an order.
type name string

// Compare implements what state.Diff asks for.
func (a name) Compare(b name) int { return strings.Compare(string(a), string(b)) }

// plan compares what runs with what is wanted.
func (t *Tunnel) plan(want state.State) []state.Change {
	tunnels, peers := map[name]state.Tunnel{}, map[state.TunnelKey]netip.Addr{}
	for dev, e := range t.engines {
		if e.healthy() {
			tunnels[name(dev)] = e.want
		}
		if tab := e.table.Load(); tab != nil {
			for subnet, a := range tab.want {
				peers[state.TunnelKey{Dev: dev, Subnet: subnet}] = a
			}
		}
	}
	wanted := map[name]state.Tunnel{}
	for dev, w := range want.Tunnels {
		wanted[name(dev)] = w
	}
	set, del := state.Diff(tunnels, wanted)
	changes := describeAll("tunnel", set, del, tunnels, wanted)
	toSet, toDel := state.Diff(peers, want.TunnelPeers)
	return append(changes, describeAll("peer", toSet, toDel, peers, want.TunnelPeers)...)
}

// describeAll turns a difference into changes.
func describeAll[K comparable, V any](kind string, set, del []K, have, want map[K]V) []state.Change {
	var changes []state.Change
	for _, k := range set {
		c := state.Change{Op: state.Add, Kind: kind, Object: fmt.Sprint(k), Want: fmt.Sprint(want[k])}
		if h, ok := have[k]; ok {
			c.Op, c.Have = state.Modify, fmt.Sprint(h)
		}
		changes = append(changes, c)
	}
	for _, k := range del {
		changes = append(changes, state.Change{Op: state.Remove, Kind: kind, Object: fmt.Sprint(k), Have: fmt.Sprint(have[k])})
	}
	return changes
}
