package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/internal/dockeropts"
	"github.com/weftnet/weft/internal/subnetfile"
)

func newDockerOptsCommand() *cobra.Command {
	var input, output string
	var o dockeropts.Options
	c := &cobra.Command{
		Use:   "docker-opts",
		Short: "Turn the subnet file into options for the Docker daemon, as mk-docker-opts.sh does",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return writeDockerOpts(input, output, o)
		},
	}
	c.Flags().StringVarP(&input, "subnet-file", "f", subnetfile.DefaultPath, "the subnet file to read")
	c.Flags().StringVarP(&output, "docker-env", "d", dockeropts.DefaultOutput, "the environment file to write")
	c.Flags().BoolVarP(&o.Individual, "individual", "i", false, "write one variable per option")
	c.Flags().BoolVarP(&o.Combined, "combined", "c", false, "write one variable with all options; both is the default")
	c.Flags().StringVarP(&o.Key, "key", "k", dockeropts.DefaultKey, "name of the combined variable")
	c.Flags().BoolVarP(&o.NoIPMasq, "no-ip-masq", "m", false, "leave out --ip-masq")
	return c
}

// writeDockerOpts takes a missing subnet file for an empty one, and writes before it looks at the routing
// table: both as the script does.
func writeDockerOpts(input, output string, o dockeropts.Options) error {
	raw, err := os.ReadFile(input)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	env := dockeropts.Environment(os.Environ(), raw)
	content, err := dockeropts.Render(env, o)
	if err != nil {
		return fmt.Errorf("%s: %w", input, err)
	}
	// In place, not renamed: people give /dev/stdout.
	if err := os.WriteFile(output, content, 0o644); err != nil {
		return err
	}
	h, err := netlink.NewHandle()
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	via, found, err := dockeropts.RoutedAway(h, env["FLANNEL_SUBNET"])
	if err == nil && found {
		err = fmt.Errorf("the routing table sends %s to %s: Docker would get none of its packets", env["FLANNEL_SUBNET"], via)
	}
	return err
}
