package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

// quiet measures for how long transfers stand still while nothing changes: with a busy machine, and an agent that
// carries the packets, they do.
func (w *turning) quiet() {
	begin := time.Now()
	rest(w.ctx, quietTime)
	now := time.Duration(0)
	for _, tr := range w.transfers {
		stall, _ := tr.Longest(begin, time.Now())
		now = max(now, stall.Took)
	}
	w.steady, w.before = max(now, w.before), now
}

// verdict says what became of the traffic since the last one, and fails the test if a datagram was lost for
// which there is no excuse, or if a transfer stood still.
func (w *turning) verdict(what string, excused func(lab.Gap) bool) {
	w.t.Helper()
	end := time.Now()
	rest(w.ctx, lab.Settle)
	begin := w.from
	w.from = end
	var text []string
	for _, m := range []struct {
		name string
		*lab.Mesh
	}{{"small", w.mesh}, {"8 kB", w.large}} {
		tally := w.tally(m.Mesh, begin, end, excused)
		text = append(text, fmt.Sprintf("%s: %d of %d lost on %d streams of %.0f Hz", m.name, tally.Lost, tally.Sent, tally.Streams, tally.Rate(end.Sub(begin))))
		if tally.Lost > 0 {
			text = append(text, fmt.Sprintf("in %d gaps of up to %v", len(tally.Gaps), tally.Longest().Round(time.Millisecond)))
		}
		if excused != nil {
			tally.Gaps = slices.DeleteFunc(tally.Gaps, excused)
		}
		if len(tally.Gaps) > 0 || tally.Doubled > 0 || excused == nil && tally.Lost > 0 {
			w.t.Errorf("%s: %s: %d datagrams lost, %d doubled%s", what, m.name, tally.Lost, tally.Doubled, w.explain(tally))
		}
	}
	for _, tr := range w.transfers {
		stall, err := tr.Longest(begin, end)
		meanwhile, _ := w.control.Longest(stall.Begin, stall.Begin.Add(stall.Took))
		busy := w.agents.between(stall.Begin, stall.Begin.Add(stall.Took))
		allowed := stallLimit + max(meanwhile.Took, w.steady, busy)
		again, _ := tr.Retransmits() // a broken connection is told below
		text = append(text, fmt.Sprintf("TCP %s: longest stall %v, in a pod itself %v then, agents waited %v for processors, %d segments sent again", tr.Name,
			stall.Took.Round(time.Millisecond), meanwhile.Took.Round(time.Millisecond), busy.Round(time.Millisecond), again-w.again[tr]))
		w.again[tr] = again
		if err != nil || stall.Took > allowed && excused == nil {
			w.t.Errorf("%s: TCP %s: stood still for %v at %s, a transfer in a pod for %v, agents waited %v for processors, and this one stood still for up to %v while nothing changed; %v\n%s", what, tr.Name,
				stall.Took.Round(time.Millisecond), stall.Begin.Format("15:04:05.000"), meanwhile.Took.Round(time.Millisecond), busy.Round(time.Millisecond), w.steady.Round(time.Millisecond), err, w.drops())
		}
	}
	w.t.Logf("%s: %s", what, strings.Join(text, "; "))
}

// tally is Mesh.Tally for a busy machine: what seems lost is so only if it is that for a while.
func (w *turning) tally(m *lab.Mesh, begin, end time.Time, excused func(lab.Gap) bool) lab.Tally {
	for {
		t := m.Tally(begin, end)
		lost := slices.ContainsFunc(t.Gaps, func(g lab.Gap) bool { return excused == nil || !excused(g) })
		if !lost || time.Since(end) > patience || w.ctx.Err() != nil {
			return t
		}
		rest(w.ctx, lab.Settle)
	}
}

// explain shows the first losses, and what happened around them.
func (w *turning) explain(t lab.Tally) string {
	var b strings.Builder
	for i, g := range t.Gaps {
		if i == 20 {
			fmt.Fprintf(&b, "\n... and %d more", len(t.Gaps)-i)
			break
		}
		fmt.Fprintf(&b, "\n%v", g)
	}
	for what, n := range t.Errors {
		fmt.Fprintf(&b, "\n%d times since the start: %s", n, what)
	}
	if len(t.Gaps) > 0 {
		begin := slices.MinFunc(t.Gaps, func(a, b lab.Gap) int { return a.Begin.Compare(b.Begin) }).Begin
		end := slices.MaxFunc(t.Gaps, func(a, b lab.Gap) int { return a.End.Compare(b.End) }).End
		fmt.Fprintf(&b, "\n%s", w.leases.between(begin.Add(-2*time.Second), end.Add(time.Second)))
		b.WriteString(w.drops())
	}
	return b.String()
}

// counters shows what a node has dropped since it is there.
const counters = `grep -H . /sys/class/net/*/statistics/*_dropped /sys/class/net/*/statistics/*_errors | grep -v ':0$'
nstat -as | grep -E 'Err|Discard|NoPorts|Fail|Drop' | grep -v ' 0 '
echo`

// resent shows what TCP of a pod has lost or thought lost.
const resent = `nstat -as | grep -E 'Retrans|Timeout|Csum|LossProbe|Spurious|DSACK' | grep -v ' 0 '
echo`

// drops shows what nodes and their tunnels have dropped, and what the machine had no time for (the second
// column of softnet_stat, a line per CPU).
func (w *turning) drops() string {
	var b strings.Builder
	for _, n := range w.Nodes {
		_, metrics, _ := n.Agent.Get(w.ctx, "/metrics") // without an agent: nothing to show
		out, err := n.Exec(w.ctx, "sh", "-c", counters)
		if err != nil {
			return err.Error()
		}
		for line := range strings.Lines(metrics) {
			if strings.HasPrefix(line, "weft_tunnel_dropped_total") && !strings.HasSuffix(line, " 0\n") {
				out += line
			}
		}
		tcp, err := w.pods[n.Name].Exec(w.ctx, "sh", "-c", resent)
		if err != nil {
			return err.Error()
		}
		fmt.Fprintf(&b, "dropped on %s:\n%sin its pod:\n%s", n.Name, out, tcp)
	}
	stat, _ := os.ReadFile("/proc/net/softnet_stat") // cannot fail
	for line := range strings.Lines(string(stat)) {
		fmt.Fprintf(&b, "softnet: dropped %s\n", strings.Fields(line)[1])
	}
	return b.String()
}
