//go:build node

package main

import "github.com/spf13/cobra"

func machineCommands() []*cobra.Command { return nil }
