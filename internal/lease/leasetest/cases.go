package leasetest

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
)

func testAcquire(t *testing.T, b Backing) {
	seen := watch(t, b.Open(t))
	seen.see(t) // the empty set is a complete one
	l := acquire(t, b.Open(t), Self(1, family.V4))
	if l.Public.V4 != public(family.V4, 1) || l.Has(family.V6) {
		t.Errorf("got %+v", l)
	}
	seen.see(t, l)
	seen.see(t, l, acquire(t, b.Open(t), Self(2, family.V4)))
}

// race acquires leases for nodes 1 to n at once.
func race(t *testing.T, b Backing, n int, families ...family.Family) []lease.Lease {
	t.Helper()
	var wg sync.WaitGroup
	got := make([]lease.Lease, n)
	for i := range n {
		s := b.Open(t)
		wg.Go(func() {
			l, err := s.Acquire(t.Context(), Self(i+1, families...))
			if err != nil {
				t.Errorf("node %d: %v", i+1, err)
			}
			got[i] = l
		})
	}
	wg.Wait()
	for i, a := range got {
		for j, o := range got[:i] {
			for _, f := range families {
				if a.Has(f) && o.Has(f) && a.Subnet.Of(f).Overlaps(o.Subnet.Of(f)) {
					t.Errorf("nodes %d and %d: %v overlaps %v", i+1, j+1, a.Subnet, o.Subnet)
				}
			}
		}
	}
	return got
}

func testCollision(t *testing.T, b Backing) { race(t, b, 3, family.V4) } // as many as there are subnets

func testCollisionDual(t *testing.T, b Backing) {
	seen := watch(t, b.Open(t))
	seen.see(t, race(t, b, 3, family.V4, family.V6)...)
}

func testFull(t *testing.T, b Backing) {
	race(t, b, 3, family.V4)
	if _, err := b.Open(t).Acquire(t.Context(), Self(4, family.V4)); !errors.Is(err, lease.ErrFull) {
		t.Errorf("got %v, want ErrFull", err)
	}
}

func testIncomplete(t *testing.T, b Backing) {
	self := Self(1, family.V4, family.V6)
	self.Public.V6 = netip.Addr{}
	if l, err := b.Open(t).Acquire(t.Context(), self); err == nil {
		t.Errorf("got %+v, want an error", l)
	}
}

func testRestart(t *testing.T, b Backing) {
	for range 3 {
		race(t, b, 3, family.V4)
	}
	first := acquire(t, b.Open(t), Self(2, family.V4))
	if again := acquire(t, b.Open(t), Self(2, family.V4)); !again.Equal(first) {
		t.Errorf("got %+v after a restart, %+v before", again, first)
	}
}

func testPrior(t *testing.T, b Backing) {
	self := Self(1, family.V4)
	self.Prior.V4 = netip.MustParsePrefix("10.5.2.0/24")
	if l := acquire(t, b.Open(t), self); l.Subnet.V4 != self.Prior.V4 {
		t.Errorf("free prior subnet %s: got %s", self.Prior.V4, l.Subnet.V4)
	}
	other := Self(2, family.V4)
	other.Prior.V4 = self.Prior.V4
	if l := acquire(t, b.Open(t), other); l.Subnet.V4 == other.Prior.V4 {
		t.Errorf("prior subnet %s has another node: got it all the same", other.Prior.V4)
	}
	third := Self(3, family.V4)
	third.Prior.V4 = netip.MustParsePrefix("10.9.0.0/24")
	acquire(t, b.Open(t), third) // which checks that the subnet fits
}

