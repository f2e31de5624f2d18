package options

import (
	"fmt"
	"io"
)

// printUsage prints all flags in groups, each with what it takes, what it means and its default.
func printUsage(w io.Writer, groups []group) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
	p("Usage: flanneld [flags]\n\nJoins this node to the pod network.\n")
	for _, g := range groups {
		p("\n%s:\n", g.title)
		for _, f := range g.flags {
			p("  --%s", f.name)
			if f.arg != "" {
				p(" %s", f.arg)
			}
			p("\n        %s", f.usage)
			if f.def != "" && f.def != "false" {
				p(" (default %s)", f.def)
			}
			if f.alsoEnv != "" {
				p(" [$%s]", f.alsoEnv)
			}
			p("\n")
		}
	}
	p("\nOne dash or two. Each flag can be set by the variable FLANNELD_ and its name in upper case with _ for -,\n" +
		"such as FLANNELD_PUBLIC_IP; the command line wins.\n")
}
