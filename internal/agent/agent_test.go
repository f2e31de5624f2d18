package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/firewall"
	"github.com/weftnet/weft/internal/kernel"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/leasetest"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/snapshot"
	"github.com/weftnet/weft/internal/state"
	"github.com/weftnet/weft/internal/uplink"
)

const vxlanConfig = `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`

// fakeKernel applies a State by keeping it, and fails when told to. The real kernel is met in kernel's own
// tests and in the end-to-end tests.
type fakeKernel struct {
	mu     sync.Mutex // guards what follows
	have   state.State
	pruned bool // the last pass was allowed to remove
	fail   error
	passes int
	took   time.Duration // what Apply takes
	block  chan struct{} // non-nil: Apply waits for ctx
	real   bool          // it tells what it has: links, and that all peers are on-link
}

func (k *fakeKernel) Plan(state.State, kernel.Scope) ([]state.Change, error) { return nil, nil }

func (k *fakeKernel) Apply(ctx context.Context, want state.State, sc kernel.Scope) (kernel.Report, error) {
	k.mu.Lock()
	block := k.block
	k.passes++
	defer k.mu.Unlock()
	time.Sleep(k.took)
	if block != nil {
		k.mu.Unlock()
		<-ctx.Done()
		k.mu.Lock()
		return kernel.Report{}, ctx.Err()
	}
	if k.fail != nil {
		return kernel.Report{Errors: []kernel.ObjectError{{Kind: "route", Object: "10.244.200.0/24", Op: state.Add, Err: k.fail}}}, nil
	}
	k.have, k.pruned = want, sc.Complete
	return kernel.Report{}, nil
}

func (k *fakeKernel) Links() (map[string]state.Link, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.real {
		return nil, nil
	}
	return maps.Clone(k.have.Links), nil
}

func (k *fakeKernel) OnLink(addrs []netip.Addr) (map[netip.Addr]string, error) {
	if !k.real {
		return nil, nil
	}
	m := map[netip.Addr]string{}
	for _, a := range addrs {
		m[a] = "eth0"
	}
	return m, nil
}

func (k *fakeKernel) routes() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var rs []string
	for r := range maps.Keys(k.have.Routes) {
		rs = append(rs, r.String())
	}
	slices.Sort(rs)
	return rs
}

type fakeFirewall struct{ err error }

func (f *fakeFirewall) Findings() []string { return nil }

func (f *fakeFirewall) Plan(firewall.Policy) ([]state.Change, error) { return nil, nil }
func (f *fakeFirewall) Apply(context.Context, firewall.Policy) ([]state.Change, error) {
	return nil, f.err
}

// A rig is one agent on a store in memory, on a host with eth0.
type rig struct {
	*Agent
	mem    *leasetest.Memory
	kernel *fakeKernel
	rules  *fakeFirewall
	host   *uplink.Host
	log    *bytes.Buffer
	dir    string
}

func newRig(t *testing.T, dir string, mem *leasetest.Memory) *rig {
	r := &rig{mem: mem, kernel: &fakeKernel{}, rules: &fakeFirewall{}, log: &bytes.Buffer{}, dir: dir}
	host := uplink.Host{Links: []uplink.Link{{
		Name: "eth0", Index: 2, MTU: 1500, Up: true,
		Addrs: []uplink.Address{{Prefix: netip.MustParsePrefix("10.77.0.1/24"), Permanent: true}},
	}}}
	r.host = &host
	r.Agent = New(Options{
		Identity: "0123456789abcdef", Node: "n1", Uplink: uplink.Options{Iface: []string{"eth0"}}, Store: netconf.Etcd,
		SubnetFile: filepath.Join(dir, "subnet.env"), SnapshotFile: filepath.Join(dir, "snapshot.json"), Resync: 30 * time.Second,
	}, Parts{
		Store: mem.Node(), Kernel: r.kernel, Firewall: r.rules,
		Uplink: func() (uplink.Host, error) { return *r.host, nil },
	}, slog.New(slog.NewTextHandler(r.log, nil)))
	return r
}

