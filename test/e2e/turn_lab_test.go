package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
	"github.com/weftnet/weft/internal/netnstest"
)

// The tests in turn*_test.go change the backend of six nodes on two segments while every pod sends to every
// other one, and count what is lost. WEFT_TURNS=all makes all changes, with more time between the nodes.

const (
	streamEvery = 2 * time.Millisecond // of each of the 30 streams between pods
	streamSize  = 32
	largeEvery  = 20 * time.Millisecond
	largeSize   = 8 << 10
	tcpRate     = 20_000_000 // bits per second
	stallLimit  = 200 * time.Millisecond
	quietTime   = 2 * time.Second

	shortSpread = 6 * time.Second // between the first and the last node that sees a change
	longSpread  = 30 * time.Second

	// letGo is how long a change may take from when the last node has seen it until all have let go of what
	// was: they wait 10 s before they stop sending, and again where a port has to become free.
	letGo = 90 * time.Second
)

func all() bool { return os.Getenv("WEFT_TURNS") == "all" }

func spread() time.Duration {
	if all() {
		return longSpread
	}
	return shortSpread
}

// six is the lab of these tests.
func six() [][]string { return [][]string{{"A", "B", "C"}, {"D", "E", "F"}} }

// A turning is a lab under traffic.
type turning struct {
	*lab.Lab
	t         *testing.T
	ctx       context.Context
	pods      map[string]*lab.Pod
	mesh      *lab.Mesh
	large     *lab.Mesh
	transfers []*lab.Transfer
	control   *lab.Transfer // within one pod: what the machine itself does to a transfer
	agents    *follower     // of the nodes that transfers are between
	leases    *leaseLog

	also           []string              // what is kept for nodes that run the original, or have no agent
	heard          map[string]int        // how many configurations nodes had taken over before the change
	tunnel         string                // the last way that reaches all nodes
	probes         bool                  // as configured
	keys           []string              // what nodes use since the last change was over
	from           time.Time             // traffic is judged from here on
	steady, before time.Duration         // longest stall while nothing changed, of two stages and of the last
	again          map[*lab.Transfer]int // segments sent again up to then
}

// underTraffic makes a lab of nodes that filter strictly, as some distributions have it, in which traffic
// flows, and measures how it flows while nothing changes.
func underTraffic(t *testing.T, atMost time.Duration, first stage, probes bool, o lab.Options) *turning {
	t.Helper()
	netnstest.Need(t, "nft", "nftables")
	if o.Segments == nil {
		o.Segments = six()
	}
	o.Config = first.config(o.Family, probes)
	ctx, l := upFor(t, atMost, o)
	w := &turning{Lab: l, t: t, ctx: ctx, pods: addPods(ctx, t, l), tunnel: first.tunnel(), leases: watchLeases(ctx, t, l), probes: probes, again: map[*lab.Transfer]int{}}
	for _, n := range l.Nodes { // what comes in by another way than the answer would go is dropped (RFC 3704 2.2)
		sh(ctx, t, n, "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1")
	}
	w.settled(first)
	w.startTraffic()
	w.from = time.Now()
	w.quiet()
	w.verdict("before any change", nil)
	return w
}

func (w *turning) startTraffic() {
	pods := w.sorted()
	var err error
	w.mesh, err = lab.StartMesh(pods, w.every(), streamSize)
	must(w.t, err)
	w.t.Cleanup(func() { _ = w.mesh.Stop() })
	near, far := pods[1], pods[len(pods)-1]
	w.agents = follow(w.t, pods[0].Node, near.Node, far.Node)
	w.large, err = lab.StartMesh([]*lab.Pod{pods[0], far}, largeEvery, largeSize)
	must(w.t, err)
	w.t.Cleanup(func() { _ = w.large.Stop() })
	for _, to := range []*lab.Pod{near, far} {
		for _, a := range to.Addrs() {
			tr, err := lab.StartTransfer(w.ctx, pods[0], to, a, tcpRate)
			must(w.t, err)
			w.transfers = append(w.transfers, tr)
		}
	}
	w.control, err = lab.StartTransfer(w.ctx, pods[0], pods[0], netip.AddrFrom4([4]byte{127, 0, 0, 1}), tcpRate)
	must(w.t, err)
	w.t.Cleanup(func() {
		for _, tr := range append(w.transfers, w.control) {
			if err := tr.Stop(); err != nil {
				w.t.Errorf("TCP %s: %v", tr.Name, err)
			}
		}
	})
}

