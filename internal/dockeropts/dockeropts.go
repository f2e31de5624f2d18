// Package dockeropts turns the subnet file into options for the Docker daemon, for hosts where containers
// get their addresses from Docker and not from a CNI plugin. deploy/docker/mk-docker-opts.sh does the same for
// hosts with nothing but a shell.
package dockeropts

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/subnetfile"
)

// The defaults of mk-docker-opts.sh.
const (
	DefaultOutput = "/run/docker_opts.env"
	DefaultKey    = "DOCKER_OPTS"
)

// prefix begins the names of variables that hold one option each. Those in the environment join in.
const prefix = "DOCKER_OPT_"

// Options says what to write. Neither Individual nor Combined means both.
type Options struct {
	Individual bool   // one variable per option
	Combined   bool   // one variable with all options
	Key        string // name of the combined variable; empty: DefaultKey
	NoIPMasq   bool   // leave out --ip-masq
}

// Environment returns the variables of a process, in the form of os.Environ, with those of a subnet file
// laid over them.
func Environment(environ []string, subnetFile []byte) map[string]string {
	env := map[string]string{}
	for _, e := range environ {
		if key, value, ok := strings.Cut(e, "="); ok {
			env[key] = value
		}
	}
	maps.Copy(env, subnetfile.Variables(subnetFile))
	return env
}

// Render returns the content of the environment file for Docker, byte for byte as the original's script
// writes it. Its one error is a FLANNEL_IPMASQ that is neither true nor false, or a key that is no name.
func Render(env map[string]string, o Options) ([]byte, error) {
	if o.Key == "" {
		o.Key = DefaultKey
	}
	if !isName(o.Key) {
		return nil, fmt.Errorf("%q is no name for a variable", o.Key)
	}
	if !o.Individual && !o.Combined {
		o.Individual, o.Combined = true, true
	}
	options, err := collect(env, o.NoIPMasq)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	combined := env[o.Key]
	if combined != "" {
		combined += " "
	}
	for _, name := range slices.Sorted(maps.Keys(options)) {
		if o.Individual {
			fmt.Fprintf(&b, "%s=\"%s\"\n", name, options[name])
		}
		combined += " " + options[name]
	}
	if o.Combined {
		fmt.Fprintf(&b, "%s=\"%s\"\n", o.Key, combined)
	}
	return b.Bytes(), nil
}

func collect(env map[string]string, noIPMasq bool) (map[string]string, error) {
	options := map[string]string{}
	for name, value := range env {
		if strings.HasPrefix(name, prefix) && isName(name) {
			options[name] = value
		}
	}
	if subnet := env["FLANNEL_SUBNET"]; subnet != "" {
		options[prefix+"BIP"] = "--bip=" + subnet
	}
	if mtu := env["FLANNEL_MTU"]; mtu != "" {
		options[prefix+"MTU"] = "--mtu=" + mtu
	}
	if masq := env["FLANNEL_IPMASQ"]; masq != "" && !noIPMasq {
		// Whoever masquerades, it must not be both.
		inverted, ok := map[string]string{"true": "false", "false": "true"}[masq]
		if !ok {
			return nil, fmt.Errorf("FLANNEL_IPMASQ: %q is neither true nor false", masq)
		}
		options[prefix+"IPMASQ"] = "--ip-masq=" + inverted
	}
	return options, nil
}

func isName(s string) bool {
	for i, c := range s {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
