//go:build !node

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/lab"
	"github.com/weftnet/weft/internal/lab/demo"
)

// A labCommand holds what all lab commands share.
type labCommand struct {
	base, name string
	timeout    time.Duration
}

// newLabCommand returns the commands that run a whole network on one machine.
func newLabCommand() *cobra.Command {
	c := &labCommand{}
	root := &cobra.Command{
		Use:   "lab",
		Short: "Run a whole network on this machine, out of namespaces",
		Long: `Run a whole network on this machine: nodes out of network namespaces, some on one
L2 segment, some behind a router, each with its own flanneld and files, pods
attached by the real CNI plugin, and an etcd. Nothing outside the lab's own
namespaces is touched. Needs root.`,
	}
	root.PersistentFlags().StringVarP(&c.name, "name", "n", "default", "name of the lab; several may exist at once")
	root.PersistentFlags().StringVar(&c.base, "dir", lab.DefaultBase, "directory that holds the labs")
	root.PersistentFlags().DurationVar(&c.timeout, "timeout", 60*time.Second, "give up after this time")
	root.AddCommand(c.up(), c.down(), c.list(), c.pod(), c.exec(), c.agent(), c.etcd(), c.partition(), c.demo())
	return root
}

func (c *labCommand) up() *cobra.Command {
	var o lab.Options
	var near, far, config string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Make a lab and wait until its agents are ready",
		Example: `  weft lab up                                # A and B on one segment, C behind the router
  weft lab up --nodes A,B,C,D --far E --family dual
  weft lab up --config net-conf.json --flanneld-on B=/opt/other/flanneld`,
		Args: cobra.NoArgs,
		RunE: c.run(func(ctx context.Context, _ []string) error {
			o.Name, o.Base = c.name, c.base
			for _, s := range []string{near, far} {
				if s != "" {
					o.Segments = append(o.Segments, strings.Split(s, ","))
				}
			}
			var err error
			if o.Config, err = fileOrJSON(config); err != nil {
				return err
			}
			l, err := lab.Up(ctx, o)
			if err != nil {
				if l != nil {
					return fmt.Errorf("%w\n(what there is of the lab stays for a look: weft lab down -n %s removes it)", err, o.Name)
				}
				return err
			}
			return c.show(l)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&near, "nodes", "A,B", "nodes on the first segment")
	f.StringVar(&far, "far", "C", "nodes on a second segment, behind the router")
	f.StringVar(&config, "config", "", "network configuration, JSON or the name of a file (default: vxlan with DirectRouting)")
	f.StringVar(&o.Family, "family", lab.IPv4, "addresses of the underlay: ipv4, ipv6 or dual")
	f.IntVar(&o.MTU, "mtu", 1500, "MTU of the underlay")
	f.StringVar(&o.Flanneld, "flanneld", "", "agent binary (default: beside weft)")
	f.StringVar(&o.Flannel, "flannel", "", "CNI plugin binary (default: beside weft)")
	f.BoolVar(&o.ReferencePlugins, "reference-plugins", false, "take bridge, portmap and the like from this machine")
	f.StringToStringVar(&o.FlanneldOn, "flanneld-on", nil, "another agent binary on some nodes, NODE=PATH")
	f.StringArrayVar(&o.AgentArgs, "agent-arg", nil, "a further flag for every agent, repeatable")
	f.BoolVar(&o.NoAgents, "no-agents", false, "do not start the agents")
	return cmd
}

func (c *labCommand) down() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove a lab, even one that was only half made",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return lab.Down(c.base, c.name) },
	}
}