// every is the time between two datagrams of a stream: twice as long with two families.
func (w *turning) every() time.Duration {
	every := streamEvery
	if hz, err := strconv.Atoi(os.Getenv("WEFT_TURNS_HZ")); err == nil && hz > 0 {
		every = time.Second / time.Duration(hz)
	}
	return every * time.Duration(len(w.sorted()[0].Addrs()))
}

// sorted returns the pods in order of their nodes.
func (w *turning) sorted() []*lab.Pod {
	var pods []*lab.Pod
	for _, name := range slices.Sorted(maps.Keys(w.pods)) {
		pods = append(pods, w.pods[name])
	}
	return pods
}

// await waits until f returns nil, and says how long that took. It looks seldom: f may start programs, and the
// machine has traffic to carry.
func (w *turning) await(within time.Duration, what string, f func() error) time.Duration {
	w.t.Helper()
	before := pressed()
	for began := time.Now(); ; rest(w.ctx, 100*time.Millisecond) {
		err := f()
		took := time.Since(began)
		if err == nil {
			return took
		}
		if took > within+min(pressed()-before, patience) || w.ctx.Err() != nil {
			w.t.Fatalf("%s: not within %v: %v", what, within, err)
		}
	}
}

// rest lets traffic flow for a while.
func rest(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done(): // whatever comes next fails with it
	}
}

// change makes a change that reaches the nodes one by one, and waits until it is over.
func (w *turning) change(to stage) {
	w.t.Helper()
	w.put(to)
	w.settled(to)
	w.wantOnUnderlay(to, w.tunnel)
	w.verdict(to.name, nil)
}

// put writes a configuration, and returns when all nodes can see it.
func (w *turning) put(to stage) {
	w.t.Helper()
	w.hold(to)
	must(w.t, w.EachNode(func(n *lab.Node) error {
		rest(w.ctx, rand.N(spread()))
		return w.release(n)
	}))
}

// hold writes a configuration that no node can see until it is released.
func (w *turning) hold(to stage) {
	w.t.Helper()
	w.heard = map[string]int{}
	for _, n := range w.Nodes {
		w.heard[n.Name] = heard(n)
	}
	must(w.t, w.EachNode(func(n *lab.Node) error { return n.HoldBack(w.ctx, true) }))
	must(w.t, w.Etcd().PutConfig(w.ctx, to.config(w.Options.Family, w.probes)))
	w.leases.note("config " + to.name)
}

func (w *turning) release(n *lab.Node) error {
	w.leases.note("node " + n.Name + " can see it")
	return n.HoldBack(w.ctx, false)
}

// settled waits until all nodes that run ours use, and receive on, only what the stage means, and looks at
// what the kernels do.
func (w *turning) settled(s stage) {
	w.t.Helper()
	want := slices.Clone(s.keys)
	if !s.everywhere() {
		want = append(want, w.tunnel) // what reaches the other segment
	} else {
		w.tunnel = s.tunnel()
	}
	took := w.await(letGo, s.name+": all have let go", func() error {
		for _, n := range w.Nodes {
			if w.ours(n) && heard(n) <= w.heard[n.Name] {
				return fmt.Errorf("%s has not seen the change", n.Name)
			}
		}
		return w.publish(want)
	})
	w.await(20*time.Second, s.name+": kernels", func() error {
		return w.EachNode(func(n *lab.Node) error { return w.onNode(n, s, want) })
	})
	w.keys = want
	if w.mesh != nil {
		w.quiet()
	}
	w.t.Logf("%s: all have let go %v after the last node could see it", s.name, took.Round(100*time.Millisecond))
}

// heard counts the configurations that a node has taken over.
func heard(n *lab.Node) int {
	return strings.Count(n.Agent.Log(), `msg="network configuration" `)
}

// ours says whether a node runs the agent under test, now.
func (w *turning) ours(n *lab.Node) bool { return n.Agent.Binary == ours() && n.Agent.Running() }

// publish says whether nodes publish just these keys, in any order. What is kept for a single node is not sent
// on by all.
func (w *turning) publish(want []string) error {
	now := w.leases.now()
	set := func(keys ...[]string) []string {
		return slices.Compact(slices.Sorted(slices.Values(slices.Concat(keys...))))
	}
	var errs []error
	for _, n := range w.Nodes {
		l := now[n.Addr().V4.String()]
		if w.ours(n) && (!slices.Equal(set(l.receive), set(want, w.also)) || !slices.Equal(set(l.send, w.also), set(want, w.also))) {
			errs = append(errs, fmt.Errorf("%s receives on %v and sends on %v, want %v and for some %v", n.Name, l.receive, l.send, want, w.also))
		}
	}
	return errors.Join(errs...)
}
