// Command cluster makes a Kubernetes cluster on this machine for somebody to look around in.
//
//	cluster build [e2e]              programs and images, into $WEFT_K8S_CACHE
//	cluster up [OPTION...]           see cluster up -h
//	cluster kubectl ARGS...
//	cluster on NODE COMMAND...       run a command on a node
//	cluster load ARCHIVE...          an image, into all nodes
//	cluster reboot NODE
//	cluster down
//	cluster pack ARCHIVE NAME:TAG ENTRYPOINT FILE:PATH...     make an image of this machine's files
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/weftnet/weft/internal/lab"
	"github.com/weftnet/weft/test/k8s/cluster"
)

const name = "k8s"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: cluster build|up|kubectl|on|load|reboot|down|pack")
	}
	verb, args := args[0], args[1:]
	switch verb {
	case "build":
		return cluster.Build(ctx, cluster.Cache(), len(args) > 0 && args[0] == "e2e")
	case "pack":
		return pack(args)
	case "up":
		return up(ctx, args)
	case "down":
		return cluster.Down(name)
	}
	c, err := cluster.Open(name)
	if err != nil {
		return err
	}
	switch verb {
	case "kubectl":
		out, err := c.Kubectl(ctx, args...)
		fmt.Print(out)
		return err
	case "load":
		return c.EachNode(func(n *cluster.Node) error { return n.Load(ctx, args...) })
	case "on", "reboot":
		if len(args) == 0 {
			return errors.New("which node?")
		}
		n, err := c.Node(args[0])
		if err != nil {
			return err
		}
		if verb == "reboot" {
			return n.PowerCycle(ctx)
		}
		return become(n, args[1:])
	}
	return fmt.Errorf("no command is called %q", verb)
}

func up(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("cluster up", flag.ContinueOnError)
	o := cluster.Options{Name: name}
	f.StringVar(&o.Proxy, "proxy", "nftables", "kube-proxy's `mode`: nftables, iptables or none")
	dual := f.Bool("dual", false, "IPv4 and IPv6")
	f.BoolVar(&o.ReferencePlugins, "plugins", false, "put the reference CNI plugins on the nodes")
	segments := f.String("segments", "cp,n1,n2;n3", "nodes per segment; the control plane's first")
	images := f.String("images", "", "image archives for all nodes, separated by commas")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *dual {
		o.Family = lab.Dual
	}
	for s := range strings.SplitSeq(*segments, ";") {
		o.Segments = append(o.Segments, strings.Split(s, ","))
	}
	o.Images = []string{cluster.Image(cluster.Cache(), "pod"), cluster.Image(cluster.Cache(), "coredns")}
	if *images != "" {
		o.Images = append(o.Images, strings.Split(*images, ",")...)
	}
	c, err := cluster.Up(ctx, o)
	if err != nil {
		return err
	}
	out, err := c.Kubectl(ctx, "get", "nodes", "-o", "wide")
	fmt.Print(out)
	return err
}

// become replaces this process by one on a node.
func become(n *cluster.Node, argv []string) error {
	if len(argv) == 0 {
		argv = []string{"sh"}
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	pid, running := n.Process1()
	if !running {
		return fmt.Errorf("node %s is off", n.Name)
	}
	argv = append([]string{nsenter, "-t", strconv.Itoa(pid), "-n", "-m", "-u", "-i", "-p"}, argv...)
	return syscall.Exec(nsenter, argv, os.Environ())
}