func (c *labCommand) list() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List labs, their nodes and pods",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			names, err := lab.Names(c.base)
			if err != nil {
				return err
			}
			for _, name := range names {
				l, err := lab.Open(c.base, name)
				if err != nil {
					fmt.Printf("lab %s: not whole (%v); weft lab down -n %s removes it\n", name, err, name)
					continue
				}
				if err := c.show(l); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// show prints the machines and pods of a lab.
func (c *labCommand) show(l *lab.Lab) error {
	fmt.Printf("lab %s\n", l.Options.Name)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "  etcd\t%s\t%s\n", l.Etcd().Endpoint(), runState(l.Etcd().Running()))
	for _, n := range l.Nodes {
		fmt.Fprintf(w, "  %s\t%s\tagent %s\ton %s\n", n.Name, joinAddrs(n.Addrs()), runState(n.Agent.Running()), n.Segment())
		pods, err := n.Pods()
		if err != nil {
			return err
		}
		for _, p := range pods {
			fmt.Fprintf(w, "    %s\t%s\tpod\n", p.Name, joinAddrs(p.Addrs()))
		}
	}
	return w.Flush()
}

func runState(running bool) string {
	if running {
		return "running"
	}
	return "stopped"
}

func joinAddrs[A fmt.Stringer](addrs []A) string {
	var s []string
	for _, a := range addrs {
		s = append(s, a.String())
	}
	return strings.Join(s, " ")
}

func (c *labCommand) pod() *cobra.Command {
	cmd := &cobra.Command{Use: "pod", Short: "Add or delete a pod"}
	cmd.AddCommand(&cobra.Command{
		Use:   "add NODE POD",
		Short: "Attach a new pod with the CNI plugins of the node",
		Args:  cobra.ExactArgs(2),
		RunE: c.withLab(func(ctx context.Context, l *lab.Lab, args []string) error {
			n, err := l.Node(args[0])
			if err != nil {
				return err
			}
			p, err := n.AddPod(ctx, args[1])
			if err != nil {
				return err
			}
			fmt.Println(joinAddrs(p.Addrs()))
			return nil
		}),
	}, &cobra.Command{
		Use:   "del NODE POD",
		Short: "Detach a pod and remove it",
		Args:  cobra.ExactArgs(2),
		RunE: c.withLab(func(ctx context.Context, l *lab.Lab, args []string) error {
			p, err := l.Pod(args[0] + "/" + args[1])
			if err != nil {
				return err
			}
			return p.Delete(ctx)
		}),
	})
	return cmd
}

func (c *labCommand) exec() *cobra.Command {
	return &cobra.Command{
		Use:   "exec NODE|POD|router|etcd [-- COMMAND...]",
		Short: "Run a command, or a shell, inside a machine or a pod",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := lab.Open(c.base, c.name)
			if err != nil {
				return err
			}
			argv := args[1:]
			if len(argv) == 0 {
				argv = []string{"sh"}
			}
			return l.Become(args[0], argv)
		},
	}
}

func (c *labCommand) demo() *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the pod network at work on three nodes, in under a minute",
		Args:  cobra.NoArgs,
		RunE: c.run(func(ctx context.Context, _ []string) error {
			o.Base = c.base
			return demo.Run(ctx, os.Stdout, o)
		}),
	}
	cmd.Flags().BoolVar(&o.Keep, "keep", false, "leave the lab standing afterwards")
	cmd.Flags().StringVar(&o.Family, "family", lab.IPv4, "ipv4, ipv6 or dual")
	return cmd
}

// run wraps a command that must not take longer than the timeout.
func (c *labCommand) run(f func(context.Context, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if os.Geteuid() != 0 {
			return errors.New("a lab is made of network namespaces, which needs root")
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), c.timeout)
		defer cancel()
		return f(ctx, args)
	}
}

// withLab wraps a command that works on an existing lab.
func (c *labCommand) withLab(f func(context.Context, *lab.Lab, []string) error) func(*cobra.Command, []string) error {
	return c.run(func(ctx context.Context, args []string) error {
		l, err := lab.Open(c.base, c.name)
		if err != nil {
			return err
		}
		return f(ctx, l, args)
	})
}

// fileOrJSON returns s if it is a JSON object, else the content of the file of that name; "" stays.
func fileOrJSON(s string) (string, error) {
	if s == "" || strings.HasPrefix(strings.TrimSpace(s), "{") {
		return s, nil
	}
	raw, err := os.ReadFile(s)
	return string(raw), err
}
