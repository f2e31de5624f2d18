package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/leasetest"
	"github.com/weftnet/weft/internal/plan"
)

const directConfig = `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`

// passesIn counts passes in a quarter of an hour at rest.
func passesIn(t *testing.T, config string) (passes int) {
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig([]byte(config))
		mem.Put(peer(200))
		r := newRig(t, t.TempDir(), mem)
		defer r.start(t)()
		settle(time.Minute)
		r.kernel.mu.Lock()
		before := r.kernel.passes
		r.kernel.mu.Unlock()
		settle(15 * time.Minute)
		r.kernel.mu.Lock()
		passes = r.kernel.passes - before
		r.kernel.mu.Unlock()
	})
	return passes
}

// A node at rest makes a pass per Resync, whatever it may send on.
func TestTwoWaysAtRestCostNoMorePassesThanOne(t *testing.T) {
	if one, two := passesIn(t, vxlanConfig), passesIn(t, directConfig); two > one+1 {
		t.Errorf("passes in 15 minutes: %d with one way, %d with two", one, two)
	}
}

// A key is let go on time also where its time ends while a pass is under way that still holds it.
func TestAKeyIsLetGoWhateverPassIsUnderWay(t *testing.T) {
	for _, early := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond, 49 * time.Millisecond} {
		t.Run(early.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				mem := leasetest.NewMemory()
				mem.SetConfig([]byte(vxlanConfig))
				r := newRig(t, t.TempDir(), mem)
				r.kernel.took = 50 * time.Millisecond
				defer r.start(t)()
				settle(5 * time.Second)
				mem.SetConfig([]byte(`{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`))
				settle(time.Until(r.made.Add(holdKey - early)))
				if send := r.Status().Lease.Send; len(send) != 2 {
					t.Fatalf("before its time: sends on %v", send)
				}
				r.Wake()
				settle(time.Second)
				if send := r.Status().Lease.Send; len(send) != 1 {
					t.Errorf("a second after its time: sends on %v", send)
				}
			})
		})
	}
}

// A key by which a peer is still reached, since the kernel has refused the route by the new one, is not let go.
func TestAKeyIsHeldUntilTheRouteHasChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		both := peer(200)
		both.Receive = []lease.Receiver{
			{Key: "vxlan/1/8472", Type: "vxlan", Data: both.Receive[0].Data},
			{Key: "vxlan/2/8472", Type: "vxlan", Data: family.Pair[string]{V4: `{"VNI":2,"VtepMAC":"02:00:00:00:00:c8"}`}},
		}
		both.Send = []lease.Key{"vxlan/2/8472"}
		mem.Put(both)
		r := newRig(t, t.TempDir(), mem)
		defer r.start(t)()
		settle(20 * time.Second)
		fail := func(err error) {
			r.kernel.mu.Lock()
			defer r.kernel.mu.Unlock()
			r.kernel.fail = err
		}
		fail(errors.New("no buffer space available"))
		mem.SetConfig([]byte(`{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`))
		settle(time.Minute)
		if send := r.Status().Lease.Send; len(send) != 2 {
			t.Errorf("while the route cannot be changed: sends on %v", send)
		}
		fail(nil)
		settle(time.Minute)
		if send := r.Status().Lease.Send; len(send) != 1 {
			t.Errorf("a minute after the route was changed: sends on %v", send)
		}
	})
}

// rangeConfig has room for one node in Network.
func rangeConfig(network, options string) []byte {
	return fmt.Appendf(nil, `{"Network":%q,%s"Backend":{"Type":"vxlan"}}`, network, options)
}

