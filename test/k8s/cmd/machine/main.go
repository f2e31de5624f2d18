// Command machine is process 1 of a node of the test cluster.
package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/weftnet/weft/test/k8s/machine"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: machine SPEC")
		os.Exit(2)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := machine.Run(os.Args[1], log); err != nil {
		log.Error("machine stops", "err", err)
		os.Exit(1)
	}
}
