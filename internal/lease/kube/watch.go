package kube

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/storehealth"
)

// minGap is the least time between two sets handed over: 5,000 Nodes that change at once make some dozens
// of sets, not 5,000. The first change after a quiet time goes out at once.
const minGap = 10 * time.Millisecond

// Watch implements lease.Store. A change that leaves every lease as it is, such as a heartbeat, is none.
func (s *Store) Watch(ctx context.Context, f func([]lease.Lease)) error {
	set := &set{store: s, wake: make(chan struct{}, 1), told: map[string]string{}}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.follow(ctx, "watch nodes", "", set.feed()) })
	g.Go(func() error { return set.deliver(ctx, f) })
	return g.Wait()
}

// A record is all that is kept of a Node.
type record struct {
	lease   lease.Lease // without a subnet: the node takes no part
	created int64       // Unix seconds
	addrs   []netip.Addr
	problem string // what is wrong with the Node's annotations
}

func (r *record) equal(o *record) bool {
	return r.created == o.created && r.problem == o.problem && r.lease.Equal(o.lease) && slices.Equal(r.addrs, o.addrs)
}

// newRecord cuts a Node down to what is kept.
func newRecord(n *node) *record {
	r := &record{created: n.created}
	for _, a := range n.addresses {
		// Of the status: only the node's own kubelet and the cloud provider may write it.
		if addr, err := netip.ParseAddr(a.text); err == nil && (a.kind == internalIP || a.kind == externalIP) {
			r.addrs = append(r.addrs, addr.Unmap())
		}
	}
	if !n.isMember() {
		return r
	}
	l, err := n.lease()
	if err != nil {
		r.problem = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	if l.Subnet.V4.IsValid() || l.Subnet.V6.IsValid() {
		r.lease = l
	}
	return r
}

func (r *record) takesPart() bool { return r.lease.Subnet.V4.IsValid() || r.lease.Subnet.V6.IsValid() }

// A set keeps the records of all Nodes.
type set struct {
	store *Store
	wake  chan struct{}     // capacity 1: the set changed
	told  map[string]string // problem told last, by node; belongs to deliver

	mu       sync.Mutex // guards what follows
	complete bool
	nodes    map[string]*record // by name
	fresh    map[string]*record // of a listing under way; nil: none is
}

func (s *set) feed() feed {
	return feed{
		begin:  s.begin,
		put:    s.put,
		drop:   s.drop,
		listed: s.listed,
		synced: s.synced,
		stopped: func(error) {
			s.store.health.Count(func(t *Stats) { t.WatchRestarts++; t.Connected = false })
		},
	}
}

func (s *set) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fresh = make(map[string]*record, len(s.nodes))
}

func (s *set) put(n *node) {
	r := newRecord(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fresh != nil {
		s.fresh[n.name] = r
		return
	}
	if old, ok := s.nodes[n.name]; !ok || !old.equal(r) {
		s.nodes[n.name] = r
		s.changed()
	}
}

func (s *set) drop(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fresh != nil {
		delete(s.fresh, name)
		return
	}
	delete(s.nodes, name)
	s.changed()
}

// listed puts a complete listing in the place of what was known.
func (s *set) listed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := s.complete && len(s.nodes) == len(s.fresh)
	for name, r := range s.fresh {
		old, ok := s.nodes[name]
		same = same && ok && old.equal(r)
	}
	s.nodes, s.fresh, s.complete = s.fresh, nil, true
	s.store.health.Count(func(t *Stats) { t.Lists++ })
	if !same {
		s.changed()
	}
}

func (s *set) synced(version string) {
	revision, _ := strconv.ParseInt(version, 10, 64) // for people; no number is none
	s.store.health.Count(func(t *Stats) { t.Connected, t.Revision, t.LastSync = true, revision, time.Now() })
}

// changed asks for a delivery.
func (s *set) changed() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// deliver hands over the set after every change, if complete.
func (s *set) deliver(ctx context.Context, f func([]lease.Lease)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		}
		start := time.Now()
		leases, problems, ok := s.leases()
		if !ok {
			continue
		}
		s.tell(problems)
		s.store.health.Count(func(t *Stats) { t.Leases, t.BadKeys = len(leases), len(problems) })
		f(leases)
		if err := storehealth.Sleep(ctx, max(minGap, time.Since(start))); err != nil {
			return err
		}
	}
}

// leases returns the complete set in order, and what is wrong with which node.
func (s *set) leases() (leases []lease.Lease, problems map[string]string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.wake: // what has changed until now is about to be handed over
	default:
	}
	if !s.complete {
		return nil, nil, false
	}
	problems = map[string]string{}
	for name, r := range s.nodes {
		if r.problem != "" {
			problems[name] = r.problem
		}
	}
	leases = judge(s.nodes, s.store.cfg.Services)
	for _, l := range leases {
		if l.Refused != "" {
			problems[l.Node] = l.Refused
		}
	}
	slices.SortFunc(leases, lease.Compare)
	return leases, problems, true
}

// maxTold is how many bad Nodes are logged at a time; whoever makes more need not fill the disk too.
const maxTold = 20

// tell logs what is new among the problems.
func (s *set) tell(problems map[string]string) {
	told := 0
	for name, p := range problems {
		if s.told[name] == p {
			continue
		}
		if told++; told > maxTold {
			s.store.log.Warn("annotations of many nodes cannot be used", "nodes", len(problems))
			break
		}
		s.store.log.Warn("annotations of a node cannot be used; all other nodes count", "node", name, "err", p)
	}
	s.told = problems
}
