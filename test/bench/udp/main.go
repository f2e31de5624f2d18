// Command udp measures the udp backend from pod to pod across two nodes of the lab, against kernel vxlan and,
// with WEFT_UPSTREAM_FLANNELD set, against the original's udp backend. All take turns in the same run, so
// that what else the machine does concerns them alike.
//
//	go run ./test/bench/udp -bin bin -rounds 5
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/lab"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "udp:", err)
		os.Exit(1)
	}
}

// A network is one lab with a pod on each of its two nodes.
type network struct {
	name     string
	lab      *lab.Lab
	from, to *lab.Pod
	results  map[string][]float64 // by what was measured, one per round
}

func run() error {
	bin := flag.String("bin", "bin", "directory of the binaries")
	rounds := flag.Int("rounds", 5, "rounds of everything")
	each := flag.Duration("time", 3*time.Second, "length of one measurement")
	only := flag.String("only", "", "leave out measurements whose names do not contain this")
	flag.Parse()
	if _, err := exec.LookPath("iperf3"); err != nil {
		return fmt.Errorf("iperf3 is missing (apt-get install iperf3): %w", err)
	}
	dir, err := filepath.Abs(*bin)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	networks, down, err := build(ctx, dir)
	defer down()
	if err != nil {
		return err
	}
	fmt.Printf("# %s, %d CPUs, %d rounds of %s, load %s\n\n", release(), runtime.NumCPU(), *rounds, *each, load())
	for range *rounds {
		for _, m := range measurements() {
			for _, n := range networks {
				if !strings.Contains(m.name, *only) {
					continue
				}
				if err := m.run(ctx, n, *each); err != nil {
					return fmt.Errorf("%s, %s: %w", n.name, m.name, err)
				}
			}
		}
	}
	report(networks)
	fmt.Printf("\nload at the end %s\n", load())
	return nil
}

// build makes the labs. Down removes those that were made, whatever the error.
func build(ctx context.Context, dir string) (networks []*network, down func(), err error) {
	kinds := []struct{ name, config, agent string }{
		{"weft udp", `{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"udp"}}`, ""},
		{"kernel vxlan", `{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}`, ""},
	}
	if p := os.Getenv("WEFT_UPSTREAM_FLANNELD"); p != "" {
		kinds = append(kinds, struct{ name, config, agent string }{"original udp", `{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}`, p})
	} else {
		fmt.Println("WEFT_UPSTREAM_FLANNELD is not set: the original is not measured beside it.")
	}
	down = func() {
		for _, n := range networks {
			if err := n.lab.Down(); err != nil {
				fmt.Fprintln(os.Stderr, "udp:", err)
			}
		}
	}
	for i, k := range kinds {
		l, err := lab.Up(ctx, lab.Options{
			Name: fmt.Sprintf("bench-udp-%d-%d", os.Getpid(), i), Segments: [][]string{{"A", "B"}}, Config: k.config,
			Weft: filepath.Join(dir, "weft"), Flannel: filepath.Join(dir, "flannel"),
			Flanneld: either(k.agent, filepath.Join(dir, "flanneld")),
		})
		if l != nil {
			networks = append(networks, &network{name: k.name, lab: l, results: map[string][]float64{}})
		}
		if err != nil {
			return networks, down, err
		}
		if err := networks[i].attach(ctx); err != nil {
			return networks, down, fmt.Errorf("%s: %w", k.name, err)
		}
	}
	return networks, down, nil
}

func either(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// attach makes the pods and waits until they reach each other.
func (n *network) attach(ctx context.Context) (err error) {
	if n.from, err = n.lab.Nodes[0].AddPod(ctx, "client"); err != nil {
		return err
	}
	if n.to, err = n.lab.Nodes[1].AddPod(ctx, "server"); err != nil {
		return err
	}
	for range 100 {
		if _, err = lab.Ping(n.from, n.to.Addr.V4, 200*time.Millisecond); err == nil {
			return nil
		}
	}
	return err
}

func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown kernel"
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}
