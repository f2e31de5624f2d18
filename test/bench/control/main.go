// Command control measures the agent: starts, changes, repairs and rest, on a node of the lab with
// thousands of leases in a real etcd. With WEFT_UPSTREAM_FLANNELD set, the original runs through the same
// starts and changes, turn by turn, in the same run.
//
//	go run ./test/bench/control -bin bin -peers 5000 -rounds 5
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/lab"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "control:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	lab    *lab.Lab
	node   *lab.Node
	nl     *netlink.Handle
	peers  int
	rounds int
}

func run() error {
	bin := flag.String("bin", "bin", "directory of the binaries")
	peers := flag.Int("peers", 5000, "leases of other nodes")
	rounds := flag.Int("rounds", 5, "rounds of each start")
	rest := flag.Duration("rest", time.Minute, "how long to watch an agent at rest")
	flag.Parse()
	dir, err := filepath.Abs(*bin)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	l, err := lab.Up(ctx, lab.Options{
		Name: fmt.Sprintf("bench-%d", os.Getpid()), Segments: [][]string{{"n1"}}, NoAgents: true,
		Config: `{"Network":"10.0.0.0/8","SubnetLen":24,"EnableNFTables":true,"Backend":{"Type":"vxlan"}}`,
		Weft:   filepath.Join(dir, "weft"), Flanneld: filepath.Join(dir, "flanneld"), Flannel: filepath.Join(dir, "flannel"),
	})
	if err != nil {
		return err
	}
	defer l.Down()
	b := &bench{lab: l, peers: *peers, rounds: *rounds}
	if b.node, err = l.Node("n1"); err != nil {
		return err
	}
	fmt.Printf("# %s, %d CPUs, %d leases, load %s\n\n", kernelRelease(), runtime.NumCPU(), b.peers, load())
	if err := b.preload(ctx); err != nil {
		return err
	}
	if err := b.starts(ctx, filepath.Join(dir, "flanneld")); err != nil {
		return err
	}
	if err := b.repairs(ctx); err != nil {
		return err
	}
	if err := b.atRest(ctx, *rest); err != nil {
		return err
	}
	return sizes(dir)
}

// preload writes the leases of the other nodes.
func (b *bench) preload(ctx context.Context) error {
	return b.lab.Etcd().With(ctx, func(ctx context.Context, c *clientv3.Client) error {
		for from := 0; from < b.peers; from += 100 {
			var ops []clientv3.Op
			for i := from; i < min(from+100, b.peers); i++ {
				ops = append(ops, clientv3.OpPut(lab.Prefix+"/subnets/"+peerKey(i), peerValue(i)))
			}
			if _, err := c.Txn(ctx).Then(ops...).Commit(); err != nil {
				return err
			}
		}
		return nil
	})
}

func peerKey(i int) string { return fmt.Sprintf("10.%d.%d.0-24", 100+i/256, i%256) }

func peerValue(i int) string {
	return fmt.Sprintf(`{"PublicIP":"192.168.%d.%d","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:%02x:%02x:01"}}`,
		i/250, i%250+1, i/256, i%256)
}

// A start is what one start of an agent took.
type start struct {
	wall, cpu time.Duration
	peakKiB   int
}

// starts measures cold starts and restarts, of ours and the original in turn.
func (b *bench) starts(ctx context.Context, ours string) error {
	agents := []struct{ name, path string }{{"weft", ours}}
	if p := os.Getenv("WEFT_UPSTREAM_FLANNELD"); p != "" {
		agents = append(agents, struct{ name, path string }{"original", p})
	} else {
		fmt.Println("WEFT_UPSTREAM_FLANNELD is not set: the original is not measured beside it.")
	}
	cold, warm := map[string][]start{}, map[string][]start{}
	for range b.rounds {
		for _, a := range agents {
			if err := b.reboot(); err != nil {
				return err
			}
			for _, into := range []map[string][]start{cold, warm} {
				s, err := b.start(ctx, a.path)
				if err != nil {
					return fmt.Errorf("%s: %w", a.name, err)
				}
				into[a.name] = append(into[a.name], s)
				if err := b.node.Agent.Stop(); err != nil {
					fmt.Println("note:", a.name, err) // the original may need to be killed
				}
			}
		}
	}
	fmt.Println("| start | agent | wall, best / median | CPU, median | peak memory |")
	fmt.Println("| --- | --- | --- | --- | --- |")
	for _, a := range agents {
		for _, kind := range []struct {
			name string
			of   map[string][]start
		}{{"cold, to the last route", cold}, {"restart, to ready", warm}} {
			ss := kind.of[a.name]
			wall := sorted(ss, func(s start) time.Duration { return s.wall })
			cpu := sorted(ss, func(s start) time.Duration { return s.cpu })
			peak := 0
			for _, s := range ss {
				peak = max(peak, s.peakKiB)
			}
			fmt.Printf("| %s | %s | %v / %v | %v | %d MB |\n", kind.name, a.name, ms(wall[0]), ms(quantile(wall, 0.5)), ms(quantile(cpu, 0.5)), peak/1024)
		}
	}
	fmt.Println()
	if err := b.reboot(); err != nil {
		return err
	}
	_, err := b.start(ctx, ours)
	return err
}

// reboot loses all kernel state of the node.
func (b *bench) reboot() error {
	if b.nl != nil {
		b.nl.Close()
	}
	if err := b.node.Reboot(); err != nil {
		return err
	}
	var err error
	b.nl, err = b.node.Netlink()
	return err
}

// start starts an agent and waits until it is ready and every peer has its route.
func (b *bench) start(ctx context.Context, path string) (start, error) {
	b.node.Agent.Binary = path
	began := time.Now()
	if err := b.node.Agent.Launch(); err != nil {
		return start{}, err
	}
	for {
		if b.node.Agent.Ready(ctx) == nil {
			if n, err := b.routes(); err != nil || n >= b.peers {
				break
			}
		}
		if ctx.Err() != nil || time.Since(began) > 2*time.Minute {
			return start{}, fmt.Errorf("no route to every peer in time:\n%s", b.node.Agent.LogTail(10))
		}
		time.Sleep(2 * time.Millisecond)
	}
	s := start{wall: time.Since(began)}
	u, err := usageOf(b.node.Agent.PID())
	s.cpu, s.peakKiB = u.cpu, u.peakKiB
	return s, err
}

// routes counts the routes to peers.
func (b *bench) routes() (int, error) {
	n := 0
	err := b.nl.RouteListFilteredIter(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
		if r.Dst != nil && r.Gw != nil {
			if ones, _ := r.Dst.Mask.Size(); ones == 24 {
				n++
			}
		}
		return true
	})
	return n, err
}

func sorted(ss []start, f func(start) time.Duration) []time.Duration {
	var ds []time.Duration
	for _, s := range ss {
		ds = append(ds, f(s))
	}
	slices.Sort(ds)
	return ds
}

// quantile returns the q-quantile of sorted durations.
func quantile(ds []time.Duration, q float64) time.Duration {
	return ds[min(int(q*float64(len(ds))), len(ds)-1)]
}

func ms(d time.Duration) time.Duration {
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}
