// Package cni is the CNI plugin: one binary that does, by the name it is called by, the work of flannel,
// bridge, host-local, portmap, bandwidth and loopback.
//
// A plugin may be killed between any two instructions and the machine may lose power; the runtime then
// calls DEL, or never comes back. Therefore everything that an ADD makes is recorded before it is made,
// or can be named without a record, and a DEL forgets only what it has removed:
//
//	ADD                                          found again by
//	1 state file                                  container id and interface
//	2 address entry, flocked until the ADD ends   container id and interface in its content
//	3 bridge, its addresses, forwarding           shared, kept for the next pod
//	4 veth pair, in the pod and on the bridge     a name that follows from container id and interface
//	5 alias, hairpin, addresses, routes           go with the veth pair
//	6 firewall rules                              the container id in their comment
//	7 result on stdout, once the state file is on disk
//
//	DEL
//	1 veth pair: from here on nobody uses the address
//	2 firewall rules that lead to the address
//	3 address entry: from here on the next pod may have the address
//	4 state file: only when 1 to 3 succeeded, so that the runtime's next try finds it again
//
// An ADD that fails, as opposed to being killed, undoes its own steps in the order of DEL. An address
// entry that is not locked and whose veth pair is gone is dead, and is reclaimed when a
// range is full, as well as by GC.
package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/weftnet/weft/internal/cni/install"
)

// plugins are the names that the binary answers to.
func plugins(name string) (skel.CNIFuncs, bool) {
	switch name {
	case "flannel":
		return flannel{}.funcs(), true
	case "bandwidth":
		return bandwidthFuncs(), true
	case "loopback":
		return loopbackFuncs(), true
	case "bridge":
		return bridgeFuncs(), true
	case "host-local":
		return hostLocalFuncs(), true
	case "portmap":
		return portmapFuncs(), true
	}
	return skel.CNIFuncs{}, false
}

// Main runs the plugin that args[0] names, flannel if it names none, and returns the exit status. The
// request comes from the environment and stdin; stdout gets the result or the error, and nothing else.
// Without a request, the other arguments are a command of a person's.
func Main(args []string, release string) int {
	if len(args) > 1 && os.Getenv("CNI_COMMAND") == "" {
		return command(args[1:], release, os.Stdout, os.Stderr)
	}
	name := filepath.Base(args[0])
	funcs, ok := plugins(name)
	if !ok {
		name = "flannel"
		funcs, _ = plugins(name)
	}
	about := fmt.Sprintf("%s %s %s", install.Marker, name, release)
	if err := skel.PluginMainFuncsWithError(funcs, version.All, about); err != nil {
		if printErr := printError(os.Stdout, err); printErr != nil {
			return 2
		}
		return 1
	}
	return 0
}

func printError(stdout io.Writer, e *types.Error) error {
	raw, err := json.Marshal(struct {
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{version.Current(), e})
	if err != nil {
		return err
	}
	_, err = stdout.Write(append(raw, '\n'))
	return err
}

// printResult prints r as the version that the configuration asks for.
func printResult(r types.Result, cniVersion string) error {
	if cniVersion == "" {
		cniVersion = "0.1.0" // what a configuration without a version means
	}
	if err := types.PrintResult(r, cniVersion); err != nil {
		return fmt.Errorf("result as CNI %s: %w", cniVersion, err)
	}
	return nil
}

// previous reads prevResult, the result of the plugins before this one in the chain; nil if there is none.
func previous(raw json.RawMessage, cniVersion string) (*types100.Result, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	if cniVersion == "" {
		cniVersion = "0.1.0"
	}
	r, err := create.Create(cniVersion, raw)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult: "+err.Error(), "")
	}
	return types100.NewResultFromResult(r)
}

// decodePlugin reads the configuration of a chained plugin.
func decodePlugin(stdin []byte, into any) error {
	if err := json.Unmarshal(stdin, into); err != nil {
		return types.NewError(types.ErrDecodingFailure, "configuration: "+err.Error(), "")
	}
	return nil
}

// coded gives err a CNI code unless it has one.
func coded(code uint, err error) error {
	var have *types.Error
	if err == nil || errors.As(err, &have) {
		return err
	}
	return types.NewError(code, err.Error(), "")
}
