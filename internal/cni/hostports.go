package cni

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/cni/bridge"
	"github.com/weftnet/weft/internal/cni/portmap"
	"github.com/weftnet/weft/internal/cni/rules"
	"github.com/weftnet/weft/internal/family"
)

func portmapFuncs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add: addPortmap, Del: delPortmap, Check: checkPortmap, GC: gcPortmap,
		Status: func(args *skel.CmdArgs) error { _, err := portmap.Parse(args.StdinData); return notAvailable(err) },
	}
}

// portmapRequest reads what ADD and CHECK need.
func portmapRequest(args *skel.CmdArgs) (portmap.Config, *types100.Result, error) {
	c, err := portmap.Parse(args.StdinData)
	if err != nil {
		return c, nil, err
	}
	r, err := previous(c.PrevResult, c.CNIVersion)
	if err == nil && r == nil {
		err = needsPrevious("portmap")
	}
	return c, r, err
}

func addPortmap(args *skel.CmdArgs) error {
	c, r, err := portmapRequest(args)
	if err != nil {
		return err
	}
	if len(c.Mappings) > 0 {
		if err := mapPorts(c, r, labelOf("portmap", c.Network, args)); err != nil {
			return fmt.Errorf("portmap: %w", err)
		}
	}
	return printResult(r, c.CNIVersion)
}

func mapPorts(c portmap.Config, r *types100.Result, label rules.Label) error {
	pods := portmap.Pods(r)
	if !pods.V4.IsValid() && !pods.V6.IsValid() {
		return errors.New("prevResult holds no address of the pod")
	}
	conn, err := rules.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.Replace(label, portmap.Rules(c, pods)); err != nil {
		return err
	}
	k, err := bridge.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	if c.SNAT && pods.V4.IsValid() {
		if err := k.RouteLocalnet(pods.V4.Addr()); err != nil {
			return err
		}
	}
	for _, f := range family.All() {
		if pods.Of(f).IsValid() {
			// A client that kept sending while there was no mapping has a conntrack entry without one.
			if err := forgetUDP(c, f, netip.Addr{}); err != nil {
				return err
			}
		}
	}
	return nil
}

func forgetUDP(c portmap.Config, f family.Family, pod netip.Addr) error {
	for _, m := range c.Mappings {
		if m.Protocol == unix.IPPROTO_UDP {
			if err := bridge.ForgetUDP(f, m.HostPort, pod); err != nil {
				return err
			}
		}
	}
	return nil
}

func delPortmap(args *skel.CmdArgs) error {
	c, err := portmap.Parse(args.StdinData)
	if c.Network == "" {
		return err // what was once added must be removable, however odd its mappings
	}
	conn, err := rules.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	label := labelOf("portmap", c.Network, args).String()
	err = conn.Remove(func(comment string) bool { return comment == label })
	if err := errors.Join(err, conn.RemoveForeignPortmap(c.Network, args.ContainerID)); err != nil {
		return err
	}
	// A client that goes on sending would reach the pod that gets the address next. Before CNI 0.4.0 nobody
	// tells which address that is.
	var pods family.Pair[netip.Prefix]
	if r, err := previous(c.PrevResult, c.CNIVersion); err == nil && r != nil {
		pods = portmap.Pods(r)
	}
	for _, f := range family.All() {
		if pods.Of(f).IsValid() || pods == (family.Pair[netip.Prefix]{}) {
			_ = forgetUDP(c, f, pods.Of(f).Addr()) // where there is no conntrack there are no entries
		}
	}
	return nil
}

func checkPortmap(args *skel.CmdArgs) error {
	c, r, err := portmapRequest(args)
	if err != nil || len(c.Mappings) == 0 {
		return err
	}
	conn, err := rules.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	have, err := conn.Count()
	if err != nil {
		return err
	}
	label := labelOf("portmap", c.Network, args).String()
	if want := len(portmap.Rules(c, portmap.Pods(r))); have[label] != want {
		return differs([]string{fmt.Sprintf("hostPorts: %d of %d nftables rules", have[label], want)})
	}
	return nil
}

func gcPortmap(args *skel.CmdArgs) error {
	c, err := portmap.Parse(args.StdinData)
	if err != nil {
		return err
	}
	return gcRules("portmap", c.Network, validOwners(c.Valid))
}

func labelOf(plugin, network string, args *skel.CmdArgs) rules.Label {
	return rules.Label{Plugin: plugin, Network: network, ContainerID: args.ContainerID, IfName: args.IfName}
}
