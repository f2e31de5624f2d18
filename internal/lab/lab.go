// Package lab makes a cluster on one machine: nodes out of network namespaces, some on one L2 segment,
// some behind a router, each with its own agent process, its own files and pods attached by the real
// CNI plugin, and a real etcd. It is the demo for a newcomer and the fixture of the end-to-end tests.
//
//	A 172.31.0.10 --+                                    +-- C 172.31.1.12
//	                +-- seg0 172.31.0.1 | router | seg1 --+
//	B 172.31.0.11 --+                     |
//	                               etcd 172.31.255.2
//
// A machine of the lab is a set of network, mount and UTS namespaces. Everything happens inside them:
// the machine that the lab runs on keeps its devices, routes, rules, sysctls and files, except for one
// directory per lab, which says all there is to know about it. So a later command finds the lab, and
// Down removes one that was only half made.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Lab is a running lab.
type Lab struct {
	Options Options
	Nodes   []*Node // in the order of Options.Segments

	dir    string
	router process
	etcd   *Etcd
}

// ErrExists means that a lab of that name is there.
var ErrExists = errors.New("a lab of this name exists")

// ErrNone means that there is no lab of that name.
var ErrNone = errors.New("no such lab")

// Up makes a lab and waits until its agents are ready. What a failed Up leaves is for Down to remove;
// the lab is returned as far as it got, for a look at its logs.
func Up(ctx context.Context, o Options) (*Lab, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Lab{Options: o, dir: filepath.Join(o.Base, o.Name)}
	if err := os.MkdirAll(o.Base, 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(l.dir, 0o755); errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%s: %w", o.Name, ErrExists)
	} else if err != nil {
		return nil, err
	}
	if err := writeJSON(l.file("lab.json"), o); err != nil {
		return l, err
	}
	if err := l.buildMachines(); err != nil {
		return l, err
	}
	if o.NoEtcd {
		return l, nil
	}
	if err := l.etcd.Start(ctx); err != nil {
		return l, err
	}
	if err := l.etcd.PutConfig(ctx, o.Config); err != nil {
		return l, err
	}
	if o.NoAgents {
		return l, nil
	}
	return l, l.EachNode(func(n *Node) error { return n.Agent.Start(ctx) })
}

// buildMachines makes the router, etcd's machine and the nodes, connected but with nothing running.
func (l *Lab) buildMachines() error {
	ports := l.Options.ports()
	var err error
	if l.router, err = hold(l.file("router", "holder.json")); err != nil {
		return err
	}
	if err := l.buildRouter(ports); err != nil {
		return fmt.Errorf("router: %w", err)
	}
	l.assemble()
	if l.etcd.machine, err = hold(l.file("etcd", "holder.json")); err != nil {
		return err
	}
	if err := l.plug(etcdName, l.etcd.machine, ports[etcdName]); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	return l.EachNode((*Node).boot)
}

// assemble makes the values that stand for the parts of the lab. It starts nothing.
func (l *Lab) assemble() {
	ports := l.Options.ports()
	l.etcd = &Etcd{lab: l, addr: cmpAddr(ports[etcdName].Addr.V4.Addr(), ports[etcdName].Addr.V6.Addr())}
	for _, name := range l.Options.nodes() {
		n := &Node{Name: name, lab: l, port: ports[name]}
		n.Agent = &Agent{node: n, Binary: l.Options.Flanneld, Args: slices.Clone(l.Options.AgentArgs)}
		if other := l.Options.FlanneldOn[name]; other != "" {
			n.Agent.Binary = other
		}
		l.Nodes = append(l.Nodes, n)
	}
}

// Open returns a lab that an earlier process made.
func Open(base, name string) (*Lab, error) {
	l := &Lab{dir: filepath.Join(base, name)}
	if err := readJSON(l.file("lab.json"), &l.Options); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, ErrNone)
	} else if err != nil {
		return nil, err
	}
	l.assemble()
	l.router, _ = recorded(l.file("router", "holder.json"))
	l.etcd.machine, _ = recorded(l.file("etcd", "holder.json"))
	for _, n := range l.Nodes {
		n.machine, _ = recorded(n.file("holder.json"))
		if bin, err := os.ReadFile(n.file("flanneld.path")); err == nil {
			n.Agent.Binary = string(bin)
		}
	}
	return l, nil
}

// Names lists the labs below base.
func Names(base string) ([]string, error) {
	entries, err := os.ReadDir(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// Down removes the lab called name, even one that was only half made. It stops the processes that the
// lab started; namespaces and all that is in them go with these.
func Down(base, name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("lab name %q: letters, digits and inner hyphens only", name)
	}
	dir := filepath.Join(base, name)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", name, ErrNone)
	}
	var errs []error
	// Agents and etcd first: what holds namespaces goes last.
	for _, pattern := range []string{"*/process-*.json", "*/holder.json"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		errs = append(errs, err, stopAll(files))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lab %s: %w", name, err)
	}
	return os.RemoveAll(dir)
}

// stopAll stops the processes recorded in files, all at once.
func stopAll(files []string) error {
	errs := make([]error, len(files))
	var wg sync.WaitGroup
	for i, f := range files {
		wg.Go(func() {
			p, running := recorded(f)
			if !running {
				return
			}
			if strings.HasSuffix(f, "holder.json") {
				_, errs[i] = p.signal(unix.SIGKILL, 10*time.Second)
				return
			}
			errs[i] = p.stop(3 * time.Second)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Down removes the lab.
func (l *Lab) Down() error { return Down(filepath.Dir(l.dir), filepath.Base(l.dir)) }

// Etcd returns the lab's store.
func (l *Lab) Etcd() *Etcd { return l.etcd }

// Node returns the node called name.
func (l *Lab) Node(name string) (*Node, error) {
	for _, n := range l.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("no node is called %q: there are %s", name, strings.Join(l.Options.nodes(), ", "))
}

// EachNode calls f for all nodes at once and returns all errors, each with its node's name.
func (l *Lab) EachNode(f func(*Node) error) error {
	errs := make([]error, len(l.Nodes))
	var wg sync.WaitGroup
	for i, n := range l.Nodes {
		wg.Go(func() {
			if err := f(n); err != nil {
				errs[i] = fmt.Errorf("node %s: %w", n.Name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// file returns the path of a file of the lab.
func (l *Lab) file(elem ...string) string { return filepath.Join(append([]string{l.dir}, elem...)...) }