func testRepublish(t *testing.T, b Backing) {
	s, seen := b.Open(t), watch(t, b.Open(t))
	self := Self(1, family.V4)
	l := acquire(t, s, self)
	ended, _ := hold(t, s, self, l)
	seen.see(t, l)
	for n := 2; n < 5; n++ {
		self.Receive = Self(n, family.V4).Receive
		again := acquire(t, s, self)
		if !again.SameSubnets(l) {
			t.Fatalf("got %v, want %v", again.Subnet, l.Subnet)
		}
		seen.see(t, again)
	}
	self.Receive = append(self.Receive, lease.Receiver{Key: "host-gw", Type: "host-gw"}, lease.Receiver{Key: "w", Type: "wireguard", Data: family.Pair[string]{V4: `{"PublicKey":"AAA+/=","Port":51820}`}})
	self.Receive[0].Key, self.Send = "vxlan/1/8472", []lease.Key{"host-gw", "vxlan/1/8472"}
	more := acquire(t, s, self)
	if !slices.Equal(more.Receive, self.Receive) || !slices.Equal(more.Send, self.Send) {
		t.Errorf("got %v, want %v", more.Receive, self.Receive)
	}
	seen.see(t, more)
	select {
	case err := <-ended:
		t.Errorf("Hold ended: %v", err)
	default:
	}
}

func testRenumber(t *testing.T, b Backing) {
	s, seen := b.Open(t), watch(t, b.Open(t))
	self := Self(1, family.V4)
	race(t, b, 2, family.V4)
	l := acquire(t, s, self)
	_, stop := hold(t, s, self, l)
	self.Public.V4 = public(family.V4, 9)
	again := acquire(t, s, self)
	stop()
	if again.Subnet != l.Subnet || again.Public != self.Public {
		t.Errorf("got %+v, had %+v", again, l)
	}
	seen.see(t, again, acquire(t, b.Open(t), Self(2, family.V4)))
}

func testFamilies(t *testing.T, b Backing) {
	seen := watch(t, b.Open(t))
	single, dual := Self(1, family.V4), Self(1, family.V4, family.V6)
	other := acquire(t, b.Open(t), Self(2, family.V4, family.V6))
	first := acquire(t, b.Open(t), single)
	both := acquire(t, b.Open(t), dual)
	if both.Subnet.V4 != first.Subnet.V4 || !both.Has(family.V6) {
		t.Errorf("IPv6 turned on: got %v, had %v", both.Subnet, first.Subnet)
	}
	seen.see(t, both, other)
	back := acquire(t, b.Open(t), single)
	if back.Subnet != first.Subnet {
		t.Errorf("IPv6 turned off: got %v, had %v", back.Subnet, first.Subnet)
	}
	seen.see(t, back, other)
}

func testIPv6Only(t *testing.T, b Backing) {
	seen := watch(t, b.Open(t))
	leases := race(t, b, 3, family.V6)
	seen.see(t, leases...)
	s, self := b.Open(t), Self(1, family.V6)
	if again := acquire(t, s, self); again.Subnet != leases[0].Subnet {
		t.Errorf("got %v after a restart, had %v", again.Subnet, leases[0].Subnet)
	}
	ended, _ := hold(t, s, self, leases[0])
	b.Delete(t, leases[0])
	returns(t, ended, lease.ErrLost)
	seen.see(t, leases[1:]...)
}

func testReservation(t *testing.T, b Backing) {
	s, seen := b.Open(t), watch(t, b.Open(t))
	self := Self(1, family.V4)
	reserved := lease.Lease{Subnet: family.Pair[netip.Prefix]{V4: netip.MustParsePrefix("10.5.3.0/24")}, Public: self.Public, Receive: []lease.Receiver{{}}}
	b.Put(t, reserved, true)
	for n := 2; n < 4; n++ {
		if l := acquire(t, b.Open(t), Self(n, family.V4)); l.Subnet == reserved.Subnet {
			t.Errorf("node %d got the reserved subnet", n)
		}
	}
	l := acquire(t, s, self)
	if l.Subnet != reserved.Subnet {
		t.Errorf("got %v, want the reserved %v", l.Subnet, reserved.Subnet)
	}
	if !b.Reserved(t, l) {
		t.Error("the reservation became a lease at start")
	}
	hold(t, s, self, l)
	b.Put(t, reserved, true) // with attributes that are not ours
	seen.see(t, l, acquire(t, b.Open(t), Self(2, family.V4)), acquire(t, b.Open(t), Self(3, family.V4)))
	if !b.Reserved(t, l) {
		t.Error("the reservation became a lease while running")
	}
}

