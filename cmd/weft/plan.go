package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/agent"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/options"
	"github.com/weftnet/weft/internal/state"
)

func newPlanCommand() *cobra.Command {
	var nf nodeFlags
	var snapshotFile, config string
	c := &cobra.Command{
		Use:   "plan",
		Short: "Show what the agent would change on this node now",
		Long: "Show the difference between what this node should have and what its kernel has. Without a running\n" +
			"agent the last snapshot says what the node should have. With --config, show what another network\n" +
			"configuration would change on this node and on the way to each peer. Nothing is changed.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if config != "" {
				return previewConfig(c, nf, config)
			}
			changes, err := pendingChanges(c.Context(), nf.subnetFile, snapshotFile)
			if err != nil {
				return err
			}
			if nf.output == "json" {
				return printJSON(c.OutOrStdout(), changes)
			}
			return printChanges(c.OutOrStdout(), changes)
		},
	}
	nf.add(c)
	c.Flags().StringVar(&config, "config", "", "a network configuration (net-conf.json) to look at, - for standard input; needs a running flanneld")
	c.Flags().StringVar(&snapshotFile, "snapshot-file", "", "the snapshot to use without an agent (default: that of the subnet file)")
	return c
}

// pendingChanges asks the agent, or the snapshot when none runs.
func pendingChanges(ctx context.Context, subnetFile, snapshotFile string) ([]state.Change, error) {
	changes, err := agent.NewClient(options.Socket(subnetFile)).Plan(ctx)
	if !notRunning(err) {
		return changes, err
	}
	return agent.Offline(subnetFile, snapshotFile, slog.New(slog.DiscardHandler))
}

// previewConfig shows what the configuration in a file would do.
func previewConfig(c *cobra.Command, nf nodeFlags, file string) error {
	raw, err := readConfig(c.InOrStdin(), file)
	if err != nil {
		return err
	}
	v, err := agent.NewClient(options.Socket(nf.subnetFile)).Preview(c.Context(), raw)
	if notRunning(err) {
		return fmt.Errorf("no flanneld answers for %s on this host: %w", nf.subnetFile, err)
	}
	if err != nil {
		return err
	}
	if nf.output == "json" {
		return printJSON(c.OutOrStdout(), v)
	}
	return printPreview(c.OutOrStdout(), v)
}

func printPreview(w io.Writer, v agent.Preview) error {
	for _, warning := range v.Warnings {
		fmt.Fprintln(w, "warning: "+warning)
	}
	if v.Refused != "" {
		_, err := fmt.Fprintln(w, "not followed while flanneld runs; what is in force stays: "+v.Refused)
		return err
	}
	fmt.Fprintln(w, "At once, on this node:")
	if err := printChanges(w, v.Changes); err != nil {
		return err
	}
	if v.MTU[0] != v.MTU[1] {
		fmt.Fprintf(w, "MTU of new pods %d => %d\n", v.MTU[0], v.MTU[1])
	}
	fmt.Fprintf(w, "peers are told: receives on %s; sends on %s\n", words(v.Receive), words(v.Send))
	fmt.Fprintln(w, "\nOnce a peer follows:")
	counts := map[string]int{}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "SUBNET\tNODE\tNOW\tTHEN\tREASON")
	for _, m := range v.Moves {
		from, to := cmp.Or(string(m.From), "none"), cmp.Or(string(m.To), "none")
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", m.Subnet, cmp.Or(m.Node, "-"), from, to, m.Reason)
		counts[to]++
	}
	for _, to := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(t, "%d of %d on %s\n", counts[to], len(v.Moves), to)
	}
	return t.Flush()
}

func words(keys []lease.Key) string {
	s := make([]string, len(keys))
	for i, k := range keys {
		s[i] = string(k)
	}
	return strings.Join(s, ", ")
}

// printChanges prints a plan as a diff: what comes, what goes, what becomes something else.
func printChanges(w io.Writer, changes []state.Change) error {
	if len(changes) == 0 {
		_, err := fmt.Fprintln(w, "nothing to change")
		return err
	}
	counts := map[state.Op]int{}
	for _, c := range changes {
		counts[c.Op]++
		line := map[state.Op]string{state.Add: "+", state.Modify: "~", state.Remove: "-"}[c.Op]
		line += " " + c.Kind + " " + c.Object
		switch {
		case c.Op == state.Modify && (c.Have != "" || c.Want != ""):
			line += ": " + c.Have + " => " + c.Want
		case c.Op == state.Add && c.Want != "":
			line += " " + c.Want
		case c.Op == state.Remove && c.Have != "":
			line += " " + c.Have
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%d to add, %d to change, %d to remove\n", counts[state.Add], counts[state.Modify], counts[state.Remove])
	return err
}
