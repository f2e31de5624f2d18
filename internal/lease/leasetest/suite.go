package leasetest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
)

// A Backing is a store under test as the suite sees it: it opens it for nodes and meddles with it as
// peers, operators and accidents do.
type Backing interface {
	Open(t *testing.T) lease.Store
	SetConfig(t *testing.T, raw string)
	DeleteConfig(t *testing.T)
	Put(t *testing.T, l lease.Lease, reserved bool) // as someone else writes it
	Delete(t *testing.T, l lease.Lease)
	Reserved(t *testing.T, l lease.Lease) bool // it never expires
	Corrupt(t *testing.T)                      // adds entries that do not parse

	// Blackout cuts all nodes off while during runs, and makes them lose what happened meanwhile.
	Blackout(t *testing.T, during func())

	// SetBack takes back what lost does, as whoever puts a backup in the store's place does. Nobody is connected
	// then, and before anybody is again after runs, which may bring the store as far as it was.
	SetBack(t *testing.T, lost, after func())
}

// An Assigned is a Backing of a store that does not choose subnets: somebody else hands them out, one for
// each node, for good. Then a node's claim stands beside its subnet and is nobody else's to take, so there
// is nothing to choose, to reserve or to fight over; and a call may be answered from what is known already.
type Assigned interface {
	Backing
	Assigned()
}

func assigned(b Backing) bool {
	_, ok := b.(Assigned)
	return ok
}

const patience = time.Minute

// Run runs the suite; open returns an empty store.
func Run(t *testing.T, open func(t *testing.T) Backing) {
	for _, c := range []struct {
		name  string
		f     func(t *testing.T, b Backing)
		claim bool // about stores in which nodes claim subnets themselves
	}{
		{"a node gets a subnet, and everyone sees it with its attributes", testAcquire, false},
		{"many nodes at once never get the same subnet", testCollision, false},
		{"many dual-stack nodes at once never overlap in either family", testCollisionDual, false},
		{"a full network is ErrFull", testFull, true},
		{"a node that lacks an address is refused at once", testIncomplete, false},
		{"a restart keeps the subnet", testRestart, false},
		{"a subnet held before is taken again where it is free and fits", testPrior, true},
		{"changed attributes are published under the same subnet", testRepublish, false},
		{"a changed public address keeps the subnet while the process runs", testRenumber, false},
		{"turning IPv6 on and off keeps the IPv4 subnet", testFamilies, false},
		{"a network without IPv4 works", testIPv6Only, false},
		{"a reservation stays one and keeps others off", testReservation, true},
		{"a deleted lease is ErrLost, and the same subnet is had again", testLost, false},
		{"a lease that another node took over is ErrLost", testTakenOver, true},
		{"attributes that someone else changed are written back", testWriteBack, false},
		{"a second live node with one public address is refused, a successor is not", testSecondNode, true},
		{"what changed during a blackout is seen afterwards", testBlackout, false},
		{"what a store that is set back to a backup has not is gone, and what came since is seen", testSetBack, false},
		{"hostile entries cost nobody else anything", testHostile, false},
		{"the configuration is waited for, followed, and kept when deleted", testConfig, false},
		{"a lease is recalled without changing it", testRecall, false},
		{"calls that wait end with their context", testContext, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := open(t)
			if c.claim && assigned(b) {
				t.Skip("subnets are assigned here")
			}
			c.f(t, b)
		})
	}
}

// Networks returns a small network of each family: three subnets of IPv4, fifteen of IPv6.
func Networks() family.Pair[lease.Network] {
	return family.Pair[lease.Network]{
		V4: lease.Network{
			Prefix: netip.MustParsePrefix("10.5.0.0/22"), SubnetLen: 24,
			Min: netip.MustParseAddr("10.5.1.0"), Max: netip.MustParseAddr("10.5.3.0"),
		},
		V6: lease.Network{
			Prefix: netip.MustParsePrefix("fd05::/60"), SubnetLen: 64,
			Min: netip.MustParseAddr("fd05:0:0:1::"), Max: netip.MustParseAddr("fd05:0:0:f::"),
		},
	}
}

// Self returns node n of a cluster that uses the given families of Networks.
func Self(n int, families ...family.Family) lease.Self {
	s := lease.Self{
		ID:      fmt.Sprintf("node-%d", n),
		Receive: []lease.Receiver{{Type: "vxlan", Data: family.Pair[string]{V4: fmt.Sprintf(`{"VNI":1,"VtepMAC":"0e:00:00:00:00:%02x"}`, n)}}},
	}
	networks := Networks()
	for _, f := range families {
		*s.Network.Ref(f) = networks.Of(f)
		*s.Public.Ref(f) = public(f, n)
		if f == family.V6 {
			s.Receive[0].Data.V6 = fmt.Sprintf(`{"VNI":1,"VtepMAC":"0e:00:00:00:01:%02x"}`, n)
		}
	}
	return s
}

func public(f family.Family, n int) netip.Addr {
	if f == family.V4 {
		return netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})
	}
	return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", n))
}

func acquire(t *testing.T, s lease.Store, self lease.Self) lease.Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l, err := s.Acquire(ctx, self)
	if err != nil {
		t.Fatalf("acquire for %s: %v", self.ID, err)
	}
	if !lease.Fits(self.Network, l.Subnet) {
		t.Fatalf("acquire for %s: %v does not fit", self.ID, l.Subnet)
	}
	return l
}

// hold holds l in the background. The channel returned gets what Hold returns; stop ends it before.
func hold(t *testing.T, s lease.Store, self lease.Self, l lease.Lease) (ended chan error, stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		ended <- s.Hold(ctx, self, l)
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return ended, stop
}

// A viewer keeps the set that Watch handed over last.
type viewer struct {
	mu   sync.Mutex
	sets int
	last []lease.Lease
}

// watch watches s until the test ends.
func watch(t *testing.T, s lease.Store) *viewer {
	v := &viewer{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Watch(ctx, func(set []lease.Lease) {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.sets, v.last = v.sets+1, set
			if !slices.IsSortedFunc(set, lease.Compare) {
				t.Errorf("set is not in order: %v", set)
			}
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return v
}

// see waits until the set is want.
func (v *viewer) see(t *testing.T, want ...lease.Lease) {
	t.Helper()
	want = slices.Clone(want)
	for i := range want {
		want[i].Node = ""
	}
	slices.SortFunc(want, lease.Compare)
	var diff string
	eventually(t, func() bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		got := slices.Clone(v.last)
		for i := range got {
			got[i].Node = ""
		}
		diff = cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }))
		return v.sets > 0 && (diff == "" || len(want) == 0 && len(got) == 0)
	}, func() string { return "watched set (-want +got):\n" + diff })
}

// eventually waits until ok is true.
func eventually(t *testing.T, ok func() bool, why func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, why())
		}
		<-tick.C
	}
}

// returns waits for err from ended and checks it.
func returns(t *testing.T, ended chan error, want error) {
	t.Helper()
	select {
	case err := <-ended:
		if !errors.Is(err, want) {
			t.Fatalf("got %v, want %v", err, want)
		}
	case <-time.After(patience):
		t.Fatalf("nothing returned within %s, want %v", patience, want)
	}
}
