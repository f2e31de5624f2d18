// Command weft is the operator's tool: it shows and explains what flanneld does on this node, checks a
// configuration, removes what flanneld made, and runs a whole network on one machine to try it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:           "weft",
		Short:         "Look at, check and try the weft pod network",
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		newStatusCommand(),
		newPlanCommand(),
		newCleanupCommand(),
		newConfigCommand(),
		newDockerOptsCommand(),
	)
	root.AddCommand(machineCommands()...)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "weft: "+err.Error())
		os.Exit(1)
	}
}
