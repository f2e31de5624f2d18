package agent

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftnet/weft/internal/plan"
	"github.com/weftnet/weft/internal/state"
	"github.com/weftnet/weft/internal/udptun"
)

// A Tunnel carries the packets of backends whose data plane is this process. It makes the device that a
// link of kind "tun" in the plan stands for. While complete is false nothing is taken away.
type Tunnel interface {
	Plan(want state.State, complete bool) []state.Change
	Apply(want state.State, complete bool) ([]state.Change, error)
	Stats() []udptun.Stats
	Ports() map[string]int // of the tunnels that run, by the name of the device
}

// applyTunnel comes before the kernel, which can only set up a device that is there.
func (a *Agent) applyTunnel(in inputs, p plan.Plan, out *outcome) {
	if a.parts.Tunnel == nil {
		return
	}
	changes, err := a.parts.Tunnel.Apply(p.State, in.complete)
	if err != nil && len(a.failed(in, p, nil)) > 0 {
		out.peers = append(out.peers, fmt.Errorf("tunnel: %w", err))
	} else if err != nil {
		out.broken = append(out.broken, fmt.Errorf("tunnel: %w", err))
	}
	out.changes = append(out.changes, changes...)
}

// tunnelCollector shows what tunnels have carried. There is nothing to show without one.
type tunnelCollector struct{ a *Agent }

// Describe implements prometheus.Collector. It sends nothing: the set depends on the peers.
func (tunnelCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c tunnelCollector) Collect(ch chan<- prometheus.Metric) {
	if c.a.parts.Tunnel == nil {
		return
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	packets := gauge("weft_tunnel_packets_total", "Packets carried, as they are on the wire, by peer and direction.", "dev", "peer", "direction")
	bytes := gauge("weft_tunnel_bytes_total", "Bytes of the packets carried, without outer headers.", "dev", "peer", "direction")
	spoofed := gauge("weft_tunnel_spoofed_total", "Packets of a peer that were not from its subnets.", "dev", "peer")
	dropped := gauge("weft_tunnel_dropped_total", "Packets not carried, by reason.", "dev", "reason")
	calls := gauge("weft_tunnel_calls_total", "System calls that moved packets; each moves many under load.", "dev", "call")
	errors := gauge("weft_tunnel_icmp_errors_total", "ICMP errors sent to pods.", "dev")
	for _, s := range c.a.parts.Tunnel.Stats() {
		for reason, n := range s.Drops {
			counter(dropped, n, s.Dev, reason)
		}
		for call, n := range map[string]uint64{"read": s.Reads, "send": s.Sends, "receive": s.Receives, "write": s.Writes} {
			counter(calls, n, s.Dev, call)
		}
		counter(errors, s.ICMP, s.Dev)
		for _, p := range s.Peers {
			peer := p.Addr.String()
			counter(packets, p.TxPackets, s.Dev, peer, "out")
			counter(packets, p.RxPackets, s.Dev, peer, "in")
			counter(bytes, p.TxBytes, s.Dev, peer, "out")
			counter(bytes, p.RxBytes, s.Dev, peer, "in")
			counter(spoofed, p.Spoofed, s.Dev, peer)
		}
	}
}
