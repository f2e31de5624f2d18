package agent

import (
	"context"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftnet/weft/internal/plan"
	"github.com/weftnet/weft/internal/probe"
)

// Probing returns p as the agent uses it.
func Probing(p *probe.Prober) Prober { return prober{p} }

type prober struct{ p *probe.Prober }

func (b prober) Run(ctx context.Context, changed func()) error { return b.p.Run(ctx, changed) }

func (b prober) Set(probes []plan.Probe) {
	targets := make([]probe.Target, len(probes))
	for i, p := range probes {
		targets[i] = probe.Target{
			ID: probe.ID{Subnet: p.Subnet, Key: p.Key}, Dev: p.Dev, Src: p.Src, Dst: p.Dst, Size: p.Size,
		}
	}
	b.p.Set(targets)
}

func (b prober) Health() (map[plan.WayID]plan.Health, map[plan.WayID]string) {
	health, trouble := map[plan.WayID]plan.Health{}, map[plan.WayID]string{}
	for id, h := range b.p.Health() {
		way := plan.WayID{Subnet: id.Subnet, Key: id.Key}
		switch {
		case h.Called:
			health[way] = plan.Called
		case h.Verdict == probe.Good:
			health[way] = plan.Good
		case h.Try:
			health[way] = plan.Try
		case h.Verdict == probe.Dead:
			health[way] = plan.Dead
		}
		if h.Err != "" {
			trouble[way] = h.Err
		}
	}
	return health, trouble
}

func (b prober) Stats() (sent, answered uint64) {
	s := b.p.Stats()
	return s.Sent, s.Answered
}

// waysCollector shows which ways peers are reached by.
type waysCollector struct{ a *Agent }

// Describe implements prometheus.Collector. It sends nothing: the set depends on the peers.
func (waysCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c waysCollector) Collect(ch chan<- prometheus.Metric) {
	st := c.a.Status()
	use := gauge("weft_peer_way", "1 for the way that packets take to a peer, 0 for another that both ends have.", "subnet", "way")
	since := gauge("weft_peer_way_since_seconds", "When the way to a peer came into use.", "subnet")
	reason := gauge("weft_peer_way_reason", "1 for the reason why a peer is not reached by the preferred one of several ways.", "subnet", "reason")
	waiting := gauge("weft_peers_waiting", "Peers that are not reached by the preferred way, by reason.", "reason")
	several, reasons := false, map[string]int{}
	for _, p := range st.Paths {
		why := strings.ToValidUTF8(p.Reason, "?") // a label must be
		if p.Way != nil && why != "" {
			reasons[why]++
		}
		if p.Way == nil || len(p.Possible) < 2 {
			continue // there is nothing to tell, of thousands of peers
		}
		several = true
		for _, k := range p.Possible {
			ch <- prometheus.MustNewConstMetric(use, prometheus.GaugeValue, number(k == p.Way.Key), p.Subnet.String(), string(k))
		}
		ch <- prometheus.MustNewConstMetric(since, prometheus.GaugeValue, seconds(p.Since), p.Subnet.String())
		if why != "" {
			ch <- prometheus.MustNewConstMetric(reason, prometheus.GaugeValue, 1, p.Subnet.String(), why)
		}
	}
	for why, n := range reasons {
		ch <- prometheus.MustNewConstMetric(waiting, prometheus.GaugeValue, float64(n), why)
	}
	keys := gauge("weft_peers_on", "Peers by the key of the way in use.", "way")
	for k, n := range byKey(st.Paths) {
		ch <- prometheus.MustNewConstMetric(keys, prometheus.GaugeValue, float64(n), k)
	}
	if c.a.parts.Prober == nil || !several {
		return
	}
	sent, answered := c.a.parts.Prober.Stats()
	for name, n := range map[string]uint64{"sent": sent, "answered": answered} {
		d := gauge("weft_probes_total", "Echoes by which ways are probed.", "result")
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), name)
	}
}

func byKey(paths []plan.Path) map[string]int {
	n := map[string]int{}
	for _, p := range paths {
		if p.Way != nil {
			n[string(p.Way.Key)]++
		}
	}
	return n
}
