package cni

import (
	"encoding/json"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/internal/cni/bridge"
)

// chained is what every plugin that comes after another reads.
type chained struct {
	CNIVersion string          `json:"cniVersion"`
	Name       string          `json:"name"`
	PrevResult json.RawMessage `json:"prevResult"`
}

func loopbackFuncs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: addLoopback, Del: delLoopback, Check: checkLoopback}
}

func addLoopback(args *skel.CmdArgs) error {
	var c chained
	if err := decodePlugin(args.StdinData, &c); err != nil {
		return err
	}
	r, err := previous(c.PrevResult, c.CNIVersion)
	if err != nil {
		return err
	}
	ns, err := bridge.OpenNamespace(args.Netns)
	if err != nil {
		return coded(types.ErrInvalidNetNS, err)
	}
	defer ns.Close()
	addrs, err := ns.SetUp("lo")
	if err != nil {
		return err
	}
	if r == nil {
		r = &types100.Result{
			CNIVersion: types100.ImplementedSpecVersion,
			Interfaces: []*types100.Interface{{Name: "lo", Mac: "00:00:00:00:00:00", Sandbox: args.Netns}},
		}
		for _, a := range addrs { // no IPv6 where it is off
			ip := ipConfig(bridge.IP{Addr: a})
			ip.Interface = types100.Int(0)
			r.IPs = append(r.IPs, ip)
		}
	}
	return printResult(r, c.CNIVersion)
}

func checkLoopback(args *skel.CmdArgs) error {
	ns, err := bridge.OpenNamespace(args.Netns)
	if err != nil {
		return coded(types.ErrInvalidNetNS, err)
	}
	defer ns.Close()
	up, err := ns.IsUp("lo")
	if err == nil && !up {
		err = differs([]string{"lo is down"})
	}
	return err
}

// delLoopback leaves lo alone: it goes with the namespace, and other interfaces may still need it.
func delLoopback(*skel.CmdArgs) error { return nil }
