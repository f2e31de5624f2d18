package agent

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/leasetest"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/plan"
	"github.com/weftnet/weft/internal/state"
)

const portConfig = `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":4789}}`

const (
	oldKey lease.Key = "vxlan/1/8472"
	newKey lease.Key = "vxlan/1/4789"
)

// fakeProber says of ways what a test has it say.
type fakeProber struct {
	mu     sync.Mutex // guards what follows
	probes []plan.Probe
	say    func(plan.WayID) plan.Health
}

func (p *fakeProber) Set(probes []plan.Probe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.probes = slices.Clone(probes)
}

func (p *fakeProber) Health() (map[plan.WayID]plan.Health, map[plan.WayID]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := map[plan.WayID]plan.Health{}
	for _, t := range p.probes {
		m[t.WayID] = p.say(t.WayID)
	}
	return m, nil
}

func (p *fakeProber) Stats() (sent, answered uint64) { return 0, 0 }

// Run tells of news every 100 ms, where there are any.
func (p *fakeProber) Run(ctx context.Context, changed func()) error {
	var last map[plan.WayID]plan.Health
	for {
		if h, _ := p.Health(); !maps.Equal(h, last) {
			last = h
			changed()
		}
		if rest(ctx, 100*time.Millisecond) != nil {
			return nil
		}
	}
}

func all(h plan.Health) func(plan.WayID) plan.Health {
	return func(plan.WayID) plan.Health { return h }
}

// keyed returns a peer that receives on keys of VNI 1 and sends on them.
func keyed(n byte, keys ...lease.Key) lease.Lease {
	l := peer(n)
	data := l.Receive[0].Data
	l.Receive = nil
	for _, k := range keys {
		l.Receive = append(l.Receive, lease.Receiver{Key: k, Type: "vxlan", Data: data})
	}
	l.Send = keys
	return l
}

func (r *rig) way(t *testing.T, n byte) lease.Key {
	t.Helper()
	for _, p := range r.Status().Paths {
		if p.Subnet == peer(n).Subnet.V4 && p.Way != nil {
			return p.Way.Key
		}
	}
	return ""
}

// onTheNewWay is a node that has come to reach one peer by a new way, and another one by the old way only, and that
// has stopped.
func onTheNewWay(t *testing.T, dir string, mem *leasetest.Memory) {
	t.Helper()
	mem.SetConfig([]byte(vxlanConfig))
	mem.Put(keyed(200, newKey, oldKey))
	mem.Put(keyed(201, oldKey))
	r := newRig(t, dir, mem)
	r.parts.Prober = &fakeProber{say: all(plan.Good)}
	stop := r.start(t)
	settle(5 * time.Second)
	mem.SetConfig([]byte(portConfig))
	settle(20 * time.Second)
	if k := r.way(t, 200); k != newKey {
		t.Fatalf("on %s\n%s", k, r.log)
	}
	stop()
}

// slowLeases is a store that tells its leases late, slowLease one that gives this node's late.
type (
	slowLeases struct{ lease.Store }
	slowLease  struct{ lease.Store }
)

func (s slowLeases) Watch(ctx context.Context, f func([]lease.Lease)) error {
	if err := rest(ctx, time.Second); err != nil {
		return err
	}
	return s.Store.Watch(ctx, f)
}

func (s slowLease) Acquire(ctx context.Context, self lease.Self) (lease.Lease, error) {
	if err := rest(ctx, time.Second); err != nil {
		return lease.Lease{}, err
	}
	return s.Store.Acquire(ctx, self)
}

// A restart does not move peers, whatever the store tells first.
func TestAWayInUseOutlivesARestart(t *testing.T) {
	for name, slow := range map[string]func(lease.Store) lease.Store{
		"the peers come late":  func(s lease.Store) lease.Store { return slowLeases{s} },
		"the lease comes late": func(s lease.Store) lease.Store { return slowLease{s} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir, mem := t.TempDir(), leasetest.NewMemory()
				onTheNewWay(t, dir, mem)
				r := newRig(t, dir, mem)
				r.parts.Store, r.parts.Prober = slow(r.parts.Store), &fakeProber{say: all(plan.Unknown)}
				defer r.start(t)()
				settle(5 * time.Second)
				if k := r.way(t, 200); k != newKey {
					t.Errorf("on %s\n%s", k, r.log)
				}
				for _, p := range r.Status().Paths {
					if p.Way != nil && p.Since.Before(r.made) {
						t.Errorf("%s: since %s", p.Subnet, p.Since)
					}
				}
			})
		})
	}
}

