// Package etcdserver runs the real etcd inside a process: for one machine, the lab, tests and a first try.
// It is linked into weft and never into flanneld.
package etcdserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// Options say what to run. The zero value, with a data directory, is one member on loopback.
type Options struct {
	DataDir string // made if absent, with mode 0700

	Name            string   // of this member; DefaultName if empty
	ListenClient    []string // URLs; http://127.0.0.1:2379 if empty
	ListenPeer      []string // URLs; http://127.0.0.1:2380 if empty
	AdvertiseClient []string // URLs that clients reach this member at; ListenClient if empty
	AdvertisePeer   []string // URLs that members reach this one at; ListenPeer if empty
	InitialCluster  string   // "a=http://10.0.0.1:2380,b=http://10.0.0.2:2380"; this member alone if empty
	Join            bool     // the cluster exists already and knows of this member

	Client, Peer TLS

	// Volatile leaves out fsync and hashes passwords cheaply: for tests and labs, where all is quick and a
	// power cut may lose data.
	Volatile bool
}

// TLS names PEM files. A CA makes the clients' certificates obligatory.
type TLS struct{ CertFile, KeyFile, CAFile string }

// DefaultName is the name of a member that is given none. etcd warns of its own, "default".
const DefaultName = "weft"

// A Server is a running etcd.
type Server struct {
	etcd  *embed.Etcd
	close sync.Once // etcd's own Close panics when called twice
	quiet atomic.Bool

	mu   sync.Mutex     // guards what follows
	grpc []*grpc.Server // that etcd serves clients with
}

// grace is how long requests that are under way at Close may take. etcd itself waits 7 s for watches, which
// never end.
const grace = 200 * time.Millisecond

// Start runs etcd and returns when it serves clients, fails, or ctx ends. Later, ctx means nothing.
func Start(ctx context.Context, o Options, log *slog.Logger) (*Server, error) {
	s := &Server{}
	cfg, err := o.config(bridge(log, &s.quiet))
	if err != nil {
		return nil, fmt.Errorf("etcd server: %w", err)
	}
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("etcd server: data directory: %w", err)
	}
	cfg.ServiceRegister = func(g *grpc.Server) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.grpc = append(s.grpc, g)
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("etcd server: %w", err)
	}
	s.etcd = e
	select {
	case <-e.Server.ReadyNotify():
		return s, nil
	case err = <-e.Err():
	case <-e.Server.StopNotify():
		err = errors.New("stopped while starting")
	case <-ctx.Done():
		err = fmt.Errorf("not ready yet: %w", ctx.Err())
	}
	s.Close()
	return nil, fmt.Errorf("etcd server: %w", err)
}

// Wait returns when ctx ends, which is no error, or when the server ends by itself.
func (s *Server) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.etcd.Err():
		return fmt.Errorf("etcd server: %w", err)
	case <-s.etcd.Server.StopNotify():
		return errors.New("etcd server: stopped")
	}
}

// Endpoints returns the URLs that clients connect to. A port 0 asked for is the port got.
func (s *Server) Endpoints() []string {
	var urls []string
	for _, l := range s.etcd.Clients {
		u := url.URL{Scheme: "http", Host: l.Addr().String()}
		if !s.etcd.Config().ClientTLSInfo.Empty() {
			u.Scheme = "https"
		}
		urls = append(urls, u.String())
	}
	return urls
}

// Close stops the server and waits for it. It is safe to call twice.
func (s *Server) Close() {
	s.close.Do(func() {
		cut := time.AfterFunc(grace, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, g := range s.grpc {
				g.Stop()
			}
		})
		defer cut.Stop()
		s.quiet.Store(true)
		s.etcd.Close()
	})
}

// config returns etcd's configuration for o, with everything that is wrong with o.
func (o Options) config(log *zap.Logger) (*embed.Config, error) {
	cfg := embed.NewConfig()
	cfg.Dir, cfg.Name = o.DataDir, cmp.Or(o.Name, DefaultName)
	or := func(a, b []string) []string {
		if len(a) == 0 {
			return b
		}
		return a
	}
	clients := or(o.ListenClient, []string{embed.DefaultListenClientURLs})
	peers := or(o.ListenPeer, []string{embed.DefaultListenPeerURLs})
	var errs []error
	urls := func(field string, in []string) []url.URL {
		var out []url.URL
		for _, s := range in {
			u, err := url.Parse(s)
			if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
				errs = append(errs, fmt.Errorf("%s: %q is not like http://10.0.0.1:2379", field, s))
				continue
			}
			out = append(out, *u)
		}
		return out
	}
	cfg.ListenClientUrls = urls("listen-client", clients)
	cfg.ListenPeerUrls = urls("listen-peer", peers)
	cfg.AdvertiseClientUrls = urls("advertise-client", or(o.AdvertiseClient, clients))
	cfg.AdvertisePeerUrls = urls("advertise-peer", or(o.AdvertisePeer, peers))
	if o.DataDir == "" {
		errs = append(errs, errors.New("data-dir: none given"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}

	cfg.InitialCluster = o.InitialCluster
	if o.InitialCluster == "" {
		cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	}
	if o.Join {
		cfg.ClusterState = embed.ClusterStateFlagExisting
	}
	cfg.ClientTLSInfo, cfg.PeerTLSInfo = o.Client.info(), o.Peer.info()
	if o.Volatile {
		cfg.UnsafeNoFsync, cfg.BcryptCost = true, 4 // the least cost
	}

	// Leases are written a few times a day and node: an hour of history is plenty to resume a watch from.
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, time.Hour.String()
	cfg.EnableGRPCGateway = false
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(log)
	return cfg, nil
}

func (t TLS) info() transport.TLSInfo {
	return transport.TLSInfo{CertFile: t.CertFile, KeyFile: t.KeyFile, TrustedCAFile: t.CAFile, ClientCertAuth: t.CAFile != ""}
}
