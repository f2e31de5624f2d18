package cni

import (
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/internal/cni/bandwidth"
)

func bandwidthFuncs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add: addBandwidth, Del: delBandwidth, Check: checkBandwidth, GC: gcBandwidth,
		Status: func(args *skel.CmdArgs) error { _, err := bandwidth.Parse(args.StdinData); return notAvailable(err) },
	}
}

func bandwidthRequest(args *skel.CmdArgs) (bandwidth.Config, *types100.Result, error) {
	c, err := bandwidth.Parse(args.StdinData)
	if err != nil {
		return c, nil, err
	}
	r, err := previous(c.PrevResult, c.CNIVersion)
	if err == nil && r == nil {
		err = needsPrevious("bandwidth")
	}
	return c, r, err
}

func limited(c bandwidth.Config) bool {
	return c.Ingress != bandwidth.Limit{} || c.Egress != bandwidth.Limit{}
}

func addBandwidth(args *skel.CmdArgs) error {
	c, r, err := bandwidthRequest(args)
	if err != nil {
		return err
	}
	if !limited(c) {
		return printResult(r, c.CNIVersion)
	}
	k, err := bandwidth.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	port, err := k.Port(hostDevices(r))
	if err != nil {
		return fmt.Errorf("bandwidth: %w", err)
	}
	device := bandwidth.DeviceName(c.Network, args.ContainerID, args.IfName)
	if err := k.Limit(c, port, device); err != nil {
		return fmt.Errorf("bandwidth: %w", err)
	}
	return printResult(r, c.CNIVersion)
}

// hostDevices returns the devices of a result that are not inside the pod.
func hostDevices(r *types100.Result) []string {
	var names []string
	for _, i := range r.Interfaces {
		if i.Sandbox == "" {
			names = append(names, i.Name)
		}
	}
	return names
}

func delBandwidth(args *skel.CmdArgs) error {
	c, err := bandwidth.Parse(args.StdinData)
	if c.Network == "" {
		return err
	}
	k, err := bandwidth.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	return k.Delete(bandwidth.DeviceName(c.Network, args.ContainerID, args.IfName))
}

func checkBandwidth(args *skel.CmdArgs) error {
	c, r, err := bandwidthRequest(args)
	if err != nil || !limited(c) {
		return err
	}
	k, err := bandwidth.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	port, err := k.Port(hostDevices(r))
	if err != nil {
		return differs([]string{err.Error()})
	}
	differences, err := k.Check(c, port, bandwidth.DeviceName(c.Network, args.ContainerID, args.IfName))
	if err == nil && len(differences) > 0 {
		err = differs(differences)
	}
	return err
}

func gcBandwidth(args *skel.CmdArgs) error {
	c, err := bandwidth.Parse(args.StdinData)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for o := range validOwners(c.Valid) {
		keep[bandwidth.DeviceName(c.Network, o.ContainerID, o.IfName)] = true
	}
	k, err := bandwidth.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	return k.DeleteOthers(c.Network, keep)
}