// start runs the agent until the test's bubble ends.
func (r *rig) start(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// settle lets the agent do all it can do within d.
func settle(d time.Duration) {
	time.Sleep(d) // time in the bubble
	synctest.Wait()
}

func peer(n byte) lease.Lease {
	return lease.Lease{
		Subnet: family.Pair[netip.Prefix]{V4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, n, 0}), 24)},
		Public: family.Pair[netip.Addr]{V4: netip.AddrFrom4([4]byte{10, 77, 0, n})},
		Receive: []lease.Receiver{{Type: "vxlan", Data: family.Pair[string]{
			V4: `{"VNI":1,"VtepMAC":"02:00:00:00:00:` + string("0123456789abcdef"[n>>4]) + string("0123456789abcdef"[n&15]) + `"}`}}},
	}
}

func TestANodeBecomesReadyAndFollowsItsPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, t.TempDir(), leasetest.NewMemory())
		defer r.start(t)()
		settle(time.Second)
		if st := r.Status(); st.Ready || !strings.Contains(st.Reasons[0], "network configuration") {
			t.Errorf("without configuration: ready %t, %v", st.Ready, st.Reasons)
		}
		r.mem.Put(peer(200))
		r.mem.SetConfig([]byte(vxlanConfig))
		settle(time.Second)
		st := r.Status()
		if !st.Ready || st.Lease == nil || len(st.Paths) != 1 {
			t.Fatalf("status %+v\n%s", st, r.log)
		}
		if got := r.kernel.routes(); !slices.Equal(got, []string{"10.244.200.0/24"}) || !r.kernel.pruned {
			t.Errorf("routes %v, pruned %t", got, r.kernel.pruned)
		}
		if _, err := os.Stat(filepath.Join(r.dir, "subnet.env")); err != nil {
			t.Error(err)
		}
		r.mem.Put(peer(201))
		settle(time.Second)
		if got := r.kernel.routes(); len(got) != 2 {
			t.Errorf("routes %v", got)
		}
	})
}

func TestWithoutItsStoreANodeStartsFromTheSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, mem := t.TempDir(), leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		mem.Put(peer(200))
		first := newRig(t, dir, mem)
		stop := first.start(t)
		settle(10 * time.Second)
		stop()
		held := first.Status().Lease.Subnet

		mem.SetDown(true)
		second := newRig(t, dir, mem)
		defer second.start(t)()
		settle(time.Second)
		if st := second.Status(); st.Ready {
			t.Errorf("ready before the store had its chance: %+v", st)
		}
		settle(5 * time.Second)
		st := second.Status()
		if !st.Ready || st.Snapshot == nil || len(st.Notes) == 0 || st.Lease.Subnet != held {
			t.Fatalf("status %+v\n%s", st, second.log)
		}
		if second.kernel.pruned {
			t.Error("pruned by the word of a snapshot")
		}
		mem.Put(peer(201)) // while the store is away
		mem.SetDown(false)
		settle(30 * time.Second)
		if st := second.Status(); st.Snapshot != nil || len(second.kernel.routes()) != 2 || !second.kernel.pruned {
			t.Errorf("not converged: %+v, routes %v\n%s", st, second.kernel.routes(), second.log)
		}
	})
}

// atRest returns a rig whose agent has started and come to rest, with its store and what stops it.
func atRest(t *testing.T) (r *rig, mem *leasetest.Memory, stop func()) {
	mem = leasetest.NewMemory()
	mem.SetConfig([]byte(vxlanConfig))
	r = newRig(t, t.TempDir(), mem)
	stop = r.start(t)
	settle(10 * time.Second)
	return r, mem, stop
}

func TestTheSnapshotHoldsWhatChangedJustBeforeTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, mem, stop := atRest(t)
		for _, n := range []byte{200, 201} {
			mem.Put(peer(n))
			settle(100 * time.Millisecond)
		}
		stop()
		if s, err := snapshot.Load(r.opts.SnapshotFile); err != nil || len(s.Peers) != 2 {
			t.Errorf("peers %v, %v", s.Peers, err)
		}
	})
}

// A change and the end that come together are both heeded, whichever is seen first.
func TestTheSnapshotHoldsWhatCameWithTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _, stop := atRest(t)
		stop()
		over, cancel := context.WithCancel(t.Context())
		cancel()
		for n := byte(200); n < 220; n++ {
			r.setLeases([]lease.Lease{peer(n)})
			_ = r.persist(over)
			s, err := snapshot.Load(r.opts.SnapshotFile)
			if err != nil || len(s.Peers) != 1 || s.Peers[0].Subnet != peer(n).Subnet {
				t.Fatalf("with %s: peers %v, %v", peer(n).Subnet.V4, s.Peers, err)
			}
		}
	})
}

func TestARefusalIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, mem := t.TempDir(), leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		first := newRig(t, dir, mem)
		stop := first.start(t)
		settle(10 * time.Second)
		stop()
		held, c := *first.Status().Lease, *first.inputs().config
		other := lease.Self{ID: "other", Public: held.Public, Network: c.Network, Receive: held.Receive}
		if _, err := mem.Node().Acquire(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		second := newRig(t, dir, mem)
		defer second.start(t)()
		settle(time.Minute)
		if st := second.Status(); st.Ready || st.Snapshot != nil || len(st.Reasons) != 1 || !strings.Contains(st.Reasons[0], "another live node") {
			t.Errorf("status %+v", st)
		}
	})
}

func TestTheSnapshotsConfigurationGivesWayToTheStores(t *testing.T) {
	for name, config := range map[string]string{
		"another backend": `{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}`,
		"another network": `{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan"}}`,
		"another VNI":     `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir, mem := t.TempDir(), leasetest.NewMemory()
				mem.SetConfig([]byte(vxlanConfig))
				first := newRig(t, dir, mem)
				stop := first.start(t)
				settle(10 * time.Second)
				stop()

				mem.SetDown(true)
				mem.SetConfig([]byte(config)) // the node did not hear of it
				second := newRig(t, dir, mem)
				defer second.start(t)()
				settle(10 * time.Second)
				if st := second.Status(); st.Snapshot == nil {
					t.Fatalf("status %+v", st)
				}
				mem.SetDown(false)
				settle(time.Minute)
				want, _, err := netconf.Parse([]byte(config), netconf.Etcd)
				if err != nil {
					t.Fatal(err)
				}
				st := second.Status()
				if got := *second.inputs().config; got != want || !st.Ready || len(st.Notes) != 0 {
					t.Fatalf("in force: %+v, ready %t, %v\n%s", got, st.Ready, st.Notes, second.log)
				}
				ls := mem.Leases()
				if len(ls) != 1 || !lease.Fits(want.Network, ls[0].Subnet) || !ls[0].Equal(lease.Lease{Subnet: st.Lease.Subnet, Public: st.Lease.Public, Receive: st.Lease.Receive, Send: st.Lease.Send, Serial: st.Lease.Serial}) {
					t.Fatalf("leases %+v, own %+v", ls, st.Lease)
				}
				r := ls[0].Receive[0]
				ok := r.Type == want.Backend.Type() && len(ls[0].Receive) == 1
				if v, vxlan := want.Backend.(netconf.VXLAN); !ok || vxlan && !strings.Contains(r.Data.V4, fmt.Sprintf(`"VNI":%d,`, v.VNI)) {
					t.Errorf("published: %+v", ls[0].Receive)
				}
			})
		})
	}
}

func TestAnEmptyAnswerIsNotNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		mem.Put(peer(200))
		r := newRig(t, t.TempDir(), mem)
		defer r.start(t)()
		settle(time.Second)
		mem.SetDown(true)
		settle(time.Hour)
		if got := r.kernel.routes(); len(got) != 1 {
			t.Errorf("peers lost with the store: %v", got)
		}
		if !r.Status().Ready {
			t.Errorf("not ready: %v", r.Status().Reasons)
		}
	})
}

func TestALostLeaseIsAcquiredAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		r := newRig(t, t.TempDir(), mem)
		defer r.start(t)()
		settle(time.Second)
		held := r.Status().Lease.Subnet
		mem.Expire(held)
		settle(time.Minute)
		if got := mem.Leases(); len(got) != 1 || got[0].Subnet != held {
			t.Errorf("leases %+v, want the former subnet %v again", got, held)
		}
	})
}

func TestFailuresAreToldOnceRetriedAndHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		r := newRig(t, t.TempDir(), mem)
		r.kernel.fail = errors.New("no route to host")
		stop := r.start(t)
		settle(30 * time.Second)
		if st := r.Status(); !st.Ready || len(st.Notes) != 1 {
			t.Errorf("one bad peer: %+v", st)
		}
		if st := r.Status(); !st.LastGood.IsZero() || st.LastPass.IsZero() {
			t.Errorf("good passes: %s, %s", st.LastGood, st.LastPass)
		}
		if n := r.kernel.passes; n < 5 || n > 40 {
			t.Errorf("%d passes in 30 s", n)
		}
		r.kernel.mu.Lock()
		r.kernel.fail = nil
		r.kernel.mu.Unlock()
		settle(time.Minute)
		if st := r.Status(); len(st.Notes) != 0 || st.LastGood != st.LastPass {
			t.Errorf("notes %v, good %s, last %s", st.Notes, st.LastGood, st.LastPass)
		}
		stop()
		if n := strings.Count(r.log.String(), "msg=failing"); n != 1 {
			t.Errorf("told %d times:\n%s", n, r.log)
		}
	})
}

func TestReadyMeansThatTheRulesAreThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		r := newRig(t, t.TempDir(), mem)
		r.rules.err = errors.New("no nf_tables")
		defer r.start(t)()
		settle(time.Second)
		if st := r.Status(); st.Ready || !strings.Contains(st.Reasons[0], "no nf_tables") {
			t.Errorf("ready %t: %v", st.Ready, st.Reasons)
		}
		if _, err := os.Stat(filepath.Join(r.dir, "subnet.env")); err == nil {
			t.Error("pods may start without rules")
		}
	})
}

// A mute store answers everything but which leases there are.
type mute struct{ lease.Store }

func (mute) Watch(ctx context.Context, _ func([]lease.Lease)) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestReadyMeansThatThePeersAreKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		r := newRig(t, t.TempDir(), mem)
		r.parts.Store = mute{r.parts.Store}
		defer r.start(t)()
		settle(time.Minute)
		if st := r.Status(); st.Ready || st.Lease == nil || !slices.Equal(st.Reasons, []string{"peers: waiting for the store"}) {
			t.Errorf("status %+v", st)
		}
	})
}

func TestStoppingWaitsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		r := newRig(t, t.TempDir(), mem)
		r.kernel.block = make(chan struct{})
		stop := r.start(t)
		settle(time.Second)
		began := time.Now()
		stop()
		if d := time.Since(began); d > 0 {
			t.Errorf("stopping took %s", d)
		}
	})
}

func TestANewAddressIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		r := newRig(t, t.TempDir(), mem)
		defer r.start(t)()
		settle(time.Second)
		held := r.Status().Lease.Subnet
		links := slices.Clone(r.host.Links)
		links[0].Addrs = []uplink.Address{{Prefix: netip.MustParsePrefix("10.77.0.99/24"), Permanent: true}}
		links[0].MTU = 9000
		*r.host = uplink.Host{Links: links}
		r.Look()
		settle(5 * time.Second)
		got := mem.Leases()
		if len(got) != 1 || got[0].Public.V4 != netip.MustParseAddr("10.77.0.99") || got[0].Subnet != held {
			t.Errorf("leases %+v\n%s", got, r.log)
		}
		if l := r.kernel.have.Links["flannel.1"]; l.MTU != 8950 || l.VXLAN.Local != netip.MustParseAddr("10.77.0.99") {
			t.Errorf("link %+v", l)
		}
	})
}

func TestAFamilyThatTheHostLacksDoesNotKeepTheOtherWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig([]byte(`{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd24::/48","Backend":{"Type":"vxlan"}}`))
		r := newRig(t, t.TempDir(), mem)
		defer r.start(t)()
		settle(time.Second)
		st := r.Status()
		if !st.Ready || st.Lease.Has(family.V6) || len(st.Notes) != 1 || !strings.Contains(st.Notes[0], "IPv6") {
			t.Fatalf("status %+v\n%s", st, r.log)
		}
		links := slices.Clone(r.host.Links)
		links[0].Addrs = append(slices.Clone(links[0].Addrs), uplink.Address{Prefix: netip.MustParsePrefix("fd77::1/64"), Permanent: true})
		*r.host = uplink.Host{Links: links}
		r.Look()
		settle(5 * time.Second)
		if now := r.Status(); !now.Lease.Has(family.V6) || now.Lease.Subnet.V4 != st.Lease.Subnet.V4 || len(now.Notes) != 0 {
			t.Errorf("status %+v\n%s", now, r.log)
		}
		*r.host = uplink.Host{Links: []uplink.Link{{Name: "eth0", Index: 2, MTU: 1500, Up: true, Addrs: links[0].Addrs[:1]}}}
		r.Look()
		settle(5 * time.Second)
		if now := r.Status(); !now.Lease.Has(family.V6) || len(now.Notes) == 0 {
			t.Errorf("IPv6 was given up: %+v\n%s", now, r.log)
		}
	})
}