func testLost(t *testing.T, b Backing) {
	s := b.Open(t)
	self := Self(1, family.V4)
	l := acquire(t, s, self)
	ended, _ := hold(t, s, self, l)
	b.Delete(t, l)
	returns(t, ended, lease.ErrLost)
	self.Prior = l.Subnet
	if again := acquire(t, s, self); again.Subnet != l.Subnet {
		t.Errorf("got %v, had %v", again.Subnet, l.Subnet)
	}
}

func testTakenOver(t *testing.T, b Backing) {
	s := b.Open(t)
	self := Self(1, family.V4)
	l := acquire(t, s, self)
	ended, _ := hold(t, s, self, l)
	l.Public = Self(2, family.V4).Public
	b.Put(t, l, false)
	returns(t, ended, lease.ErrLost)
	if again := acquire(t, s, self); again.Subnet == l.Subnet {
		t.Errorf("got %v, which is another node's", again.Subnet)
	}
}

func testWriteBack(t *testing.T, b Backing) {
	s, seen := b.Open(t), watch(t, b.Open(t))
	self := Self(1, family.V4)
	l := acquire(t, s, self)
	hold(t, s, self, l)
	seen.see(t, l)
	changed := l
	changed.Receive = Self(7, family.V4).Receive
	b.Put(t, changed, false)
	watch(t, b.Open(t)).see(t, l) // which begins with what stands now: seen could be at what stood before
	seen.see(t, l)
}

func testSecondNode(t *testing.T, b Backing) {
	s := b.Open(t)
	self := Self(1, family.V4)
	l := acquire(t, s, self)
	_, stop := hold(t, s, self, l)
	acquire(t, b.Open(t), self) // the same node: a restart

	second := self
	second.ID = "another"
	_, err := b.Open(t).Acquire(t.Context(), second)
	if used := (&lease.InUseError{}); !errors.As(err, &used) || used.Public != self.Public.V4 {
		t.Errorf("a live node has the address: got %v, want InUseError", err)
	}
	stop()
	if again := acquire(t, b.Open(t), second); again.Subnet != l.Subnet {
		t.Errorf("the node was set up anew: got %v, had %v", again.Subnet, l.Subnet)
	}
}

func testBlackout(t *testing.T, b Backing) {
	seen := watch(t, b.Open(t))
	s, self := b.Open(t), Self(1, family.V4)
	mine := acquire(t, s, self)
	ended, _ := hold(t, s, self, mine)
	peers := []lease.Lease{acquire(t, b.Open(t), Self(2, family.V4)), acquire(t, b.Open(t), Self(3, family.V4))}
	seen.see(t, append(peers, mine)...)
	b.Blackout(t, func() {
		peers[0].Receive = Self(8, family.V4).Receive
		b.Put(t, peers[0], false)
		b.Delete(t, peers[1])
	})
	seen.see(t, peers[0], mine)
	b.Blackout(t, func() { b.Delete(t, mine) })
	returns(t, ended, lease.ErrLost)
	seen.see(t, peers[0])
}

// testSetBack has a store that has gone as far as before when the nodes come back, by other changes.
func testSetBack(t *testing.T, b Backing) {
	seen := watch(t, b.Open(t))
	configs := watchConfig(t, b.Open(t))
	b.SetConfig(t, "one")
	configs.see(t, "one")
	kept, peer := acquire(t, b.Open(t), Self(1, family.V4)), acquire(t, b.Open(t), Self(2, family.V4))
	s, self := b.Open(t), Self(3, family.V4)
	var ended chan error
	b.SetBack(t, func() {
		lost := acquire(t, s, self)
		ended, _ = hold(t, s, self, lost)
		changed := peer
		changed.Receive = Self(7, family.V4).Receive
		b.Put(t, changed, false)
		b.SetConfig(t, "two")
		seen.see(t, kept, changed, lost)
		configs.see(t, "two")
	}, func() {
		for n := range 20 {
			kept.Receive = Self(10+n, family.V4).Receive
			b.Put(t, kept, false)
		}
	})
	returns(t, ended, lease.ErrLost)
	seen.see(t, kept, peer)
	configs.see(t, "one")
	seen.see(t, kept, peer, acquire(t, s, self))
}

