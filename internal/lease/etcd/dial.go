package etcd

import (
	"context"
	"net"
	"strings"
	"sync"
)

// A dialer makes the connections to etcd and knows those that stand.
type dialer struct {
	mu    sync.Mutex // guards what follows
	conns map[*conn]bool
}

// A conn tells its dialer when it is closed.
type conn struct {
	net.Conn
	dialer *dialer
}

func (c *conn) Close() error {
	c.dialer.mu.Lock()
	delete(c.dialer.conns, c)
	c.dialer.mu.Unlock()
	return c.Conn.Close()
}

// dial is a dialer for gRPC, whose addresses are "host:port" or "unix:path".
func (d *dialer) dial(ctx context.Context, addr string) (net.Conn, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", strings.TrimPrefix(path, "//")
	}
	raw, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := &conn{raw, d}
	d.mu.Lock()
	d.conns[c] = true
	d.mu.Unlock()
	return c, nil
}

// Reconnect drops the connections to etcd; new ones are made at once. A connection from an address that this
// host has lost is dead, which TCP finds out only by waiting.
func (s *Store) Reconnect() {
	s.dialer.mu.Lock()
	var conns []*conn
	for c := range s.dialer.conns {
		conns = append(conns, c)
	}
	s.dialer.mu.Unlock()
	for _, c := range conns {
		_ = c.Close() // whoever reads from it is told
	}
}