func TestWhatSysctlsWereBeforeUsOutlivesRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, mem := t.TempDir(), leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		first := newRig(t, dir, mem)
		stop := first.start(t)
		settle(time.Second)
		first.rememberSysctls(map[string]string{"net/ipv4/ip_forward": "0"})
		settle(10 * time.Second)
		stop()
		second := newRig(t, dir, mem)
		stop = second.start(t)
		settle(10 * time.Second)
		stop()
		s, err := snapshot.Load(second.opts.SnapshotFile)
		if err != nil || s.Sysctls["net/ipv4/ip_forward"] != "0" {
			t.Errorf("snapshot: %v, %v", s.Sysctls, err)
		}
	})
}

// The host's own connections have the address of a tunnel: it stays while they can be there, in this boot.
func TestTheTunnelsAddressIsHeldUntilTheNextBoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, mem := t.TempDir(), leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		first := newRig(t, dir, mem)
		stop := first.start(t)
		settle(10 * time.Second)
		if got := first.kernel.have.Locals; len(got) != 0 {
			t.Errorf("beside the device: %v", got)
		}
		own := first.Status().Lease.Subnet.V4.Addr()
		mem.SetConfig([]byte(`{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}`))
		settle(time.Minute)
		if got := first.kernel.have; len(got.Links) != 0 || !got.Locals[own] {
			t.Errorf("links %v, local %v", got.Links, got.Locals)
		}
		stop()

		restarted := newRig(t, dir, mem)
		stop = restarted.start(t)
		settle(10 * time.Second)
		if got := restarted.kernel.have.Locals; !got[own] {
			t.Errorf("after a restart: %v", got)
		}
		stop()

		s, err := snapshot.Load(first.opts.SnapshotFile)
		if err != nil {
			t.Fatal(err)
		}
		s.Settings = bytes.Replace(s.Settings, []byte(bootID()), []byte("another"), 1)
		if _, err := snapshot.Write(first.opts.SnapshotFile, s); err != nil {
			t.Fatal(err)
		}
		rebooted := newRig(t, dir, mem)
		defer rebooted.start(t)()
		settle(10 * time.Second)
		if got := rebooted.kernel.have.Locals; !rebooted.Status().Ready || len(got) != 0 {
			t.Errorf("after a reboot: %v", got)
		}
	})
}