func testHostile(t *testing.T, b Backing) {
	seen := watch(t, b.Open(t))
	s, self := b.Open(t), Self(1, family.V4)
	l := acquire(t, s, self)
	ended, _ := hold(t, s, self, l)
	seen.see(t, l)
	b.Corrupt(t)
	peer := acquire(t, b.Open(t), Self(2, family.V4))
	seen.see(t, l, peer)
	watch(t, b.Open(t)).see(t, l, peer)
	select {
	case err := <-ended:
		t.Errorf("Hold ended: %v", err)
	default:
	}
}

// configs are the configurations that WatchConfig has handed over and nobody has looked at.
type configs struct {
	seen  chan string
	ended chan error
	stop  func()
}

// watchConfig watches the configuration until the test ends.
func watchConfig(t *testing.T, s lease.Store) configs {
	ctx, cancel := context.WithCancel(t.Context())
	c := configs{make(chan string, 10), make(chan error, 1), cancel}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.ended <- s.WatchConfig(ctx, func(raw []byte) { c.seen <- string(raw) })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return c
}

// see waits for the next configuration.
func (c configs) see(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-c.seen:
		if got != want {
			t.Errorf("got configuration %q, want %q", got, want)
		}
	case <-time.After(patience):
		t.Fatalf("configuration %q was not seen", want)
	}
}

func testConfig(t *testing.T, b Backing) {
	c := watchConfig(t, b.Open(t))
	b.SetConfig(t, "one")
	c.see(t, "one")
	b.SetConfig(t, "one")
	b.SetConfig(t, "two")
	c.see(t, "two")
	b.DeleteConfig(t)
	b.SetConfig(t, "three")
	c.see(t, "three")
	b.Blackout(t, func() { b.SetConfig(t, "four") })
	c.see(t, "four")
	c.stop()
	returns(t, c.ended, context.Canceled)
}

func testRecall(t *testing.T, b Backing) {
	self := Self(1, family.V4)
	if l, found, err := b.Open(t).Recall(t.Context(), self); found || err != nil {
		t.Errorf("empty store: got %+v, %t, %v", l, found, err)
	}
	want := acquire(t, b.Open(t), self)
	acquire(t, b.Open(t), Self(2, family.V4))
	self.Receive = nil
	l, found, err := b.Open(t).Recall(t.Context(), self)
	if !found || err != nil || !l.Equal(want) {
		t.Errorf("got %+v, %t, %v, want %+v", l, found, err, want)
	}
	watch(t, b.Open(t)).see(t, want, acquire(t, b.Open(t), Self(2, family.V4)))
}

func testContext(t *testing.T, b Backing) {
	s, self := b.Open(t), Self(1, family.V4)
	l := acquire(t, s, self)
	calls := map[string]func(context.Context) error{
		"Acquire":     func(ctx context.Context) error { _, err := s.Acquire(ctx, self); return err },
		"Recall":      func(ctx context.Context) error { _, _, err := s.Recall(ctx, self); return err },
		"Hold":        func(ctx context.Context) error { return s.Hold(ctx, self, l) },
		"Watch":       func(ctx context.Context) error { return s.Watch(ctx, func([]lease.Lease) {}) },
		"WatchConfig": func(ctx context.Context) error { return s.WatchConfig(ctx, func([]byte) {}) },
	}
	b.Blackout(t, func() {
		for name, call := range calls {
			if assigned(b) && (name == "Acquire" || name == "Recall") {
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			start := time.Now()
			if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: got %v, want the context's error", name, err)
			}
			if took := time.Since(start); took > 20*time.Second { // with room for a machine that is busy
				t.Errorf("%s: took %s to notice that its context had ended", name, took)
			}
			cancel()
		}
	})
}
