package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

// TestTurnsInTrouble changes the backend while things go wrong.
func TestTurnsInTrouble(t *testing.T) {
	w := underTraffic(t, 20*time.Minute, stageVXLAN, true, lab.Options{})
	w.reverted(stageDirect, stageVXLAN)
	w.killed(stageDirect)
	w.withoutOne(stageVNI)
	if !all() {
		return
	}
	w.inARow(stageHostGW, stagePort)
	w.reverted(stageUDP, stagePort)
	w.inARow(stageUDP, stageGBP)
	w.killed(stageVXLAN)
	w.killed(stageUDP)
	w.killed(stageVXLAN)
	w.withoutOne(stageUDP)
	w.withoutOne(stageVXLAN)
}

// reverted has half of the nodes see a change that is taken back before the others see anything.
func (w *turning) reverted(to, back stage) {
	w.t.Helper()
	what := fmt.Sprintf("%s, and back to %s half way", to.name, back.name)
	w.hold(to)
	for _, i := range rand.Perm(len(w.Nodes))[:len(w.Nodes)/2] {
		n := w.Nodes[i]
		must(w.t, w.release(n))
		w.await(letGo, n.Name+" sees the change", func() error {
			if heard(n) <= w.heard[n.Name] {
				return errors.New("not yet")
			}
			return nil
		})
		rest(w.ctx, rand.N(spread()/3))
	}
	must(w.t, w.Etcd().PutConfig(w.ctx, back.config(w.Options.Family, w.probes)))
	w.leases.note("config " + back.name)
	must(w.t, w.EachNode(w.release))
	// Those that have not seen the change see none at all.
	w.await(letGo, what, func() error { return w.publish(back.keys) })
	w.heard = nil
	w.settled(back)
	w.verdict(what, nil)
}

// inARow makes a change while another one is going on.
func (w *turning) inARow(first, second stage) {
	w.t.Helper()
	w.put(first)
	w.put(second)
	w.settled(second)
	w.verdict(first.name+", and then "+second.name, nil)
}

// An absence is a time in which a node had no agent.
type absence struct {
	pod        string
	begin, end time.Time
}

// startTime is how long an agent takes from its start until a tunnel that is the agent's own work carries
// packets again.
const startTime = time.Second

// killed kills agents at random while a change is made. Where the agent is the data path, what is lost in
// the meantime is excused.
func (w *turning) killed(to stage) {
	w.t.Helper()
	var mu sync.Mutex
	var absent []absence
	userspace := w.tunnel == stageUDP.tunnel() || to.tunnel() == stageUDP.tunnel()
	w.hold(to)
	must(w.t, w.EachNode(func(n *lab.Node) error {
		w.pause(spread())
		if err := w.release(n); err != nil {
			return err
		}
		for range 2 {
			w.pause(spread() / 2)
			a := absence{pod: w.pods[n.Name].Name, begin: time.Now()}
			if err := n.Agent.Kill(); err != nil {
				return err
			}
			w.leases.note("agent of " + n.Name + " is killed")
			if !userspace {
				w.pause(time.Second)
			}
			if err := n.Agent.Launch(); err != nil {
				return err
			}
			w.leases.note("agent of " + n.Name + " is started")
			a.end = time.Now().Add(startTime)
			mu.Lock()
			absent = append(absent, a)
			mu.Unlock()
		}
		return n.Agent.WaitReady(w.ctx)
	}))
	w.heard = nil
	w.settled(to)
	excused := func(g lab.Gap) bool {
		return slices.ContainsFunc(absent, func(a absence) bool {
			return (a.pod == g.From || a.pod == g.To) && g.Begin.After(a.begin.Add(-100*time.Millisecond)) && g.End.Before(a.end)
		})
	}
	if !userspace {
		excused = nil
	}
	w.verdict(to.name+" while agents are killed", excused)
}

// pause waits for a random time up to d.
func (w *turning) pause(d time.Duration) { rest(w.ctx, rand.N(d)) }

// withoutOne makes a change while one node has no agent. The others keep what it needs until it is back.
func (w *turning) withoutOne(to stage) {
	w.t.Helper()
	absent := w.Nodes[rand.IntN(len(w.Nodes))]
	what := to.name + " while " + absent.Name + " has no agent"
	pod, old, began := w.pods[absent.Name].Name, w.tunnel, time.Now()
	must(w.t, absent.Agent.Kill())
	w.put(to)
	w.also = w.keys
	w.settled(to)
	must(w.t, absent.Agent.Start(w.ctx))
	returned := time.Now()
	w.also, w.heard = nil, nil
	w.settled(to)
	if old != stageUDP.tunnel() {
		w.verdict(what, nil)
		return
	}
	w.verdict(what, func(g lab.Gap) bool { // the agent is the data path
		return (g.From == pod || g.To == pod) && g.Begin.After(began.Add(-100*time.Millisecond)) && g.End.Before(returned.Add(startTime))
	})
}
