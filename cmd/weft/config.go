package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/subnetfile"
)

func newConfigCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Look at a network configuration"}
	c.AddCommand(newConfigCheckCommand())
	return c
}

// configCheck holds the flags of weft config check.
type configCheck struct {
	store, output, subnetFile string
	host                      bool
	services                  []string
}

// A configReport is what weft config check prints.
type configReport struct {
	Effective json.RawMessage  `json:"effective,omitempty"` // absent where there are problems
	Capacity  []string         `json:"capacity,omitempty"`
	Clashes   []netconf.Clash  `json:"clashes,omitempty"`
	Warnings  netconf.Warnings `json:"warnings"`
	Problems  netconf.Problems `json:"problems"`
}

func newConfigCheckCommand() *cobra.Command {
	var check configCheck
	c := &cobra.Command{
		Use:   "check FILE|-",
		Short: "Show a configuration with its defaults, its capacity, and all that is wrong with it",
		Long: "Check reads net-conf.json, or what is meant for <prefix>/config in etcd, and prints the configuration\n" +
			"in effect with defaults filled in, how many nodes and pods it has room for, warnings and problems.\n" +
			"It exits 1 if there is any problem. Keys are not shown.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			raw, err := readConfig(c.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			r, err := check.run(raw)
			if err != nil {
				return err
			}
			if err := check.print(c.OutOrStdout(), r); err != nil {
				return err
			}
			return r.verdict(args[0])
		},
	}
	c.Flags().StringVar(&check.store, "store", "etcd", "the store that the configuration is for: etcd or kube")
	c.Flags().StringVarP(&check.output, "output", "o", "text", "output format: text or json")
	c.Flags().BoolVar(&check.host, "host", false, "also look for clashes with addresses and routes of this host")
	c.Flags().StringVar(&check.subnetFile, "subnet-file", subnetfile.DefaultPath, "with --host: says which subnet is this node's own")
	c.Flags().StringArrayVar(&check.services, "service-range", nil, "also look for clashes with the range of services (repeatable)")
	return c
}

// readConfig reads a file, or standard input for "-".
func readConfig(stdin io.Reader, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(name)
}

func (check configCheck) run(raw []byte) (configReport, error) {
	store, err := parseStore(check.store)
	if err != nil {
		return configReport{}, err
	}
	if check.output != "text" && check.output != "json" {
		return configReport{}, fmt.Errorf("--output: %q is neither text nor json", check.output)
	}
	services, err := parseServices(check.services)
	if err != nil {
		return configReport{}, err
	}
	c, warnings, err := netconf.Parse(raw, store)
	r := configReport{Warnings: append(netconf.Warnings{}, warnings...), Problems: netconf.Problems{}}
	if errors.As(err, &r.Problems) {
		return r, nil
	}
	r.Effective = netconf.Render(c.Redacted())
	r.Capacity = capacity(c)
	host, err := check.hostPrefixes(c)
	if err != nil {
		return configReport{}, err
	}
	r.Clashes = netconf.Clashes(c, host, services...)
	return r, nil
}

func parseStore(name string) (netconf.Store, error) {
	switch name {
	case "etcd":
		return netconf.Etcd, nil
	case "kube":
		return netconf.Kubernetes, nil
	}
	return 0, fmt.Errorf("--store: %q is neither etcd nor kube", name)
}

func parseServices(texts []string) ([]netconf.HostPrefix, error) {
	var services []netconf.HostPrefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("--service-range: %q is not a prefix such as 10.96.0.0/12", text)
		}
		services = append(services, netconf.HostPrefix{Prefix: p.Masked(), What: netconf.ServiceRange})
	}
	return services, nil
}

func capacity(c netconf.Config) []string {
	var texts []string
	for _, f := range family.All() {
		texts = append(texts, netconf.Capacity(c.Network.Of(f))...)
	}
	if mtu := netconf.PodMTU(c); mtu != 0 {
		texts = append(texts, fmt.Sprintf("MTU of pods: %d (Backend.MTU is the underlay's)", mtu))
	}
	return texts
}

func (check configCheck) hostPrefixes(c netconf.Config) ([]netconf.HostPrefix, error) {
	if !check.host {
		return nil, nil
	}
	own, err := subnetfile.Read(check.subnetFile)
	if err != nil {
		return nil, err
	}
	h, err := netlink.NewHandle()
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	return netconf.HostPrefixes(h, c, own.Subnet)
}

func (check configCheck) print(w io.Writer, r configReport) error {
	if check.output == "json" {
		return printJSON(w, r)
	}
	var b strings.Builder
	section := func(title string, lines []string) {
		if len(lines) > 0 {
			fmt.Fprintf(&b, "\n%s:\n  %s\n", title, strings.Join(lines, "\n  "))
		}
	}
	b.Write(r.Effective)
	section("capacity", r.Capacity)
	section("warnings", texts(r.Warnings))
	section("clashes", texts(r.Clashes))
	section("problems", texts(r.Problems))
	_, err := io.WriteString(w, strings.TrimPrefix(b.String(), "\n"))
	return err
}

func texts[S ~[]T, T fmt.Stringer](list S) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = v.String()
	}
	return out
}

// verdict is an error if the configuration must not be used. What is wrong was printed already.
func (r configReport) verdict(name string) error {
	if name == "-" {
		name = "configuration"
	}
	severe := 0
	for _, c := range r.Clashes {
		if c.Severe {
			severe++
		}
	}
	switch n := len(r.Problems) + severe; n {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("%s: 1 problem", name)
	default:
		return fmt.Errorf("%s: %d problems", name, n)
	}
}
