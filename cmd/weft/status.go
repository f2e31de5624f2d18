package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/agent"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/options"
	"github.com/weftnet/weft/internal/subnetfile"
)

// nodeFlags are the flags of every command that is about the node it runs on.
type nodeFlags struct {
	subnetFile string
	output     string
}

func (n *nodeFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&n.subnetFile, "subnet-file", subnetfile.DefaultPath, "the subnet file of the flanneld to ask")
	c.Flags().StringVarP(&n.output, "output", "o", "text", "output format: text or json")
	c.PreRunE = func(*cobra.Command, []string) error {
		if n.output != "text" && n.output != "json" {
			return fmt.Errorf("--output: %q is neither text nor json", n.output)
		}
		return nil
	}
}

// printJSON prints an empty list as one, not as null.
func printJSON(w io.Writer, v any) error {
	if l := reflect.ValueOf(v); l.Kind() == reflect.Slice && l.IsNil() {
		v = []struct{}{}
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// notRunning says whether err means that no agent listens.
func notRunning(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

func newStatusCommand() *cobra.Command {
	var nf nodeFlags
	c := &cobra.Command{
		Use:   "status",
		Short: "Show this node, its peers, the path to each and why",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			st, err := agent.NewClient(options.Socket(nf.subnetFile)).Status(c.Context())
			if notRunning(err) {
				return fmt.Errorf("no flanneld answers for %s on this host: %w", nf.subnetFile, err)
			}
			if err != nil {
				return err
			}
			if nf.output == "json" {
				return printJSON(c.OutOrStdout(), st)
			}
			return printStatus(c.OutOrStdout(), st)
		},
	}
	nf.add(c)
	return c
}

func printStatus(w io.Writer, st agent.Status) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "ready\t%s\n", either(st.Ready, "yes", "no"))
	for _, r := range st.Reasons {
		fmt.Fprintf(t, "\t%s\n", r)
	}
	for _, n := range st.Notes {
		fmt.Fprintf(t, "note\t%s\n", n)
	}
	if st.Node != "" {
		fmt.Fprintf(t, "node\t%s\n", st.Node)
	}
	if st.Backend != "" {
		fmt.Fprintf(t, "backend\t%s\n", st.Backend)
	}
	for _, n := range st.Networks {
		fmt.Fprintf(t, "network\t%s\n", n)
	}
	if u := st.Uplink; u.Name != "" {
		fmt.Fprintf(t, "uplink\t%s, MTU %d\n", u.Name, u.MTU)
	}
	if l := st.Lease; l != nil {
		for _, f := range family.All() {
			if !l.Has(f) {
				continue
			}
			fmt.Fprintf(t, "%s\tsubnet %s, public address %s\n", f, l.Subnet.Of(f), l.Public.Of(f))
		}
	}
	if st.MTU > 0 {
		fmt.Fprintf(t, "pod MTU\t%d\n", st.MTU)
	}
	if s := st.Store; !s.LastSync.IsZero() {
		fmt.Fprintf(t, "store\t%s, %d leases%s\n", either(s.Connected, "connected", "does not answer"), s.Leases, badKeys(s.BadKeys))
	}
	for _, line := range st.Progress {
		fmt.Fprintf(t, "ways\t%s\n", line)
	}
	if r := repairs(st.Repairs); r != "" {
		fmt.Fprintf(t, "repaired\t%s\n", r)
	}
	if !st.LastPass.IsZero() {
		fmt.Fprintf(t, "last pass\t%s ago, took %.1f ms\n", time.Since(st.LastPass).Round(time.Second), st.PassMS)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return printPaths(w, st)
}

func either(which bool, yes, no string) string {
	if which {
		return yes
	}
	return no
}

func badKeys(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", %d entries that are none", n)
}

// repairs lists what was put right since the agent started, by kind.
func repairs(n map[string]uint64) string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(n)) {
		parts = append(parts, fmt.Sprintf("%s %d", kind, n[kind]))
	}
	return strings.Join(parts, ", ")
}

func printPaths(w io.Writer, st agent.Status) error {
	if len(st.Paths) == 0 {
		_, err := fmt.Fprintln(w, "\nno peers")
		return err
	}
	fmt.Fprintf(w, "\n%d paths to peers, %d without a way\n", len(st.Paths), st.Unreached)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "SUBNET\tNODE\tPUBLIC\tWAY\tDEVICE\tSINCE\tPOSSIBLE\tREASON")
	for _, p := range st.Paths {
		way, dev := "none", "-"
		if p.Way != nil {
			way, dev = p.Way.Name, p.Way.Dev
		}
		node := p.Node
		if node == "" {
			node = "-"
		}
		since := "-"
		if !p.Since.IsZero() {
			since = time.Since(p.Since).Round(time.Second).String()
		}
		possible := make([]string, len(p.Possible))
		for i, k := range p.Possible {
			possible[i] = string(k)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Subnet, node, p.Public, way, dev, since, strings.Join(possible, " "), p.Reason)
	}
	return t.Flush()
}
