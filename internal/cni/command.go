package cni

import (
	"context"
	"flag"
	"fmt"
	"io"

	"github.com/weftnet/weft/internal/cni/install"
)

// command runs what people call the program with, as opposed to runtimes.
func command(args []string, release string, stdout, stderr io.Writer) int {
	switch args[0] {
	case "version", "--version", "-version":
		fmt.Fprintln(stdout, install.Marker, release)
		return 0
	case "install":
		return runInstall(args[1:], release, stdout, stderr)
	}
	fmt.Fprintf(stderr, "%q: a runtime calls this program with CNI_COMMAND set; people call it with install or version\n", args[0])
	return 2
}

func runInstall(args []string, release string, stdout, stderr io.Writer) int {
	o := install.Options{Release: release}
	f := flag.NewFlagSet("flannel install", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.BinDir, "bin-dir", "/opt/cni/bin", "where the runtime looks for plugins")
	f.StringVar(&o.ConfDir, "conf-dir", "/etc/cni/net.d", "where the runtime looks for conflists")
	f.StringVar(&o.Name, "conflist-name", "10-flannel.conflist", "name of the conflist")
	f.StringVar(&o.Source, "conflist", "", "file to take the conflist from (default: the built-in one)")
	f.StringVar(&o.SubnetFile, "subnet-file", "/run/flannel/subnet.env", "the conflist is written once this file exists")
	f.DurationVar(&o.Wait, "wait", 0, "how long to wait for it")
	f.BoolVar(&o.NoConflist, "no-conflist", false, "install the programs only")
	f.BoolVar(&o.NoPrograms, "no-programs", false, "install the conflist only")
	if err := f.Parse(args); err != nil {
		return 2
	}
	if f.NArg() > 0 {
		fmt.Fprintf(stderr, "install: %q is not a flag\n", f.Arg(0))
		return 2
	}
	if err := install.Run(context.Background(), o, stdout); err != nil {
		fmt.Fprintln(stderr, "install:", err)
		return 1
	}
	return 0
}