func TestConfigurationChanges(t *testing.T) {
	for _, tc := range []struct {
		name, to string
		live     bool
	}{
		{"DirectRouting is followed", `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`, true},
		{"the firewall's mode is followed", `{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}`, true},
		{"another backend is followed", `{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}`, true},
		{"a wider network is followed", `{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}`, true},
		{"a network that lacks subnets in use waits for a restart", `{"Network":"10.244.0.0/17","Backend":{"Type":"vxlan"}}`, false},
		{"an additional network is followed", `{"Network":"10.244.0.0/16","AdditionalNetworks":["10.248.0.0/16"],"Backend":{"Type":"vxlan"}}`, true},
		{"the network as an additional one is followed", `{"Network":"10.248.0.0/16","AdditionalNetworks":["10.244.0.0/16"],"Backend":{"Type":"vxlan"}}`, true},
		{"an additional network in place of the network waits for a restart", `{"Network":"10.248.0.0/16","AdditionalNetworks":["10.250.0.0/16"],"Backend":{"Type":"vxlan"}}`, false},
		{"another family waits for a restart", `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd24::/48","Backend":{"Type":"vxlan"}}`, false},
		{"alloc waits for a restart", `{"Network":"10.244.0.0/16","Backend":{"Type":"alloc"}}`, false},
		{"nonsense changes nothing", `{"Network":`, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				mem := leasetest.NewMemory()
				mem.SetConfig([]byte(vxlanConfig))
				r := newRig(t, t.TempDir(), mem)
				defer r.start(t)()
				settle(time.Second)
				mem.SetConfig([]byte(tc.to))
				settle(time.Second)
				want, _, _ := netconf.Parse([]byte(vxlanConfig), netconf.Etcd)
				if tc.live {
					want, _, _ = netconf.Parse([]byte(tc.to), netconf.Etcd)
				}
				if got := *r.inputs().config; got != want {
					t.Errorf("in force: %+v, want %+v", got, want)
				}
				if st := r.Status(); !st.Ready || (len(st.Notes) == 0) != tc.live {
					t.Errorf("ready %t, notes %v", st.Ready, st.Notes)
				}
			})
		})
	}
}
