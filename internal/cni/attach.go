package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/internal/cni/bridge"
	"github.com/weftnet/weft/internal/cni/conf"
	"github.com/weftnet/weft/internal/cni/rules"
	"github.com/weftnet/weft/internal/family"
)

// attach does the whole ADD of type bridge. When it fails nothing of it is left, and what an ADD before
// made is as it was.
func attach(c conf.Bridge, args *skel.CmdArgs, r reclaim) (*types100.Result, error) {
	ns, err := bridge.OpenNamespace(args.Netns)
	if err != nil {
		return nil, coded(types.ErrInvalidNetNS, err)
	}
	defer ns.Close()
	given, hold, err := allocate(c, args, r)
	if err != nil {
		return nil, err
	}
	defer hold.Close()
	if c.Gateway && len(given.IPs) == 0 {
		return nil, giveBack(c, args, hold, fmt.Errorf("isGateway needs an address, and ipam.type %q gave none", c.IPAMType))
	}
	plan, err := bridge.New(c, attachmentOf(args), given)
	if err != nil {
		return nil, giveBack(c, args, hold, err)
	}
	k, err := bridge.Open()
	if err != nil {
		return nil, giveBack(c, args, hold, err)
	}
	defer k.Close()
	macs, err := k.Attach(plan, ns)
	if err != nil {
		return nil, giveBack(c, args, hold, err)
	}
	if err := addRules(c, plan, macs, args); err != nil {
		_, portErr := k.DeletePort(plan.Port.Name)
		return nil, giveBack(c, args, hold, errors.Join(err, portErr, delRules(c, args)))
	}
	drain(c, k, macs.Extra, r)
	return result(c, plan, given, macs, ns.Path), nil
}

// detach does the whole DEL of type bridge, in the order of the package comment.
func detach(c conf.Bridge, args *skel.CmdArgs) error {
	k, err := bridge.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	if err := k.Detach(attachmentOf(args), args.Netns); err != nil {
		return err
	}
	if err := delRules(c, args); err != nil {
		return err
	}
	return free(c, args)
}

// podRules plans the firewall rules that type bridge needs beyond the bridge.
func podRules(c conf.Bridge, p bridge.Plan, mac net.HardwareAddr) []rules.Rule {
	var all []rules.Rule
	if c.AntiSpoof {
		all = append(all, rules.Rule{
			Table: rules.Bridge, Chain: rules.AntiSpoof,
			Exprs: rules.Join(rules.FromDevice(p.Port.Name), rules.FromOtherMAC(mac), rules.Drop()),
		})
	}
	for _, a := range p.Pod.Addrs {
		f := family.Of(a.Addr())
		if c.Masquerade {
			all = append(all, rules.Rule{
				Table: rules.Of(f), Chain: rules.PostRouting,
				Exprs: rules.Join(
					rules.From(netip.PrefixFrom(a.Addr(), f.Bits())), rules.NotTo(a.Masked()), rules.NotTo(rules.Multicast(f)),
					rules.Masquerade()),
			})
		}
	}
	return all
}

func addRules(c conf.Bridge, p bridge.Plan, macs bridge.Made, args *skel.CmdArgs) error {
	want := podRules(c, p, macs.Pod)
	if len(want) == 0 {
		return nil
	}
	conn, err := rules.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Replace(labelOf("bridge", c.Network, args), want)
}

func delRules(c conf.Bridge, args *skel.CmdArgs) error {
	if !c.Masquerade && !c.AntiSpoof {
		return nil
	}
	conn, err := rules.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	label := labelOf("bridge", c.Network, args).String()
	err = conn.Remove(func(comment string) bool { return comment == label })
	return errors.Join(err, conn.RemoveForeignMasquerade(c.Network, args.ContainerID))
}

func checkRules(c conf.Bridge, p bridge.Plan, label rules.Label) ([]string, error) {
	want := len(podRules(c, p, p.Pod.MAC))
	if want == 0 {
		return nil, nil
	}
	conn, err := rules.Open()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	have, err := conn.Count()
	if n := have[label.String()]; err == nil && n != want {
		return []string{fmt.Sprintf("ipMasq, macspoofchk: %d of %d nftables rules", n, want)}, nil
	}
	return nil, err
}

func attachmentOf(args *skel.CmdArgs) bridge.Attachment {
	return bridge.Attachment{ContainerID: args.ContainerID, IfName: args.IfName}
}

// result lists the bridge, the outer and the inner end, in the order in which the reference plugin does.
func result(c conf.Bridge, p bridge.Plan, given bridge.Addressing, macs bridge.Made, netns string) *types100.Result {
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: p.Bridge.Name, Mac: macs.Bridge.String()},
			{Name: p.Port.Name, Mac: macs.Port.String()},
			{Name: p.Pod.Name, Mac: macs.Pod.String(), Sandbox: netns},
		},
		Routes: bridge.Routes(c, given),
		DNS:    given.DNS,
	}
	if !c.DNS.IsEmpty() {
		r.DNS = c.DNS
	}
	for _, ip := range given.IPs {
		address := ipConfig(ip)
		address.Interface = types100.Int(2)
		r.IPs = append(r.IPs, address)
	}
	return r
}

func ipConfig(ip bridge.IP) *types100.IPConfig {
	address := &types100.IPConfig{
		Address: net.IPNet{IP: ip.Addr.Addr().AsSlice(), Mask: net.CIDRMask(ip.Addr.Bits(), ip.Addr.Addr().BitLen())},
	}
	if ip.Gateway.IsValid() {
		address.Gateway = ip.Gateway.AsSlice()
	}
	return address
}
