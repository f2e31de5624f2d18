// Package demo shows the pod network at work to somebody who has never seen it: three nodes, six pods,
// the leases, the routes, and what really passes the wire.
package demo

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

// Options of a demo.
type Options struct {
	Base   string // directory of all labs
	Family string // of lab.Options
	Keep   bool   // leave the lab standing
}

const labName = "demo"

// A show is one run of the demo.
type show struct {
	out   io.Writer
	lab   *lab.Lab // nil until it is up or partly up
	start time.Time
	bad   []error // what was not as it should be
}

// Run makes the lab, shows it and removes it again. What is not as it should be is an error.
func Run(ctx context.Context, out io.Writer, o Options) error {
	o.Family = cmp.Or(o.Family, lab.IPv4)
	s := &show{out: out, start: time.Now()}
	if err := lab.Down(o.Base, labName); err == nil {
		s.say("(The lab that an earlier demo left standing was removed.)")
	} else if !errors.Is(err, lab.ErrNone) {
		return err
	}
	err := s.run(ctx, o)
	if s.lab == nil {
		return err
	}
	if err == nil {
		err = errors.Join(s.bad...)
	}
	if err != nil {
		s.logs()
	}
	if o.Keep {
		s.howToEnter()
		return err
	}
	if downErr := s.lab.Down(); downErr != nil {
		return errors.Join(err, downErr)
	}
	if err == nil {
		s.say("\nAll as it should be; the lab is gone again (%.1f s). KEEP=1 make demo leaves it standing.", time.Since(s.start).Seconds())
	}
	return err
}

func (s *show) run(ctx context.Context, o Options) error {
	s.heading("Three nodes, made of network namespaces", `
A and B share one L2 segment, C is behind a router. Each runs its own flanneld,
which knows the others only through etcd.`)
	s.say(picture)
	var err error
	s.lab, err = lab.Up(ctx, lab.Options{
		Name: labName, Base: o.Base, Family: o.Family,
		Segments: [][]string{{"A", "B"}, {"C"}},
	})
	if err != nil {
		return err
	}
	if o.Family != lab.IPv4 {
		for _, n := range s.lab.Nodes {
			s.say("  %s has %s", n.Name, join(n.Addrs()))
		}
	}
	s.say("Up after %.1f s.", time.Since(s.start).Seconds())
	for _, step := range []func(context.Context) error{s.addPods, s.leases, s.routes, s.paths, s.matrix, s.wire} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

const picture = `
  A 172.31.0.10 --+
                  +-- 172.31.0.1  router  172.31.1.1 -- C 172.31.1.12
  B 172.31.0.11 --+                 |
                             etcd 172.31.255.2
`

// addPods puts two pods on each node, node by node at once.
func (s *show) addPods(ctx context.Context) error {
	s.heading("Two pods on each node", `
Attached by the CNI plugin "flannel" with the stock conflist, the way containerd
calls it. A pod's address comes from its node's subnet.`)
	err := s.lab.EachNode(func(n *lab.Node) error {
		for _, i := range []string{"1", "2"} {
			if _, err := n.AddPod(ctx, "pod-"+n.Name+i); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	pods, err := s.lab.Pods()
	if err != nil {
		return err
	}
	var rows [][]string
	for _, p := range pods {
		rows = append(rows, []string{p.Name, "on " + p.Node.Name, join(p.Addrs())})
	}
	s.table(rows)
	return nil
}

// logs shows how the agents' logs end.
func (s *show) logs() {
	s.heading("The last lines of the agents' logs", "")
	for _, n := range s.lab.Nodes {
		s.say("node %s:\n%s", n.Name, n.Agent.LogTail(15))
	}
}

func (s *show) howToEnter() {
	s.heading("The lab is still standing", "")
	weft := weftHere(s.lab.Options.Weft)
	s.table([][]string{
		{weft + " lab exec -n demo A", "a shell on node A"},
		{weft + " lab exec -n demo A -- weft status", "what the agent on A says of itself and its peers"},
		{weft + " lab exec -n demo A -- ip route", "its routes"},
		{weft + " lab exec -n demo pod-A1", "a shell in a pod"},
		{weft + " lab agent -n demo log A", "the agent's log"},
		{weft + " lab list", "all labs, nodes and pods"},
		{weft + " lab down -n demo", "remove it all"},
	})
}

// weftHere is how to call the binary at path from the working directory.
func weftHere(path string) string {
	dir, err := os.Getwd()
	if err != nil {
		return path
	}
	if rel, err := filepath.Rel(dir, path); err == nil && !strings.HasPrefix(rel, "..") {
		return "./" + rel
	}
	return path
}