// Two networks and back: the subnets that nodes have stay theirs, whichever of the ranges they lie in.
func TestAnAdditionalNetworkIsFollowed(t *testing.T) {
	const bounds = `"SubnetMin":"10.244.1.0","SubnetMax":"10.244.1.0",`
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig(rangeConfig("10.244.0.0/16", bounds))
		first := newRig(t, t.TempDir(), mem)
		defer first.start(t)()
		settle(time.Second)
		dir := t.TempDir()
		second := newRig(t, dir, mem)
		second.opts.Identity, second.opts.Node = "fedcba9876543210", "n2"
		second.host.Links[0].Addrs[0].Prefix = netip.MustParsePrefix("10.77.0.2/24")
		stop := second.start(t)
		settle(time.Second)
		if st := second.Status(); st.Ready || !strings.Contains(strings.Join(st.Reasons, " "), "network is full") {
			t.Fatalf("ready %v, %v", st.Ready, st.Reasons)
		}

		mem.SetConfig(rangeConfig("10.244.0.0/16", bounds+`"AdditionalNetworks":["10.248.0.0/16"],`))
		settle(30 * time.Second)
		held := second.Status().Lease.Subnet
		if r := netip.MustParsePrefix("10.248.0.0/16"); !second.Status().Ready || !r.Contains(held.V4.Addr()) {
			t.Fatalf("the second node is not in %s: %+v", r, second.Status())
		}
		if got := first.Status().Lease.Subnet.V4.String(); got != "10.244.1.0/24" {
			t.Errorf("the first node has moved to %s", got)
		}
		for _, r := range []*rig{first, second} {
			env, err := os.ReadFile(r.opts.SubnetFile)
			if err != nil || !strings.HasPrefix(string(env), "FLANNEL_NETWORK=10.244.0.0/16,10.248.0.0/16\n") {
				t.Errorf("%s: subnet.env %s, %v", r.opts.Node, env, err)
			}
			if n := strings.Join(r.Status().Networks, " "); n != "10.244.0.0/16 10.248.0.0/16" || len(r.kernel.routes()) != 1 {
				t.Errorf("%s: networks %s, routes %v", r.opts.Node, n, r.kernel.routes())
			}
		}

		// Gone for a day, with subnet.env as all that is left, and the additional network is Network meanwhile.
		stop()
		mem.Expire(held)
		mem.SetConfig(rangeConfig("10.248.0.0/16", `"AdditionalNetworks":["10.244.0.0/16"],`))
		if err := os.Remove(second.opts.SnapshotFile); err != nil {
			t.Fatal(err)
		}
		second = newRig(t, dir, mem)
		second.opts.Identity, second.opts.Node = "fedcba9876543210", "n2"
		second.host.Links[0].Addrs[0].Prefix = netip.MustParsePrefix("10.77.0.2/24")
		defer second.start(t)()
		settle(10 * time.Second)
		if got := second.Status().Lease.Subnet; got != held {
			t.Errorf("the second node had %v, and has %v", held, got)
		}
		want := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("10.248.0.0/16")}
		if got := second.inputs().former; !slices.Equal(got, want) {
			t.Errorf("former networks %v, want %v", got, want)
		}
		for _, r := range []*rig{first, second} {
			if st := r.Status(); !st.Ready || len(st.Notes) != 0 || strings.Join(st.Networks, " ") != "10.248.0.0/16 10.244.0.0/16" {
				t.Errorf("%s: %+v", r.opts.Node, st)
			}
		}

		mem.SetConfig(rangeConfig("10.248.0.0/16", ""))
		settle(10 * time.Second)
		const reason = "Network: 10.248.0.0/16 does not hold all of 10.244.0.0/16"
		for _, r := range []*rig{first, second} {
			if st := r.Status(); !st.Ready || !strings.Contains(strings.Join(st.Notes, " "), reason) || len(st.Networks) != 2 {
				t.Errorf("%s: %+v", r.opts.Node, st)
			}
		}
	})
}

// What the store says that this node published comes before an older snapshot, or the original's peers, who rely on
// it, are told what was true long ago.
func TestAnOldSnapshotDoesNotGetPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, mem := t.TempDir(), leasetest.NewMemory()
		mem.SetConfig([]byte(`{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}`))
		first := newRig(t, dir, mem)
		stop := first.start(t)
		settle(10 * time.Second)
		stop()
		l := mem.Leases()[0]

		// Since then this node has changed over to vxlan, with a disk that took no snapshot or under the original,
		// and so have its peers, which run the original.
		mem.SetConfig([]byte(vxlanConfig))
		now := peer(1)
		now.Subnet, now.Public = l.Subnet, l.Public
		mem.Put(now)
		mem.Put(peer(200))

		mem.SetDown(true)
		second := newRig(t, dir, mem)
		second.parts.Store = fileConfig{second.parts.Store}
		defer second.start(t)()
		settle(5 * time.Second)
		mem.SetDown(false)
		var wrong []string
		for range 300 {
			settle(100 * time.Millisecond)
			for _, l := range mem.Leases() {
				if r := l.Receive[0]; l.Subnet == now.Subnet && (r.Type != "vxlan" || r.Data != now.Receive[0].Data) {
					wrong = append(wrong, string(r.Key)+" "+r.Data.V4)
				}
			}
		}
		if len(wrong) > 0 {
			t.Errorf("the original's peers read %q for %d ms", slices.Compact(wrong), 100*len(wrong))
		}
	})
}

