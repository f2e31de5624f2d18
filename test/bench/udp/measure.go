package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

// A measurement puts numbers into a network's results.
type measurement struct {
	name string
	run  func(context.Context, *network, time.Duration) error
}

func measurements() []measurement {
	return []measurement{
		{"TCP stream", stream},
		{"UDP, 1400 bytes", datagrams("1400", "64M")},
		{"UDP, 64 bytes", datagrams("64", "64M")},
		{"TCP request and response", roundTrips},
	}
}

// What is measured, in the order of the report; more is better unless less is said to be.
var figures = []struct {
	name, unit string
	less       bool
}{
	{"TCP stream", "Gbit/s", false},
	{"CPU of agents, per Gbit", "ms", true},
	{"CPU of agents and iperf3, per Gbit", "ms", true},
	{"UDP 1400 bytes received", "kpps", false},
	{"UDP 64 bytes received", "kpps", false},
	{"TCP_RR median", "us", true},
	{"TCP_RR 99 %", "us", true},
}

func (n *network) add(figure string, v float64) { n.results[figure] = append(n.results[figure], v) }

// An iperf is what iperf3 -J prints, as far as it is used.
type iperf struct {
	Error string `json:"error"`
	End   struct {
		Received struct {
			BitsPerSecond float64 `json:"bits_per_second"`
			Bytes         float64 `json:"bytes"`
		} `json:"sum_received"`
		Sum struct {
			Seconds float64 `json:"seconds"`
			Packets float64 `json:"packets"`
			Lost    float64 `json:"lost_packets"`
		} `json:"sum"`
		CPU struct {
			Host   float64 `json:"host_total"`
			Remote float64 `json:"remote_total"`
		} `json:"cpu_utilization_percent"`
	} `json:"end"`
}

// iperf3 runs one client against one server. cubic is named because machines with another default and
// without its queueing discipline measure that instead.
func (n *network) iperf3(ctx context.Context, d time.Duration, args ...string) (r iperf, err error) {
	ctx, cancel := context.WithTimeout(ctx, d+20*time.Second)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		_, err := n.to.Exec(ctx, "iperf3", "-s", "-1")
		served <- err
	}()
	defer func() {
		cancel()
		<-served
	}()
	args = append([]string{"-J", "-c", n.to.Addr.V4.String(), "-t", fmt.Sprint(d.Seconds())}, args...)
	for {
		out, execErr := n.from.Exec(ctx, "iperf3", args...)
		r = iperf{}
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			return r, errors.Join(execErr, err)
		}
		if execErr == nil && r.Error == "" {
			return r, nil
		}
		if !strings.Contains(r.Error, "refused") || ctx.Err() != nil { // refused: the server is not up yet
			return r, fmt.Errorf("iperf3: %s: %w", r.Error, execErr)
		}
	}
}

func stream(ctx context.Context, n *network, d time.Duration) error {
	before, err := n.agentCPU()
	if err != nil {
		return err
	}
	r, err := n.iperf3(ctx, d, "-C", "cubic")
	if err != nil {
		return err
	}
	after, err := n.agentCPU()
	if err != nil {
		return err
	}
	gbit := r.End.Received.Bytes * 8 / 1e9
	agents := (after - before).Seconds() * 1000
	programs := (r.End.CPU.Host + r.End.CPU.Remote) / 100 * d.Seconds() * 1000
	n.add("TCP stream", r.End.Received.BitsPerSecond/1e9)
	n.add("CPU of agents, per Gbit", agents/gbit)
	n.add("CPU of agents and iperf3, per Gbit", (agents+programs)/gbit)
	return nil
}

// datagrams sends as fast as one process can and counts what arrives.
func datagrams(size, buffer string) func(context.Context, *network, time.Duration) error {
	return func(ctx context.Context, n *network, d time.Duration) error {
		r, err := n.iperf3(ctx, d, "-u", "-b", "0", "-l", size, "-w", buffer)
		if err != nil && strings.Contains(err.Error(), "socket buffer") {
			r, err = n.iperf3(ctx, d, "-u", "-b", "0", "-l", size)
		}
		if err != nil {
			return err
		}
		n.add("UDP "+size+" bytes received", (r.End.Sum.Packets-r.End.Sum.Lost)/r.End.Sum.Seconds/1000)
		return nil
	}
}

// agentCPU is what the agents of both nodes have used so far.
func (n *network) agentCPU() (time.Duration, error) {
	var sum time.Duration
	for _, node := range n.lab.Nodes {
		d, err := cpu(node)
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

// cpu reads utime and stime (proc_pid_stat(5)), which count in hundredths of a second.
func cpu(n *lab.Node) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.Agent.PID()))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ") // the name may hold spaces
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0, errors.New("short stat")
	}
	u, err1 := strconv.Atoi(f[11])
	s, err2 := strconv.Atoi(f[12])
	return time.Duration(u+s) * 10 * time.Millisecond, errors.Join(err1, err2)
}