// A way that breaks while agents are away is left too: both ends may have to try another one before any probe comes
// back, since answers take the way that the peer uses.
func TestAWayThatBreaksDuringARestartIsLeft(t *testing.T) {
	for name, slow := range map[string]func(lease.Store) lease.Store{
		"the peers come late":  func(s lease.Store) lease.Store { return slowLeases{s} },
		"the lease comes late": func(s lease.Store) lease.Store { return slowLease{s} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir, mem := t.TempDir(), leasetest.NewMemory()
				onTheNewWay(t, dir, mem)
				r := newRig(t, dir, mem)
				r.parts.Store, r.parts.Prober = slow(r.parts.Store), &fakeProber{say: func(id plan.WayID) plan.Health {
					if id.Key == oldKey {
						return plan.Try
					}
					return plan.Dead
				}}
				defer r.start(t)()
				settle(5 * time.Second)
				if k := r.way(t, 200); k != oldKey {
					t.Errorf("on %s\n%s", k, r.log)
				}
			})
		})
	}
}

// The snapshot knows another backend than the store, which tells of its configuration last.
func TestALateConfigurationIsFollowed(t *testing.T) {
	for name, config := range map[string]string{
		"another network": `{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan"}}`,
		"alloc":           `{"Network":"10.244.0.0/16","Backend":{"Type":"alloc"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir, mem := t.TempDir(), leasetest.NewMemory()
				mem.SetConfig([]byte(vxlanConfig))
				first := newRig(t, dir, mem)
				stop := first.start(t)
				settle(10 * time.Second)
				stop()

				mem.SetConfig([]byte(config))
				second := newRig(t, dir, mem)
				second.parts.Store = lateConfig{second.parts.Store}
				defer second.start(t)()
				settle(5 * time.Second)
				if st := second.Status(); !st.Ready || st.Snapshot != nil {
					t.Fatalf("status %+v\n%s", st, second.log)
				}
				settle(10 * time.Minute)
				want, _, err := netconf.Parse([]byte(config), netconf.Etcd)
				if err != nil {
					t.Fatal(err)
				}
				if st := second.Status(); *second.inputs().config != want || !st.Ready {
					t.Errorf("in force: %+v, status %+v\n%s", *second.inputs().config, st, second.log)
				}
			})
		})
	}
}

// lateConfig is a store that tells of its configuration after everything else.
type lateConfig struct{ lease.Store }

func (s lateConfig) WatchConfig(ctx context.Context, f func([]byte)) error {
	if err := rest(ctx, time.Minute); err != nil {
		return err
	}
	return s.Store.WatchConfig(ctx, f)
}

// A slow store answers a second after it has written, and keeps all that was written.
type slowStore struct {
	lease.Store
	wrote *[]lease.Self
}

func (s slowStore) Acquire(ctx context.Context, self lease.Self) (lease.Lease, error) {
	l, err := s.Store.Acquire(ctx, self)
	*s.wrote = append(*s.wrote, self)
	if err := rest(ctx, time.Second); err != nil {
		return lease.Lease{}, err
	}
	return l, err
}

// Who sees a serial number has seen all that was published before it: no two publications have the same one, not even
// where a change is taken back while the store is about to answer.
func TestWhatIsPublishedIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		mem.Put(keyed(200, newKey, oldKey))
		r := newRig(t, t.TempDir(), mem)
		var wrote []lease.Self
		r.parts.Store = slowStore{r.parts.Store, &wrote}
		defer r.start(t)()
		settle(20 * time.Second)
		for _, config := range []string{portConfig, vxlanConfig, portConfig, vxlanConfig} {
			mem.SetConfig([]byte(config))
			settle(300 * time.Millisecond)
		}
		settle(30 * time.Second)
		for i, w := range wrote[1:] {
			before := wrote[i]
			same := slices.Equal(before.Receive, w.Receive) && slices.Equal(before.Send, w.Send)
			if w.Serial < before.Serial || w.Serial == before.Serial && !same {
				t.Errorf("%d was published as %v, and then %d as %v", before.Serial, before.Send, w.Serial, w.Send)
			}
		}
		if len(wrote) < 3 {
			t.Errorf("published %d times only", len(wrote))
		}
	})
}

// A lateStore tells everything after a while, another one each time.
type lateStore struct {
	lease.Store
	late func() time.Duration
}

func (s lateStore) WatchConfig(ctx context.Context, f func([]byte)) error {
	return s.Store.WatchConfig(ctx, func(raw []byte) {
		if rest(ctx, s.late()) == nil {
			f(raw)
		}
	})
}

func (s lateStore) Watch(ctx context.Context, f func([]lease.Lease)) error {
	return s.Store.Watch(ctx, func(ls []lease.Lease) {
		if rest(ctx, s.late()) == nil {
			f(ls)
		}
	})
}

func (s lateStore) Acquire(ctx context.Context, self lease.Self) (lease.Lease, error) {
	if err := rest(ctx, s.late()); err != nil {
		return lease.Lease{}, err
	}
	l, err := s.Store.Acquire(ctx, self)
	if late := rest(ctx, s.late()); late != nil {
		return lease.Lease{}, late
	}
	return l, err
}

// Agents come to rest after any changes, restarts and delays, with no pass that nobody asked for: each has let go of all
// that the last configuration does not select, and reaches all others by what it prefers.
func TestAChangeNeedsNoResync(t *testing.T) {
	configs := map[string][]lease.Key{
		`{"Type":"vxlan"}`:                      {"vxlan/1/8472"},
		`{"Type":"vxlan","DirectRouting":true}`: {"host-gw", "vxlan/1/8472"},
		`{"Type":"vxlan","Port":4789}`:          {"vxlan/1/4789"},
		`{"Type":"vxlan","VNI":2}`:              {"vxlan/2/8472"},
		`{"Type":"vxlan","GBP":true}`:           {"vxlan/1/8472/gbp"},
		`{"Type":"host-gw"}`:                    {"host-gw"},
	}
	names := slices.Sorted(maps.Keys(configs))
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex // guards r
				r := rand.New(rand.NewPCG(seed, 0))
				draw := func(d time.Duration) time.Duration {
					mu.Lock()
					defer mu.Unlock()
					return time.Duration(r.Int64N(int64(d)))
				}
				mem, last := leasetest.NewMemory(), ""
				configure := func() {
					last = names[draw(time.Duration(len(names)))]
					mem.SetConfig(fmt.Appendf(nil, `{"Network":"10.244.0.0/16","Backend":%s}`, last))
				}
				configure()
				good := map[plan.WayID]time.Time{} // when a probe has crossed a way
				var rigs [3]*rig
				var stops [3]func()
				start := func(i int, dir string, have state.State) {
					g := newRig(t, dir, mem)
					g.opts.Identity, g.opts.Resync = fmt.Sprint(i), time.Hour
					g.host.Links[0].Addrs[0].Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, byte(i + 1)}), 24)
					g.kernel.real, g.kernel.have, g.kernel.took = true, have, draw(50*time.Millisecond)
					g.parts.Store = lateStore{g.parts.Store, func() time.Duration { return draw(300 * time.Millisecond) }}
					g.parts.Prober = &fakeProber{say: func(id plan.WayID) plan.Health {
						mu.Lock()
						defer mu.Unlock()
						if _, ok := good[id]; !ok {
							good[id] = time.Now().Add(time.Duration(r.Int64N(int64(3 * time.Second))))
						}
						if time.Now().Before(good[id]) {
							return plan.Unknown
						}
						return plan.Good
					}}
					rigs[i], stops[i] = g, g.start(t)
				}
				for i := range rigs {
					start(i, t.TempDir(), state.New())
				}
				settle(5 * time.Second)
				for range 1 + draw(5) {
					configure()
					settle(draw(15 * time.Second))
					if i := int(draw(6)); i < len(rigs) {
						stops[i]()
						start(i, rigs[i].dir, rigs[i].kernel.have)
					}
				}
				settle(time.Minute)
				for i, g := range rigs {
					st := g.Status()
					receive, want := keysOf(st.Lease.Receive), slices.Sorted(slices.Values(configs[last]))
					slices.Sort(receive)
					if !st.Ready || !slices.Equal(receive, want) || !slices.Equal(st.Lease.Send, configs[last]) || len(st.Paths) != 2 {
						t.Errorf("%d: with %s receives on %v, sends on %v, %d peers\n%s", i, last, receive, st.Lease.Send, len(st.Paths), g.log)
					}
					for _, p := range st.Paths {
						if p.Way == nil || p.Way.Key != configs[last][0] {
							t.Errorf("%d: %+v\n%s", i, p, g.log)
						}
					}
				}
				for _, stop := range stops {
					stop()
				}
			})
		})
	}
}
