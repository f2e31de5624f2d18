//go:build !node

package main

import "github.com/spf13/cobra"

// machineCommands are for an operator's own machine. They are two thirds of the program, and no use on a node
// of a cluster: the tag leaves them out of the image.
func machineCommands() []*cobra.Command {
	return []*cobra.Command{newManifestCommand(), newEtcdCommand(), newLabCommand()}
}
