// Package etcd keeps the leases of a network in etcd, in flannel's form, so that nodes of both share a
// cluster:
//
//	<prefix>/config                                   the network configuration
//	<prefix>/subnets/10.5.72.0-24                     a lease
//	<prefix>/subnets/10.5.72.0-24&fd05:0:0:6::-64     a lease of both families
//	<prefix>/x-weft/subnets6/fd05:0:0:6::-64          a lease without IPv4 (ours alone)
//	<prefix>/x-weft/alive/10.77.0.1                   a node is alive (ours alone)
//
// Whatever else stands under the string <prefix>/subnets, or is deleted there, makes every node of the
// original drop all its peers. What is ours alone therefore stands elsewhere.
//
// A lease key hangs on an etcd lease of a day. Each renewal is a put with a new etcd lease; the former one
// runs out empty. A key that hangs on none is a reservation and stays one.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/storehealth"
)

// A Store keeps the leases of one network in etcd, for one node. It implements lease.Store. Its watching
// methods return the context's error when that ends.
type Store struct {
	cfg     Config
	options clientv3.Config
	log     *slog.Logger
	keys    keys
	health  *storehealth.Health

	deniedOnce sync.Once // the missing right to write signs of life is told once

	dialer *dialer
	dial   chan struct{} // holding its one slot guards client
	client *clientv3.Client

	mu       sync.Mutex // guards what follows
	mine     mine
	begun    uint64    // writes of our lease so far
	writing  []*write  // those under way, in the order in which they began
	recalled *recalled // nil: none, or taken
}

// mine is the lease that this process published last.
type mine struct {
	lease    lease.Lease
	key      string
	revision int64  // of the write
	number   uint64 // of the write
}

var _ lease.Store = (*Store)(nil)

// New returns a store for one node. It reads the TLS files and opens no connection: etcd may be down.
func New(cfg Config, log *slog.Logger) (*Store, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	tls, err := cfg.tls()
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	if cfg.plaintext() {
		log.Warn("TLS files are given, but the endpoints say http: the connection is not encrypted", "endpoint", cfg.Endpoints[0])
	}
	d := &dialer{conns: map[*conn]bool{}}
	return &Store{
		cfg:    cfg,
		log:    log,
		keys:   keys{cfg.Prefix},
		dialer: d,
		dial:   make(chan struct{}, 1),
		options: clientv3.Config{
			Endpoints:   cfg.Endpoints,
			TLS:         tls,
			Username:    cfg.Username,
			Password:    cfg.Password.Reveal(),
			DialTimeout: cfg.RequestTimeout,

			// A peer that is gone without a word is noticed after their sum; 10 s is gRPC's least.
			DialKeepAliveTime:    10 * time.Second,
			DialKeepAliveTimeout: cfg.RequestTimeout,

			MaxUnaryRetries: 3, // the callers here retry with backoff and say so
			Logger:          zap.NewNop(),
			DialOptions: []grpc.DialOption{
				grpc.WithContextDialer(d.dial),
				grpc.WithConnectParams(grpc.ConnectParams{
					Backoff:           backoff.Config{BaseDelay: firstRetry, Multiplier: 2, Jitter: 0.2, MaxDelay: lastRetry},
					MinConnectTimeout: cfg.RequestTimeout,
				}),
				grpc.WithChainUnaryInterceptor(failFastUnary),
				grpc.WithChainStreamInterceptor(failFastStream),
			},
		},
		health: storehealth.New("etcd", log, unreachable),
	}, nil
}

// Close closes the connection. Leases stay. No method may be running or called later.
func (s *Store) Close() error {
	if s.client == nil {
		return nil
	}
	return s.client.Close()
}

// connection returns the client, made on first use: with a user name, making one asks etcd for a token.
func (s *Store) connection(ctx context.Context) (*clientv3.Client, error) {
	select {
	case s.dial <- struct{}{}:
		defer func() { <-s.dial }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s.client != nil {
		return s.client, nil
	}
	base, cancel := context.WithCancel(context.Background())
	stop := context.AfterFunc(ctx, cancel) // ctx ends the making of the client, not the client
	options := s.options
	options.Context = base
	c, err := clientv3.New(options)
	if !stop() {
		if err == nil {
			c.Close()
		}
		return nil, ctx.Err()
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("connect: %w", err)
	}
	s.client = c
	return c, nil
}

// errNoAnswer means that a request ran into its timeout, errSilent that a watch did.
var (
	errNoAnswer = errors.New("no answer")
	errSilent   = errors.New("etcd is silent")
)

// request runs f with the client and a context that ends with the timeout of one request.
func (s *Store) request(ctx context.Context, f func(context.Context, *clientv3.Client) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.RequestTimeout, fmt.Errorf("%w within %s", errNoAnswer, s.cfg.RequestTimeout))
	defer cancel()
	c, err := s.connection(ctx)
	if err == nil {
		err = f(ctx, c)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// The client asks gRPC to wait for a connection, and a request that then runs into its timeout hides why
// there is none. Failing at once tells: refused, unknown certificate authority, no route.
func failFastUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(false))...)
}

func failFastStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return stream(ctx, desc, cc, method, append(opts, grpc.WaitForReady(false))...)
}

// watchStream opens a raw watch stream. The client's own Watch resumes in silence; here an outage must be
// seen, told and paced.
func watchStream(ctx context.Context, c *clientv3.Client) (pb.Watch_WatchClient, error) {
	return pb.NewWatchClient(c.ActiveConnection()).Watch(clientv3.WithRequireLeader(ctx))
}
