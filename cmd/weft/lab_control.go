//go:build !node

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/lab"
)

func (c *labCommand) agent() *cobra.Command {
	var binary string
	cmd := &cobra.Command{
		Use:       "agent start|stop|kill|restart|log NODE",
		Short:     "Handle the agent of a node",
		Args:      cobra.ExactArgs(2),
		ValidArgs: []string{"start", "stop", "kill", "restart", "log"},
		RunE: c.withLab(func(ctx context.Context, l *lab.Lab, args []string) error {
			n, err := l.Node(args[1])
			if err != nil {
				return err
			}
			if binary != "" {
				n.Agent.Binary = binary
			}
			switch args[0] {
			case "start":
				return n.Agent.Start(ctx)
			case "stop":
				return n.Agent.Stop()
			case "kill":
				return n.Agent.Kill()
			case "restart":
				return n.Agent.Restart(ctx)
			case "log":
				_, err := fmt.Print(n.Agent.Log())
				return err
			}
			return fmt.Errorf("%q: say start, stop, kill, restart or log", args[0])
		}),
	}
	cmd.Flags().StringVar(&binary, "flanneld", "", "start this binary from now on")
	return cmd
}

func (c *labCommand) etcd() *cobra.Command {
	return &cobra.Command{
		Use:       "etcd start|stop|kill|compact|config [JSON|FILE]",
		Short:     "Handle the lab's etcd, or write the network configuration",
		Args:      cobra.RangeArgs(1, 2),
		ValidArgs: []string{"start", "stop", "kill", "compact", "config"},
		RunE: c.withLab(func(ctx context.Context, l *lab.Lab, args []string) error {
			switch {
			case args[0] == "config" && len(args) == 2:
				config, err := fileOrJSON(args[1])
				if err != nil {
					return err
				}
				return l.Etcd().PutConfig(ctx, config)
			case len(args) == 2:
			case args[0] == "start":
				return l.Etcd().Start(ctx)
			case args[0] == "stop":
				return l.Etcd().Stop()
			case args[0] == "kill":
				return l.Etcd().Kill()
			case args[0] == "compact":
				return l.Etcd().Compact(ctx)
			}
			return fmt.Errorf("%q: say start, stop, kill, compact, or config and the configuration", strings.Join(args, " "))
		}),
	}
}

func (c *labCommand) partition() *cobra.Command {
	return &cobra.Command{
		Use:   "partition NODE on|off",
		Short: "Make what a node sends to etcd vanish, or let it through again",
		Args:  cobra.ExactArgs(2),
		RunE: c.withLab(func(_ context.Context, l *lab.Lab, args []string) error {
			if args[1] != "on" && args[1] != "off" {
				return fmt.Errorf("%q: say on or off", args[1])
			}
			return l.Partition(args[0], args[1] == "on")
		}),
	}
}
