package demo

import (
	"fmt"
	"net/netip"
	"strings"
	"text/tabwriter"
)

// say prints a line. A demo that nobody can read is over, so write errors are left to the process's end.
func (s *show) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

func (s *show) heading(title, explanation string) {
	s.say("\n== %s %s%s", title, strings.Repeat("=", max(0, 72-len(title))), explanation)
	if explanation != "" {
		s.say("")
	}
}

func (s *show) table(rows [][]string) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(w, "  "+strings.Join(r, "\t"))
	}
	_ = w.Flush() // a Builder takes everything
	for line := range strings.Lines(b.String()) {
		s.say("%s", strings.TrimRight(line, " \n"))
	}
}

// expect notes a problem unless ok.
func (s *show) expect(ok bool, format string, args ...any) {
	if !ok {
		s.bad = append(s.bad, fmt.Errorf(format, args...))
	}
}

// check prints whether something is as it should be, and notes a problem unless ok.
func (s *show) check(ok bool, format string, args ...any) {
	s.expect(ok, "not so: "+format, args...)
	mark := "ok"
	if !ok {
		mark = "NOT SO"
	}
	s.say("  -> %s: %s", mark, fmt.Sprintf(format, args...))
}

func join(addrs []netip.Addr) string {
	var s []string
	for _, a := range addrs {
		s = append(s, a.String())
	}
	return strings.Join(s, "  ")
}