// A lease that the store refuses gets no packets (lease.Lease, Refused).
func TestARefusedLeaseGetsNoPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		thief := peer(200)
		thief.Refused = "public address is another node's"
		mem.Put(thief)
		r := newRig(t, t.TempDir(), mem)
		defer r.start(t)()
		settle(time.Second)
		if got := r.kernel.routes(); len(got) != 0 {
			t.Errorf("routes %v", got)
		}
		if p := r.Status().Paths; len(p) != 1 || !strings.Contains(p[0].Reason, thief.Refused) {
			t.Errorf("paths %+v", p)
		}
	})
}

// Metrics say what weft status says of the ways to peers.
func TestMetricsSayWhyAPeerIsNotOnThePreferredWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		mem.Put(keyed(200, newKey, oldKey))
		mem.Put(keyed(201, oldKey))
		r := newRig(t, t.TempDir(), mem)
		r.parts.Prober = &fakeProber{say: all(plan.Unknown)}
		defer r.start(t)()
		settle(time.Second)
		mem.SetConfig([]byte(portConfig))
		settle(time.Second)
		w := httptest.NewRecorder()
		r.HealthHandler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		for _, line := range []string{
			`weft_peer_way{subnet="10.244.200.0/24",way="vxlan/1/4789"} 0`,
			`weft_peer_way{subnet="10.244.200.0/24",way="vxlan/1/8472"} 1`,
			`weft_peer_way_reason{reason="vxlan/1/4789: no probe has crossed it yet",subnet="10.244.200.0/24"} 1`,
			`weft_peers_on{way="vxlan/1/8472"} 2`,
			`weft_peers_waiting{reason="receives on vxlan/1/8472, not on vxlan/1/4789"} 1`,
			`weft_peers_waiting{reason="vxlan/1/4789: no probe has crossed it yet"} 1`,
		} {
			if !strings.Contains(w.Body.String(), line+"\n") {
				t.Errorf("no %s", line)
			}
		}
	})
}

// A peer whose kernel has never answered stays where it is, whatever probes do not show, and goes where they show that
// a way works. Who has answered is believed.
func TestWhichProbesAreBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		mem.Put(keyed(200, newKey, oldKey))
		r := newRig(t, t.TempDir(), mem)
		p := &fakeProber{say: all(plan.Unknown)}
		r.parts.Prober = p
		defer r.start(t)()
		settle(time.Second)
		mem.SetConfig([]byte(portConfig))
		for _, c := range []struct{ newWay, oldWay plan.Health }{
			{plan.Dead, plan.Try}, {plan.Try, plan.Dead}, // stays
			{plan.Called, plan.Try},
			{plan.Dead, plan.Try}, {plan.Try, plan.Dead}, {plan.Unknown, plan.Dead}, // stays, as it is not known to answer
			{plan.Try, plan.Called},
			{plan.Dead, plan.Dead}, // stays
			{plan.Good, plan.Dead},
			{plan.Dead, plan.Try},
		} {
			before := r.way(t, 200)
			want := before
			if c.newWay == plan.Called || c.newWay == plan.Good {
				want = newKey
			} else if c.oldWay == plan.Called || p.say(plan.WayID{Key: newKey}) == plan.Good {
				want = oldKey
			}
			p.mu.Lock()
			p.say = func(id plan.WayID) plan.Health {
				if id.Key == newKey {
					return c.newWay
				}
				return c.oldWay
			}
			p.mu.Unlock()
			settle(time.Second)
			if got := r.way(t, 200); got != want {
				t.Errorf("on %s; the new way is %d, the old one %d: on %s, want %s", before, c.newWay, c.oldWay, got, want)
			}
		}
	})
}

// fileConfig is a store whose configuration is a file, and whose list of leases takes a second, as in Kubernetes.
type fileConfig struct{ lease.Store }

func (fileConfig) WatchConfig(ctx context.Context, f func([]byte)) error {
	f([]byte(vxlanConfig))
	<-ctx.Done()
	return ctx.Err()
}

func (s fileConfig) Watch(ctx context.Context, f func([]lease.Lease)) error {
	return s.Store.Watch(ctx, func(ls []lease.Lease) {
		time.Sleep(time.Second)
		f(ls)
	})
}
