package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/weftnet/weft/internal/lease/storehealth"
	"github.com/weftnet/weft/internal/plan"
)

// metrics are what operators scrape. Gauges are read from the status when they are asked for, so that they
// cannot disagree with it.
type metrics struct {
	registry *prometheus.Registry
	passes   *prometheus.CounterVec
	duration prometheus.Histogram
	writes   *prometheus.CounterVec
	repairs  *prometheus.CounterVec
	errors   *prometheus.CounterVec
	events   *prometheus.CounterVec
}

func newMetrics(a *Agent) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		passes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_passes_total", Help: "Passes over the kernel state, by result.",
		}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "weft_pass_duration_seconds", Help: "How long a pass took.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 12),
		}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_kernel_writes_total", Help: "Objects written to the kernel, by kind and operation.",
		}, []string{"kind", "op"}),
		repairs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_repairs_total", Help: "Objects put right that something else had changed, by kind.",
		}, []string{"kind"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_errors_total", Help: "Failures met in passes: of the node as a whole, or of single peers.",
		}, []string{"scope"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_kernel_events_total", Help: "Notifications of the kernel that asked for a pass, by what they were about.",
		}, []string{"kind"}),
	}
	for _, k := range []string{"link", "address", "route", "neighbour", "fdb", "sysctl", "firewall", "file", "tunnel", "peer"} {
		m.repairs.WithLabelValues(k)
	}
	m.registry.MustRegister(m.passes, m.duration, m.writes, m.repairs, m.errors, m.events, statusCollector{a}, tunnelCollector{a}, waysCollector{a},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// pass counts one pass.
func (m *metrics) pass(out outcome, repair bool) {
	result := "ok"
	switch {
	case len(out.waits) > 0:
		result = "waiting"
	case len(out.broken)+len(out.peers) > 0:
		result = "error"
	}
	m.passes.WithLabelValues(result).Inc()
	m.duration.Observe(out.took.Seconds())
	m.errors.WithLabelValues("node").Add(float64(len(out.broken)))
	m.errors.WithLabelValues("peer").Add(float64(len(out.peers)))
	for _, c := range out.changes {
		m.writes.WithLabelValues(c.Kind, string(c.Op)).Inc()
		if repair {
			m.repairs.WithLabelValues(c.Kind).Inc()
		}
	}
}

// statusCollector shows the status as gauges.
type statusCollector struct{ a *Agent }

func gauge(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe implements prometheus.Collector. It sends nothing: the set of gauges depends on the status.
func (statusCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c statusCollector) Collect(ch chan<- prometheus.Metric) {
	st, in := c.a.Status(), c.a.inputs()
	put := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	put(gauge("weft_ready", "1 when the data path and the rules are in place."), number(st.Ready))
	put(gauge("weft_leases", "Leases in the store, the own one included."), float64(len(in.leases)))
	put(gauge("weft_store_synced", "1 when the lease set comes from the store, 0 when from the snapshot or not at all."),
		number(in.complete))
	if !st.LastPass.IsZero() {
		put(gauge("weft_last_pass_timestamp_seconds", "When the last pass began."), seconds(st.LastPass))
	}
	if !st.LastGood.IsZero() {
		put(gauge("weft_last_success_timestamp_seconds", "When the last pass began that left nothing to do."), seconds(st.LastGood))
	}
	peers := gauge("weft_peers", "Peers by family and by the way that packets take to them.", "family", "way")
	for k, n := range byWay(st.Paths) {
		put(peers, float64(n), k[0], k[1])
	}
	c.store(ch, st.Store)
}

func (c statusCollector) store(ch chan<- prometheus.Metric, s storehealth.Stats) {
	for _, m := range []struct {
		name, help string
		kind       prometheus.ValueType
		value      float64
	}{
		{"weft_store_connected", "1 when the watch of the leases stands.", prometheus.GaugeValue, number(s.Connected)},
		{"weft_store_last_sync_timestamp_seconds", "When the store last told the state of the leases.", prometheus.GaugeValue, seconds(s.LastSync)},
		{"weft_store_bad_keys", "Entries left out because they do not parse.", prometheus.GaugeValue, float64(s.BadKeys)},
		{"weft_store_watch_restarts_total", "Watches broken and begun again.", prometheus.CounterValue, float64(s.WatchRestarts)},
		{"weft_store_lists_total", "Complete listings of the leases.", prometheus.CounterValue, float64(s.Lists)},
		{"weft_store_requests_failed_total", "Requests that failed and were tried again.", prometheus.CounterValue, float64(s.RequestsFailed)},
	} {
		ch <- prometheus.MustNewConstMetric(gauge(m.name, m.help), m.kind, m.value)
	}
}

func byWay(paths []plan.Path) map[[2]string]int {
	n := map[[2]string]int{}
	for _, p := range paths {
		way := "none"
		if p.Way != nil {
			way = p.Way.Name
		}
		n[[2]string{p.Family.String(), way}]++
	}
	return n
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// seconds returns t as Prometheus wants it, 0 for never.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
