// Package kube keeps the leases of a network in Kubernetes' Node objects, in flannel's form, so that nodes
// of both share a cluster: kube-controller-manager gives each Node its subnet (spec.podCIDRs), the agent of
// the node writes how peers reach it into annotations of that Node.
//
//	flannel.alpha.coreos.com/kube-subnet-manager  "true": the node takes part
//	flannel.alpha.coreos.com/public-ip            where peers send to
//	flannel.alpha.coreos.com/backend-type         "vxlan"
//	flannel.alpha.coreos.com/backend-data         {"VNI":1,"VtepMAC":"…"}, or null
//	flannel.alpha.coreos.com/public-ipv6, backend-v6-data
//	flannel.alpha.coreos.com/x-weft               what else the node receives and sends on (ours alone)
//
// Nodes are large (images, conditions, managed fields) and change with every heartbeat, while a peer is a few
// hundred bytes that hardly ever change. So the store asks for protobuf, streams it, and reads the few
// fields it needs straight from the wire: no Node object is ever built, and nothing of it is kept but a
// record. Of client-go it uses what knows credentials; the typed clients would double the program.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weftnet/weft/internal/conffile"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/storehealth"
)

// A Config says how to reach the API server and which Node is ours. Zero durations stand for the defaults.
type Config struct {
	APIURL     *url.URL // nil: from the kubeconfig file, or else the cluster this pod is in
	Kubeconfig string   // file; empty: none

	NodeName              string // empty: the node of the pod below
	PodName, PodNamespace string

	Prefix      string // of annotations, as keys begin: "flannel.alpha.coreos.com/"
	NetConfFile string
	Services    []netip.Prefix // ranges of the cluster's services, as far as they are known

	// SetCondition makes SetReady keep the Node's condition NetworkUnavailable false.
	SetCondition bool

	RequestTimeout time.Duration // of a single request; 10 s
	rewriteGap     time.Duration // least time between writes that others provoke; 1 s, doubling
}

// Stats says how the store is doing.
type Stats = storehealth.Stats

// A Store keeps the leases of one network in Node objects, for one node. It implements lease.Store.
// Everything but Watch and WatchConfig waits for Run, which follows the own Node. Its watching methods return
// the context's error when that ends.
type Store struct {
	cfg     Config
	keys    keys
	base    *url.URL
	client  atomic.Pointer[http.Client]
	renewed atomic.Int64 // when the client was made, Unix seconds
	health  *storehealth.Health
	log     *slog.Logger

	ready chan struct{} // closed by SetReady
	once  sync.Once     // closes ready

	own *own

	mu     sync.Mutex   // guards what follows
	mine   *publication // what this process published last
	warned string       // the warning that was made an Event last
	mute   bool         // Events are not allowed
}

var _ lease.Store = (*Store)(nil)

// New returns a store for one node. It reads the credentials and opens no connection: the API server may
// be down.
func New(cfg Config, log *slog.Logger) (*Store, error) {
	if cfg.NodeName == "" && (cfg.PodName == "" || cfg.PodNamespace == "") {
		return nil, errors.New("the name of this node is unknown: set NODE_NAME, or POD_NAME and POD_NAMESPACE, in the environment, or give --node-name")
	}
	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = 10 * time.Second
	}
	if cfg.rewriteGap == 0 {
		cfg.rewriteGap = time.Second
	}
	base, client, err := connect(cfg)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	s := &Store{
		cfg: cfg, keys: keys{cfg.Prefix}, base: base, log: log,
		health: storehealth.New("API server", log, func(error) bool { return false }),
		ready:  make(chan struct{}), own: newOwn(cfg.NodeName),
	}
	s.client.Store(client)
	s.renewed.Store(time.Now().Unix())
	return s, nil
}

// Close drops idle connections. Annotations stay.
func (s *Store) Close() error {
	s.client.Load().CloseIdleConnections()
	return nil
}

// Stats returns how the store is doing.
func (s *Store) Stats() Stats { return s.health.Stats() }

// SetReady says that the node's network works, which the Node's conditions should tell the scheduler.
func (s *Store) SetReady() { s.once.Do(func() { close(s.ready) }) }

// Run follows the own Node until ctx ends, and calls changed when anything that Hints or Acquire depend on
// is new. It must run once, beside all other methods.
func (s *Store) Run(ctx context.Context, changed func()) error {
	name, err := s.findNode(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.follow(ctx, "watch own node", "metadata.name="+name, s.own.feed(s, changed)) })
	if s.cfg.SetCondition {
		g.Go(func() error { return s.keepCondition(ctx) })
	}
	return g.Wait()
}

// WatchConfig implements lease.Store: the configuration is a file here, usually of a ConfigMap.
func (s *Store) WatchConfig(ctx context.Context, f func(raw []byte)) error {
	return conffile.Watch(ctx, s.cfg.NetConfFile, s.log, f)
}
