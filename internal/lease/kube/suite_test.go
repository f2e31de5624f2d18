package kube_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/kube"
	"github.com/weftnet/weft/internal/lease/leasetest"
)

// A network is the suite's store: Nodes of one API server with annotations under a prefix of its own. It hands
// out subnets as kube-controller-manager does.
type network struct {
	server *apiServer
	gate   *gate
	name   string
	config string // file

	mu    sync.Mutex // guards what follows
	nodes map[string]family.Pair[netip.Prefix]
}

var _ leasetest.Assigned = (*network)(nil)

func (n *network) Assigned() {}

func (n *network) prefix() string { return n.name + ".example.net/" }

func (n *network) Open(t *testing.T) lease.Store {
	return &suiteStore{t: t, network: n, stores: map[string]*kube.Store{}}
}

func (n *network) SetConfig(t *testing.T, raw string) { write(t, n.config, raw) }

func (n *network) DeleteConfig(t *testing.T) {
	if err := os.Remove(n.config); err != nil {
		t.Fatal(err)
	}
}

// ensure makes the Node of self if there is none.
func (n *network) ensure(t *testing.T, id string, prior family.Pair[netip.Prefix]) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	name := n.name + "-" + id
	if _, ok := n.nodes[name]; ok {
		return name
	}
	p := prior
	for i := 1; !p.V4.IsValid() || !p.V6.IsValid(); i++ {
		p = family.Pair[netip.Prefix]{V4: netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", i)), V6: netip.MustParsePrefix(fmt.Sprintf("fd05:0:0:%x::/64", i))}
		if prior.V4.IsValid() {
			p.V4 = prior.V4
		}
		for _, o := range n.nodes {
			if o.V4 == p.V4 || o.V6 == p.V6 {
				p = family.Pair[netip.Prefix]{}
			}
		}
	}
	n.create(t, name, p)
	return name
}

func (n *network) create(t *testing.T, name string, p family.Pair[netip.Prefix]) {
	n.server.createNode(t, name, p.V4.String(), p.V6.String())
	n.nodes[name] = p
}

func (n *network) nodeOf(l lease.Lease) string {
	for name, p := range n.nodes {
		if l.Subnet.V4.IsValid() && p.V4 == l.Subnet.V4 || l.Subnet.V6.IsValid() && p.V6 == l.Subnet.V6 {
			return name
		}
	}
	return ""
}

func (n *network) Put(t *testing.T, l lease.Lease, _ bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	annotations, err := kube.Encode(l)
	if err != nil {
		t.Fatal(err)
	}
	n.server.annotate(t, n.nodeOf(l), n.prefix(), annotations)
}

func (n *network) Delete(t *testing.T, l lease.Lease) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name := n.nodeOf(l)
	n.server.deleteNode(t, name)
	delete(n.nodes, name)
}

func (n *network) Reserved(*testing.T, lease.Lease) bool { return true }

func (n *network) Corrupt(t *testing.T) {
	n.mu.Lock()
	defer n.mu.Unlock()
	yes := "true"
	for i, bad := range []map[string]*string{
		{},
		{"public-ip": new("somewhere")},
		{"public-ip": new("2001:db8::1")},
		{"public-ip": new("0.0.0.0")},
		{"public-ip": new("192.0.2.77%eth0")},
		{"public-ip": new("192.0.2.77"), "x-weft": new("not JSON"), "public-ipv6": new(string(make([]byte, 5000)))},
	} {
		name := fmt.Sprintf("%s-bad-%d", n.name, i)
		n.create(t, name, family.Pair[netip.Prefix]{V4: netip.MustParsePrefix(fmt.Sprintf("10.5.2.%d/32", i)), V6: netip.MustParsePrefix(fmt.Sprintf("fd05:0:0:9::%d/128", i))})
		bad["kube-subnet-manager"], bad["backend-type"] = &yes, new("vxlan")
		n.server.annotate(t, name, n.prefix(), bad)
	}
}

func (n *network) Blackout(_ *testing.T, during func()) {
	n.gate.set(true)
	during()
	n.gate.set(false)
}

func (n *network) SetBack(t *testing.T, _, _ func()) {
	t.Skip("kube-apiserver would have to go back together with its etcd; TestServerIsSetBackWhileAway has what it says then")
}

func (n *network) open(t *testing.T, node string) *kube.Store {
	t.Helper()
	s, err := kube.New(kube.Quick(kube.Config{
		Kubeconfig: n.server.kubeconfig(t, n.gate.url(), flannelToken), NodeName: node, Prefix: n.prefix(), NetConfFile: n.config,
	}), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// run runs s until the test ends.
func run(t *testing.T, s *kube.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx, func() {})
	}()
	t.Cleanup(func() { cancel(); <-done })
}

// A suiteStore is a store that the suite uses for any node: it becomes that node when it is told which.
type suiteStore struct {
	t       *testing.T
	network *network

	mu     sync.Mutex
	stores map[string]*kube.Store // by node ID
}

func (s *suiteStore) as(id string) *kube.Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stores[id] == nil {
		s.stores[id] = s.network.open(s.t, s.network.name+"-"+id)
		run(s.t, s.stores[id])
	}
	return s.stores[id]
}

func (s *suiteStore) WatchConfig(ctx context.Context, f func([]byte)) error {
	return s.network.open(s.t, "none").WatchConfig(ctx, f)
}

func (s *suiteStore) Watch(ctx context.Context, f func([]lease.Lease)) error {
	return s.network.open(s.t, "none").Watch(ctx, f)
}

func (s *suiteStore) Recall(ctx context.Context, self lease.Self) (lease.Lease, bool, error) {
	l, found, err := s.as(self.ID).Recall(ctx, self)
	l.Node = "" // Self names none
	return l, found, err
}

func (s *suiteStore) Hold(ctx context.Context, self lease.Self, held lease.Lease) error {
	return s.as(self.ID).Hold(ctx, self, held)
}

// Acquire waits as the agent does where the Node has only just been made.
func (s *suiteStore) Acquire(ctx context.Context, self lease.Self) (lease.Lease, error) {
	s.network.ensure(s.t, self.ID, self.Prior)
	store := s.as(self.ID)
	for {
		l, err := store.Acquire(ctx, self)
		wait, ok := errors.AsType[*lease.NotYetError](err)
		if !ok {
			l.Node = ""
			return l, err
		}
		select {
		case <-wait.Changed:
		case <-ctx.Done():
			return lease.Lease{}, ctx.Err()
		}
	}
}

func testSuite(t *testing.T, server *apiServer) {
	var count atomic.Int32
	g := newGate(t, server.url)
	leasetest.Run(t, func(t *testing.T) leasetest.Backing {
		n := &network{
			server: server, gate: g, name: fmt.Sprintf("suite%d", count.Add(1)),
			config: filepath.Join(t.TempDir(), "net-conf.json"), nodes: map[string]family.Pair[netip.Prefix]{},
		}
		t.Cleanup(func() {
			for name := range n.nodes {
				server.deleteNode(t, name)
			}
		})
		return n
	})
}
