package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/lab"
)

// A server echoes bytes in a pod and tells who connects.
type server struct {
	net.Listener
	clients chan *net.TCPConn
}

func serve(t *testing.T, p *lab.Pod, a netip.Addr) server {
	t.Helper()
	s := server{clients: make(chan *net.TCPConn, 8)}
	must(t, p.Do(func() (err error) {
		s.Listener, err = net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
		return err
	}))
	t.Cleanup(func() { _ = s.Close() })
	go func() {
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
			s.clients <- c.(*net.TCPConn)
			go func() {
				b := make([]byte, 1)
				for {
					if _, err := c.Read(b); err != nil {
						return
					}
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			}()
		}
	}()
	return s
}

// A talk is a connection on which one byte goes forth and back every 20 milliseconds.
type talk struct {
	conn, peer *net.TCPConn
	stop       chan struct{}
	ended      chan error
	exchanges  int
	longest    time.Duration // that one exchange took
}

// dial connects from a node's host namespace, from the given address if there is one.
func dial(t *testing.T, n *lab.Node, s server, from netip.Addr) (conn, peer *net.TCPConn) {
	t.Helper()
	must(t, n.Do(func() error {
		d := net.Dialer{Timeout: patience}
		if from.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		}
		c, err := d.Dial("tcp", s.Addr().String())
		if err == nil {
			conn = c.(*net.TCPConn)
		}
		return err
	}))
	t.Cleanup(func() { _ = conn.Close() })
	return conn, <-s.clients
}

func startTalk(t *testing.T, n *lab.Node, s server) *talk {
	t.Helper()
	k := &talk{stop: make(chan struct{}), ended: make(chan error, 1)}
	k.conn, k.peer = dial(t, n, s, netip.Addr{})
	go func() { k.ended <- k.run() }()
	return k
}

func (k *talk) run() error {
	b := make([]byte, 1)
	for tick := time.Tick(20 * time.Millisecond); ; {
		select {
		case <-k.stop:
			return nil
		case <-tick:
		}
		began := time.Now()
		err := k.conn.SetDeadline(began.Add(patience))
		if err == nil {
			_, err = k.conn.Write(b)
		}
		if err == nil {
			_, err = k.conn.Read(b)
		}
		if err != nil {
			return fmt.Errorf("after %d exchanges: %w", k.exchanges, err)
		}
		k.exchanges, k.longest = k.exchanges+1, max(k.longest, time.Since(began))
	}
}

// alive makes sure that the connection has not ended.
func (k *talk) alive(t *testing.T) {
	t.Helper()
	select {
	case err := <-k.ended:
		t.Fatalf("%s: %v", k.conn.LocalAddr(), err)
	default:
	}
}

func (k *talk) end(t *testing.T) {
	t.Helper()
	close(k.stop)
	if err := <-k.ended; err != nil {
		t.Errorf("%s: %v", k.conn.LocalAddr(), err)
	}
	again := retransmitted(t, k.conn) + retransmitted(t, k.peer)
	t.Logf("%s: %d exchanges, the longest took %v, %d segments sent again", k.conn.LocalAddr(), k.exchanges, k.longest.Round(time.Microsecond), again)
	if again > 0 && k.longest > 200*time.Millisecond { // the least that a lost segment costs (TCP_RTO_MIN)
		t.Errorf("%s: segments were lost", k.conn.LocalAddr())
	}
}

// retransmitted returns how many segments were sent again that the other end did not have: of those that it had, only
// late, it has said so (RFC 2883).
func retransmitted(t *testing.T, c *net.TCPConn) (n uint32) {
	t.Helper()
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = info.Total_retrans - min(info.Dsack_dups, info.Total_retrans)
		}
	}))
	must(t, err)
	return n
}

// held returns the addresses that are a node's own although no device has them.
func held(ctx context.Context, n *lab.Node) (string, error) {
	return n.Exec(ctx, "sh", "-ec", "ip route show table local proto 119; ip -6 route show table local proto 119")
}

