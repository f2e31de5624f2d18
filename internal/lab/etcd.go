package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// Etcd is the lab's store, a process of its own on a machine of its own.
type Etcd struct {
	lab     *Lab
	machine process
	addr    netip.Addr
}

// Prefix is the key prefix that agents use unless told otherwise.
const Prefix = "/coreos.com/network"

const etcdPort = 2379

// Endpoint is where the nodes reach etcd.
func (e *Etcd) Endpoint() string {
	return "http://" + netip.AddrPortFrom(e.addr, etcdPort).String()
}

// Start starts etcd, with the data it had if it ran before, and waits until it answers.
func (e *Etcd) Start(ctx context.Context) error {
	if _, running := recorded(e.recordFile()); running {
		return errors.New("etcd is running already")
	}
	log, err := os.OpenFile(e.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"etcd", "--data-dir=" + e.lab.file("etcd", "data"), "--listen-client=" + e.Endpoint()}
	cmd := exec.Command(e.lab.Options.Weft, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	if _, err := start(cmd, e.machine.inside, e.recordFile()); err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	return e.waitReady(ctx)
}

func (e *Etcd) waitReady(ctx context.Context) error {
	for {
		if _, running := recorded(e.recordFile()); !running {
			return fmt.Errorf("etcd has ended; its last lines:\n%s", logTail(e.LogFile(), 15))
		}
		conn, err := e.machine.dial(ctx, "tcp", strings.TrimPrefix(e.Endpoint(), "http://"))
		if err == nil {
			return conn.Close()
		}
		if sleep(ctx, pollEvery) != nil {
			return fmt.Errorf("etcd does not answer (%w); its last lines:\n%s", err, logTail(e.LogFile(), 15))
		}
	}
}

// Stop ends etcd; its data stays.
func (e *Etcd) Stop() error {
	p, running := recorded(e.recordFile())
	if !running {
		return nil
	}
	return p.stop(stopGrace)
}

// Kill ends etcd with SIGKILL; its data stays.
func (e *Etcd) Kill() error {
	p, running := recorded(e.recordFile())
	if !running {
		return nil
	}
	_, err := p.signal(unix.SIGKILL, killWait)
	return err
}

// LogFile is where everything goes that etcd prints.
func (e *Etcd) LogFile() string { return e.lab.file("etcd", "etcd.log") }

// Client connects to etcd, from etcd's own machine.
func (e *Etcd) Client() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints:   []string{e.Endpoint()},
		DialTimeout: 10 * time.Second,
		Logger:      zap.NewNop(), // what fails is in the errors
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return e.machine.dial(ctx, "tcp", addr)
		})},
	})
}

// With calls f with a connection to etcd.
func (e *Etcd) With(ctx context.Context, f func(context.Context, *clientv3.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	c, err := e.Client()
	if err != nil {
		return fmt.Errorf("connect to etcd: %w", err)
	}
	return errors.Join(f(ctx, c), c.Close())
}

// PutConfig writes the network configuration.
func (e *Etcd) PutConfig(ctx context.Context, config string) error {
	return e.Put(ctx, "config", config)
}

// Put writes a key below Prefix.
func (e *Etcd) Put(ctx context.Context, key, value string) error {
	return e.With(ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Put(ctx, Prefix+"/"+key, value)
		return err
	})
}

// Delete deletes a key below Prefix.
func (e *Etcd) Delete(ctx context.Context, key string) error {
	return e.With(ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Delete(ctx, Prefix+"/"+key)
		return err
	})
}

// leaseDirs are the parts of the tree below Prefix that hold leases: those that begin with an IPv4
// subnet, and those without one.
var leaseDirs = []string{"subnets/", "x-weft/subnets6/"}

// Leases returns all lease entries: the key below Prefix, and its value.
func (e *Etcd) Leases(ctx context.Context) (map[string]string, error) {
	leases := map[string]string{}
	err := e.With(ctx, func(ctx context.Context, c *clientv3.Client) error {
		for _, dir := range leaseDirs {
			resp, err := c.Get(ctx, Prefix+"/"+dir, clientv3.WithPrefix())
			if err != nil {
				return err
			}
			for _, kv := range resp.Kvs {
				leases[strings.TrimPrefix(string(kv.Key), Prefix+"/")] = string(kv.Value)
			}
		}
		return nil
	})
	return leases, err
}

// Compact throws away all history up to now, so that a watch that fell behind cannot go on.
func (e *Etcd) Compact(ctx context.Context) error {
	return e.With(ctx, func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Get(ctx, Prefix+"/config")
		if err != nil {
			return err
		}
		_, err = c.Compact(ctx, resp.Header.Revision, clientv3.WithCompactPhysical())
		return err
	})
}

func (e *Etcd) recordFile() string { return e.lab.file("etcd", "process-etcd.json") }

// Running says whether etcd's process exists.
func (e *Etcd) Running() bool {
	_, running := recorded(e.recordFile())
	return running
}
