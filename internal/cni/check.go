package cni

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/internal/cni/bridge"
	"github.com/weftnet/weft/internal/cni/conf"
	"github.com/weftnet/weft/internal/cni/hostlocal"
	"github.com/weftnet/weft/internal/cni/statefile"
)

// errDiffers is our code for a CHECK that found differences; codes from 100 on are a plugin's own.
const errDiffers = 100

func differs(differences []string) error {
	return types.NewError(errDiffers, "the attachment is not as it was made: "+strings.Join(differences, "; "),
		"delete the pod: a new one is attached again")
}

func needsPrevious(plugin string) error {
	return types.NewError(types.ErrInvalidNetworkConfig, plugin+": there is no prevResult", "it comes after another plugin in the conflist, and CHECK needs the result of ADD")
}

// checkBridge compares what is there with the configuration and with the result of ADD.
func checkBridge(c conf.Bridge, args *skel.CmdArgs) error {
	r, err := previous(c.PrevResult, c.CNIVersion)
	if err == nil && r == nil {
		err = needsPrevious("bridge")
	}
	if err != nil {
		return err
	}
	given, err := fromResult(podPart(r))
	if err != nil {
		return err
	}
	plan, err := bridge.New(c, attachmentOf(args), given)
	if err != nil {
		return err
	}
	applyResult(&plan, r)
	ns, err := bridge.OpenNamespace(args.Netns)
	if err != nil {
		return coded(types.ErrInvalidNetNS, err)
	}
	defer ns.Close()
	k, err := bridge.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	devices, err := k.Check(plan, ns)
	if err != nil {
		return err
	}
	addresses, err := checkAddresses(c, ownerOf(args), given)
	if err != nil {
		return err
	}
	firewall, err := checkRules(c, plan, labelOf("bridge", c.Network, args))
	if err != nil {
		return err
	}
	if differences := slices.Concat(devices, addresses, firewall); len(differences) > 0 {
		return differs(differences)
	}
	return nil
}

// podPart returns a result with the addresses of the pod only.
func podPart(r *types100.Result) *types100.Result {
	pod := *r
	pod.IPs = slices.DeleteFunc(slices.Clone(r.IPs), func(ip *types100.IPConfig) bool {
		i := ip.Interface
		return i != nil && *i >= 0 && *i < len(r.Interfaces) && r.Interfaces[*i].Sandbox == ""
	})
	return &pod
}

// applyResult takes over what only the result of ADD tells: the name of a port that the reference plugin
// made, and the pod's MAC.
func applyResult(p *bridge.Plan, r *types100.Result) {
	for _, i := range r.Interfaces {
		switch {
		case i.Sandbox == "" && i.Name != p.Bridge.Name:
			p.Port.Name = i.Name
		case i.Sandbox != "" && i.Name == p.Pod.Name && i.Mac != "":
			p.Pod.MAC, _ = net.ParseMAC(i.Mac)
		}
	}
}

func checkAddresses(c conf.Bridge, owner hostlocal.Owner, given bridge.Addressing) ([]string, error) {
	if c.IPAMType != "host-local" {
		return nil, nil
	}
	dir, err := hostlocal.OpenExisting(c.IPAM.Dir)
	if err != nil {
		return nil, err
	}
	if dir == nil {
		return []string{c.IPAM.Dir + " is gone: its addresses may be given twice"}, nil
	}
	defer dir.Close()
	held, err := dir.Held(owner)
	if err != nil {
		return nil, err
	}
	var differences []string
	for _, ip := range given.IPs {
		if !slices.Contains(held, ip.Addr.Addr()) {
			differences = append(differences, fmt.Sprintf("address %s has no entry in %s: it may be given twice", ip.Addr.Addr(), c.IPAM.Dir))
		}
	}
	return differences, nil
}

// check of flannel is that of the configuration that ADD stored.
func (flannel) check(args *skel.CmdArgs) error {
	c, err := conf.ParseFlannel(args.StdinData)
	if err != nil {
		return err
	}
	stored, err := statefile.Dir(c.DataDir).Load(keyOf(args))
	if err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	if stored == nil {
		return differs([]string{"there is no state file in " + c.DataDir})
	}
	stored, kind, err := withPrevious(stored, c)
	if err != nil {
		return err
	}
	if kind != "bridge" {
		_, err := run(kind, "CHECK", args.Path, stored)
		return err
	}
	b, err := conf.ReadBridge(stored)
	if err != nil {
		return err
	}
	return checkBridge(b, args)
}

// withPrevious adds the result of ADD, which is only in the request, to the stored configuration, and
// returns the plugin that it names.
func withPrevious(stored []byte, c conf.Flannel) ([]byte, string, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(stored, &m); err != nil {
		return nil, "", differs([]string{"the state file in " + c.DataDir + " is torn"})
	}
	var kind string
	if err := json.Unmarshal(m["type"], &kind); err != nil {
		return nil, "", differs([]string{"the state file in " + c.DataDir + " names no plugin"})
	}
	if len(c.PrevResult) > 0 {
		m["prevResult"] = c.PrevResult
	}
	raw, err := json.Marshal(m)
	return raw, kind, err
}
