package etcd_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/etcdserver"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/etcd"
	"github.com/weftnet/weft/internal/lease/leasetest"
)

const patience = time.Minute

var (
	loopback = []string{"http://127.0.0.1:0"}
	discard  = slog.New(slog.DiscardHandler)
)

// start runs an etcd for the test and returns it with a client for the test's own meddling.
func start(t testing.TB, o etcdserver.Options) (*etcdserver.Server, *clientv3.Client) {
	t.Helper()
	if o.DataDir == "" {
		o.DataDir = t.TempDir()
	}
	if o.ListenClient == nil {
		o.ListenClient = loopback
	}
	o.ListenPeer, o.Volatile = loopback, true
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := etcdserver.Start(ctx, o, discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if o.Client.CertFile != "" {
		return s, nil
	}
	return s, dial(t, clientv3.Config{Endpoints: s.Endpoints()})
}

func dial(t testing.TB, cfg clientv3.Config) *clientv3.Client {
	t.Helper()
	cfg.Logger = zap.NewNop()
	c, err := clientv3.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// config is a configuration of a store for tests. A busy machine may take seconds over anything, and a node that
// does not renew its sign of life in two thirds of the time counts as gone.
func config(endpoint string) etcd.Config {
	return etcd.Config{Endpoints: []string{endpoint}, RequestTimeout: 10 * time.Second, LivenessTTL: 12 * time.Second}
}

func open(t *testing.T, cfg etcd.Config, log *slog.Logger) *etcd.Store {
	t.Helper()
	if log == nil {
		log = discard
	}
	s, err := etcd.New(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, c *clientv3.Client, key, value string, opts ...clientv3.OpOption) int64 {
	t.Helper()
	resp, err := c.Put(t.Context(), key, value, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

func get(t *testing.T, c *clientv3.Client, key string) *clientv3.GetResponse {
	t.Helper()
	resp, err := c.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		<-tick.C
	}
}

// logs is a log that a test reads.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logs) count(s string) int { return strings.Count(l.String(), s) }

// A proxy stands between stores and etcd.
type proxy struct {
	listener net.Listener

	mu     sync.Mutex // guards what follows
	target string
	refuse bool
	conns  map[net.Conn]bool // true: what comes from it is dropped in silence
}

const (
	pass   = false
	refuse = true
)

func newProxy(t *testing.T, endpoint string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, target: host(endpoint), conns: map[net.Conn]bool{}}
	go p.serve()
	t.Cleanup(func() {
		l.Close()
		p.set(refuse)
	})
	return p
}

func (p *proxy) endpoint() string { return "http://" + p.listener.Addr().String() }

func host(endpoint string) string { return endpoint[strings.Index(endpoint, "://")+3:] }

// set lets connections pass or refuses them, and breaks those that stand.
func (p *proxy) set(refuse bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = refuse
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

// stall makes the connections that stand go silent for ever, as a firewall that forgot them does. New ones
// pass.
func (p *proxy) stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		p.conns[c] = true
	}
}

// retarget breaks what stands and sends new connections to another server.
func (p *proxy) retarget(s *etcdserver.Server) {
	p.aim(s.Endpoints()[0])
	p.set(pass)
}

func (p *proxy) aim(endpoint string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = host(endpoint)
}

func (p *proxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		server, err := net.Dial("tcp", p.target)
		if err != nil || p.refuse {
			client.Close()
			if err == nil {
				server.Close()
			}
		} else {
			p.conns[client], p.conns[server] = false, false
			go p.copy(client, server)
			go p.copy(server, client)
		}
		p.mu.Unlock()
	}
}

func (p *proxy) copy(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		silent := p.conns[from]
		p.mu.Unlock()
		if silent {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// A cluster is the suite's etcd, which can be stopped and started again.
type cluster struct {
	t      *testing.T // whose end is the cluster's
	client *clientv3.Client
	proxy  *proxy
	dir    string
	start  func() (endpoint string)
	stop   func()
}

// up starts etcd over the cluster's directory.
func (c *cluster) up(t *testing.T) {
	endpoint := c.start()
	c.client = dial(c.t, clientv3.Config{Endpoints: []string{endpoint}})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := c.client.Get(ctx, "/", clientv3.WithSerializable()); err != nil {
		t.Fatal(err)
	}
	c.proxy.aim(endpoint)
}

// A backing is one network in the suite's etcd.
type backing struct {
	*cluster
	prefix string
}

func (b backing) Open(t *testing.T) lease.Store {
	cfg := config(b.proxy.endpoint())
	cfg.Prefix = b.prefix
	return open(t, cfg, nil)
}

func (b backing) SetConfig(t *testing.T, raw string) { put(t, b.client, b.prefix+"/config", raw) }

func (b backing) DeleteConfig(t *testing.T) { b.delete(t, b.prefix+"/config") }

func (b backing) delete(t *testing.T, key string) {
	if _, err := b.client.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
}

func (b backing) key(l lease.Lease) string {
	if !l.Subnet.V4.IsValid() {
		return b.prefix + "/x-weft/subnets6/" + lease.Name(l.Subnet)
	}
	return b.prefix + "/subnets/" + lease.Name(l.Subnet)
}

func (b backing) Put(t *testing.T, l lease.Lease, reserved bool) {
	value, err := etcd.Encode(l)
	if err != nil {
		t.Fatal(err)
	}
	var opts []clientv3.OpOption
	if !reserved {
		granted, err := b.client.Grant(t.Context(), 3600)
		if err != nil {
			t.Fatal(err)
		}
		opts = append(opts, clientv3.WithLease(granted.ID))
	}
	put(t, b.client, b.key(l), string(value), opts...)
}

func (b backing) Delete(t *testing.T, l lease.Lease) { b.delete(t, b.key(l)) }

func (b backing) Reserved(t *testing.T, l lease.Lease) bool {
	resp := get(t, b.client, b.key(l))
	return len(resp.Kvs) == 1 && resp.Kvs[0].Lease == 0
}

func (b backing) Corrupt(t *testing.T) {
	for key, value := range map[string]string{
		"/subnets/foo":                  "{}",
		"/subnets-meta/x":               "{}",
		"/subnets":                      "",
		"/subnets/10.5.1.0-24x":         `{"PublicIP":"192.0.2.77","PublicIPv6":null}`,
		"/subnets/10.5.1.9-24":          `{"PublicIP":"192.0.2.77","PublicIPv6":null}`,
		"/subnets/10.99.1.0-24":         "not JSON",
		"/subnets/10.99.2.0-24":         `{"PublicIP":7}`,
		"/subnets/10.99.3.0-24":         `{"PublicIP":"224.0.0.1","PublicIPv6":null}`,
		"/subnets/10.99.4.0-24":         "null",
		"/x-weft/subnets6/10.99.5.0-24": `{"PublicIP":"192.0.2.77","PublicIPv6":null}`,
		"/x-weft/alive/192.0.2.2":       "not JSON",
	} {
		put(t, b.client, b.prefix+key, value)
	}
	b.delete(t, b.prefix+"/subnets/foo")
}

func (b backing) Blackout(t *testing.T, during func()) {
	b.proxy.set(refuse)
	during()
	last := put(t, b.client, b.prefix+"/x-test", "")
	if _, err := b.client.Compact(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	b.proxy.set(pass)
}

func (b backing) SetBack(t *testing.T, lost, after func()) {
	backup := filepath.Join(t.TempDir(), "backup")
	b.proxy.set(refuse)
	b.stop()
	must(t, os.CopyFS(backup, os.DirFS(b.dir)))
	b.up(t)
	b.proxy.set(pass)
	lost()
	b.proxy.set(refuse)
	b.stop()
	must(t, os.RemoveAll(b.dir))
	must(t, os.CopyFS(b.dir, os.DirFS(backup)))
	b.up(t)
	after()
	b.proxy.set(pass)
}

func TestSuite(t *testing.T) {
	t.Parallel()
	var server *etcdserver.Server
	c := &cluster{t: t, dir: filepath.Join(t.TempDir(), "etcd"), stop: func() { server.Close() }}
	c.start = func() string {
		server, _ = start(t, etcdserver.Options{DataDir: c.dir})
		return server.Endpoints()[0]
	}
	c.run()
}

// TestSuiteWithTheInstalledEtcd runs the suite against whatever etcd this machine has, such as Debian's 3.4.
func TestSuiteWithTheInstalledEtcd(t *testing.T) {
	binary, err := exec.LookPath("etcd")
	if err != nil {
		t.Skip("SKIPPED: no etcd is installed here; the suite runs on the embedded one")
	}
	t.Parallel()
	endpoint, peer := freeURL(t), freeURL(t) // kept while it is stopped
	var server *exec.Cmd
	c := &cluster{t: t, dir: filepath.Join(t.TempDir(), "etcd"), stop: func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}}
	c.start = func() string {
		server = exec.Command(binary, "--data-dir", c.dir, "--listen-client-urls", endpoint, "--advertise-client-urls", endpoint,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		return endpoint
	}
	t.Cleanup(func() { c.stop() })
	c.run()
}

// freeURL returns the URL of a port that nobody listens on. It is of a loopback address that this process alone uses,
// so no other test's listener or connection comes to have the port before the server does.
func freeURL(t *testing.T) string {
	t.Helper()
	pid := os.Getpid() // 22 bits at most
	own := netip.AddrFrom4([4]byte{127, 64 + byte(pid>>16), byte(pid >> 8), byte(pid)})
	l, err := net.Listen("tcp", netip.AddrPortFrom(own, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// run runs the suite.
func (c *cluster) run() {
	c.proxy = newProxy(c.t, "http://127.0.0.1:1")
	c.up(c.t)
	leasetest.Run(c.t, func(t *testing.T) leasetest.Backing {
		return backing{c, "/" + strings.ReplaceAll(t.Name(), "/", "-") + "/net"}
	})
}
