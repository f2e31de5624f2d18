package kernel_test

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel"
	"github.com/weftnet/weft/internal/kernel/rtnl"
	"github.com/weftnet/weft/internal/state"
)

// A witness follows the main table's routes as they change, and notes each that is in force for an address in between.
type witness struct {
	names map[int32]string
	addrs []netip.Addr
	last  netip.Prefix // the destination whose route ends a wait

	mu     sync.Mutex // guards what follows
	routes map[state.RouteKey]state.Route
	seen   map[string]bool
	marks  int
}

// witnessed returns a witness for the pods of peer 2. Devices that are made later have no name there.
func witnessed(t testing.TB) *witness {
	t.Helper()
	l, err := rtnl.Listen(unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	w := &witness{
		names: map[int32]string{}, addrs: []netip.Addr{netip.MustParseAddr("10.244.2.9"), netip.MustParseAddr("fd24:0:0:2::9")},
		last: netip.MustParsePrefix("203.0.113.0/32"), routes: map[state.RouteKey]state.Route{}, seen: map[string]bool{},
	}
	ifs, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range ifs {
		w.names[int32(i.Index)] = i.Name
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.Receive(ctx, w.event) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			t.Error(err)
		}
		_ = l.Close()
	})
	return w
}

func (w *witness) event(m rtnl.Message) {
	key, r, gone, ok := kernel.RouteEvent(m, w.names)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case key.Dst == w.last:
		w.marks++
		return
	case !gone:
		w.routes[key] = r
	case w.routes[key] == r:
		delete(w.routes, key)
	}
	for _, a := range w.addrs {
		w.seen[w.best(a)] = true
	}
}

func (w *witness) best(a netip.Addr) string {
	bits, metric, best := -1, 0, a.String()+": none"
	for key, r := range w.routes {
		if key.Dst.Contains(a) && (key.Dst.Bits() > bits || key.Dst.Bits() == bits && key.Metric < metric) {
			bits, metric, best = key.Dst.Bits(), key.Metric, a.String()+": "+r.Dev
		}
	}
	return best
}

// since returns the devices that have been in force since the last call, by address.
func (w *witness) since(t testing.TB) map[string]bool {
	t.Helper()
	w.mu.Lock()
	marks := w.marks
	w.mu.Unlock()
	sh(t, "ip route add "+w.last.String()+" dev lo")
	sh(t, "ip route del "+w.last.String()+" dev lo")
	eventually(t, "the last notification", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.marks == marks+2 })
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = map[string]bool{}
	return seen
}
