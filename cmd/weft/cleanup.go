package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/agent"
	"github.com/weftnet/weft/internal/cleanup"
	"github.com/weftnet/weft/internal/options"
	"github.com/weftnet/weft/internal/snapshot"
	"github.com/weftnet/weft/internal/state"
)

func newCleanupCommand() *cobra.Command {
	var nf nodeFlags
	var networks []string
	opts := cleanup.Options{CNIConfDir: "/etc/cni/net.d", CNIStateDir: "/var/lib/cni", CNIBinDir: "/opt/cni/bin"}
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove every trace of weft and flannel from this host",
		Long: "Remove what flanneld leaves standing when it stops: devices, routes, rules, files, the pods' bridge, and\n" +
			"put sysctls back. What the original flannel left is removed as well. Foreign state is not touched.\n" +
			"flanneld must be stopped first, but for --dry-run.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if _, err := agent.NewClient(options.Socket(nf.subnetFile)).Status(c.Context()); !opts.DryRun && !notRunning(err) {
				return fmt.Errorf("flanneld is running with %s: stop it first", nf.subnetFile)
			}
			for _, n := range networks {
				p, err := netip.ParsePrefix(n)
				if err != nil {
					return fmt.Errorf("--network: %q is not a CIDR such as 10.244.0.0/16", n)
				}
				opts.Networks = append(opts.Networks, p.Masked())
			}
			opts.SubnetFile, opts.Owner = nf.subnetFile, agent.Owner(nf.subnetFile)
			if opts.SnapshotFile == "" {
				opts.SnapshotFile = snapshot.Path(nf.subnetFile)
			}
			changes, err := cleanup.Run(c.Context(), opts, slog.New(slog.NewTextHandler(c.ErrOrStderr(), nil)))
			if err != nil && len(changes) == 0 {
				return err // not even "nothing is left" is known
			}
			return errors.Join(printCleanup(c, nf, opts.DryRun, changes), err)
		},
	}
	nf.add(c)
	c.Flags().BoolVar(&opts.DryRun, "dry-run", false, "only list what would be removed")
	c.Flags().BoolVar(&opts.Force, "force", false, "go on although pods are still attached; they lose their network")
	c.Flags().StringArrayVar(&networks, "network", nil, "pod network, where no file tells it any more; may be given again")
	c.Flags().StringVar(&opts.SnapshotFile, "snapshot-file", "", "the agent's snapshot (default: that of the subnet file)")
	c.Flags().StringVar(&opts.CNIConfDir, "cni-conf-dir", opts.CNIConfDir, "where the CNI configuration lies")
	c.Flags().StringVar(&opts.CNIStateDir, "cni-state-dir", opts.CNIStateDir, "where CNI plugins keep their state")
	c.Flags().StringVar(&opts.CNIBinDir, "cni-bin-dir", opts.CNIBinDir, "where CNI plugins lie")
	return c
}

func printCleanup(c *cobra.Command, nf nodeFlags, dryRun bool, changes []state.Change) error {
	w := c.OutOrStdout()
	if nf.output == "json" {
		return printJSON(w, changes)
	}
	if len(changes) == 0 {
		_, err := fmt.Fprintln(w, "nothing of ours is left on this host")
		return err
	}
	if dryRun {
		fmt.Fprintln(w, "would do:")
	}
	return printChanges(w, changes)
}
