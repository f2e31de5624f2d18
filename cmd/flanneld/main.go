// Command flanneld is the node agent: it leases a subnet of the pod network for this node and keeps the
// kernel such that packets reach the pods of every other node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/options"
	"github.com/weftnet/weft/internal/version"
)

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	os.Exit(run())
}

// run returns the exit status: 0 after a signal or for --help and --version, 2 for a command line that
// cannot be read, 1 for everything else.
func run() int {
	opts, err := options.Parse(os.Args[1:], os.Getenv, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, "flanneld: "+err.Error())
		if _, usage := errors.AsType[*options.UsageError](err); usage {
			return 2
		}
		return 1
	case opts.Version:
		fmt.Fprintln(os.Stderr, version.String())
		return 0
	}
	log := logger(opts)
	log.Info("flanneld starts", "version", version.String(), "options", opts)
	for _, n := range opts.Notes {
		log.Warn("options", "note", n)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	if err := serve(ctx, opts, log); err != nil {
		log.Error("flanneld ends", "err", err)
		return 1
	}
	log.Info("flanneld ends: what it made in the kernel stays")
	return 0
}

func logger(o options.Options) *slog.Logger {
	h := &slog.HandlerOptions{Level: o.LogLevel}
	if o.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, h))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, h))
}

// serve runs the agent and what answers for it until ctx ends.
func serve(ctx context.Context, opts options.Options, log *slog.Logger) error {
	n, err := newNode(opts, log)
	if err != nil {
		return err
	}
	defer n.close()
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range n.servers {
		g.Go(func() error { return s.run(ctx) })
	}
	g.Go(func() error { return keepCNIConf(ctx, opts, log) })
	g.Go(func() error { return tidy(ctx, log) })
	g.Go(func() error {
		if err := n.agent.Run(ctx); err != nil || ctx.Err() == nil {
			return errors.Join(err, errors.New("the agent ended by itself"))
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	n.stopping()
	return nil
}