// awaitHeld waits until a node holds that many addresses.
func awaitHeld(ctx context.Context, t *testing.T, n *lab.Node, want int) {
	t.Helper()
	eventually(t, 15*time.Second, n.Name+" holds its address", func() error {
		out, err := held(ctx, n)
		if got := strings.Count(out, "local "); err == nil && got != want {
			err = fmt.Errorf("want %d addresses, got %q", want, out)
		}
		return err
	})
}

func tunnels(ctx context.Context, n *lab.Node) (string, error) {
	return n.Exec(ctx, "sh", "-c", "ls /sys/class/net | grep flannel; true")
}

// TestHostConnectionsOutliveTheTunnel changes the backend to host-gw and back under connections that a node's own
// processes have opened to a pod of another node: their source is the address of a device that goes.
func TestHostConnectionsOutliveTheTunnel(t *testing.T) {
	for _, c := range []struct {
		name, family, backend string
		nftables              bool
	}{
		{"vxlan, IPv4, iptables", lab.IPv4, vxlan, false},
		{"vxlan, dual", lab.Dual, vxlan, true},
		{"udp, dual", lab.Dual, udp, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, l := up(t, lab.Options{Segments: [][]string{{"A", "B"}}, Family: c.family, Config: config(c.family, c.backend, c.nftables)})
			pods := addPods(ctx, t, l)
			eventually(t, 15*time.Second, "nodes know each other", func() error { return reaches(pods["A"], pods["B"]) })
			a, b, families := l.Nodes[0], l.Nodes[1], len(pods["B"].Addrs())
			var servers []server
			var talks []*talk
			for _, addr := range pods["B"].Addrs() {
				s := serve(t, pods["B"], addr)
				k := startTalk(t, a, s)
				servers, talks = append(servers, s), append(talks, k)
				if from := addrOf(k.conn.LocalAddr()); subnetOf(pods["A"], from).Addr() != from || addrOf(k.peer.RemoteAddr()) != from {
					t.Fatalf("from %s, seen as %s: not the tunnel's address", from, k.peer.RemoteAddr())
				}
			}
			awaitHeld(ctx, t, a, 0)

			must(t, l.Etcd().PutConfig(ctx, config(c.family, hostgw, c.nftables)))
			for _, n := range l.Nodes {
				eventually(t, 40*time.Second, "the tunnel is let go", func() error {
					out, err := tunnels(ctx, n)
					if err == nil && out != "" {
						err = fmt.Errorf("node %s has %q", n.Name, out)
					}
					return err
				})
			}
			gone := time.Now()
			awaitHeld(ctx, t, a, families)
			must(t, a.Agent.Kill())
			must(t, a.Agent.Start(ctx))
			awaitHeld(ctx, t, a, families)
			sh(ctx, t, b, "ip route flush table local proto 119; ip -6 route flush table local proto 119")
			awaitHeld(ctx, t, b, families)
			from := addrOf(talks[0].conn.LocalAddr())
			if _, peer := dial(t, a, servers[0], from); addrOf(peer.RemoteAddr()) != from {
				t.Errorf("a new connection from %s is seen as %s", from, peer.RemoteAddr())
			}
			for time.Since(gone) < 20*time.Second {
				for _, k := range talks {
					k.alive(t)
				}
				time.Sleep(100 * time.Millisecond)
			}

			must(t, l.Etcd().PutConfig(ctx, config(c.family, c.backend, c.nftables)))
			eventually(t, 20*time.Second, "pods are reached by the tunnel", func() error {
				out, err := a.Exec(ctx, "ip", "route", "get", pods["B"].Addr.V4.String())
				if err == nil && !strings.Contains(out, "dev flannel") {
					err = fmt.Errorf("route %q", out)
				}
				return err
			})
			awaitHeld(ctx, t, a, 0)
			time.Sleep(time.Second)
			for _, k := range talks {
				k.end(t)
			}
		})
	}
}

func addrOf(a net.Addr) netip.Addr { return a.(*net.TCPAddr).AddrPort().Addr().Unmap() }

// subnetOf returns the subnet that a pod's address of the family of a is from.
func subnetOf(p *lab.Pod, a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(p.Addr.V4, 24).Masked()
	}
	return netip.PrefixFrom(p.Addr.V6, 64).Masked()
}
