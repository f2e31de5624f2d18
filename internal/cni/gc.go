package cni

import (
	"cmp"
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/internal/cni/bridge"
	"github.com/weftnet/weft/internal/cni/conf"
	"github.com/weftnet/weft/internal/cni/hostlocal"
	"github.com/weftnet/weft/internal/cni/rules"
	"github.com/weftnet/weft/internal/cni/statefile"
)

// owners are the attachments that the runtime still has.
type owners map[hostlocal.Owner]bool

func validOwners(list []types.GCAttachment) owners {
	valid := owners{}
	for _, a := range list {
		valid[hostlocal.Owner{ContainerID: a.ContainerID, IfName: a.IfName}] = true
	}
	return valid
}

// has takes an owner without interface, as old entries have it, for all interfaces of its container.
func (v owners) has(o hostlocal.Owner) bool {
	if v[o] {
		return true
	}
	if o.IfName != "" {
		return false
	}
	for known := range v {
		if known.ContainerID == o.ContainerID {
			return true
		}
	}
	return false
}

// gcBridge frees what no valid attachment holds, in the order of DEL: ports, rules, addresses.
func gcBridge(c conf.Bridge) error {
	valid := validOwners(c.ValidAttachments)
	k, err := bridge.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	if err := gcRules("bridge", c.Network, valid); err != nil {
		return err
	}
	ports, err := k.Ports(c.Device, c.Network)
	if err != nil {
		return err
	}
	if c.IPAMType != "host-local" {
		return gcPorts(k, ports, valid, nil)
	}
	dir, err := hostlocal.OpenExisting(c.IPAM.Dir)
	if err != nil {
		return err
	}
	if dir == nil {
		return gcPorts(k, ports, valid, nil)
	}
	defer dir.Close()
	return gcAddresses(c.Network, k, ports, valid, dir)
}

func gcAddresses(network string, k *bridge.Kernel, ports []bridge.LivePort, valid owners, dir *hostlocal.Dir) error {
	entries, err := dir.Entries()
	if err != nil {
		return err
	}
	keep, gone := owners{}, map[netip.Addr]hostlocal.Owner{}
	for a, o := range entries {
		if valid.has(o) || dir.InFlight(a) {
			keep[o] = true
		} else {
			gone[a] = o
		}
	}
	for o := range valid {
		keep[o] = true
	}
	// An address whose port could not be deleted stays taken.
	if err := gcPorts(k, ports, keep, gone); err != nil {
		return err
	}
	lost := owners{}
	for _, o := range gone {
		lost[o] = true
	}
	// Those of portmap too, which has its turn later: the next pod may have the address by then.
	if err := forgetOwners(network, lost); err != nil {
		return err
	}
	_, err = freeDead(dir, slices.Collect(maps.Keys(gone)))
	return err
}

// gcPorts deletes our ports that belong to none of keep, and whatever port is that of a gone entry, by its
// name or by the address that it leads to.
func gcPorts(k *bridge.Kernel, ports []bridge.LivePort, keep owners, gone map[netip.Addr]hostlocal.Owner) error {
	names, dead := map[string]bool{}, map[string]bool{}
	for o := range keep {
		names[portName(o)] = true
	}
	for _, o := range gone {
		dead[portName(o)] = true
	}
	var errs []error
	for _, p := range ports {
		leads := slices.ContainsFunc(p.Addrs, func(a netip.Addr) bool { _, is := gone[a]; return is })
		if !names[p.Name] && (p.Ours || leads && !p.Other || dead[p.Name]) {
			_, err := k.DeletePort(p.Name)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func portName(o hostlocal.Owner) string {
	return bridge.Attachment{ContainerID: o.ContainerID, IfName: o.IfName}.PortName()
}

// gcRules deletes a plugin's rules of a network that belong to no valid attachment.
func gcRules(plugin, network string, valid owners) error {
	conn, err := rules.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	keep := map[string]bool{}
	for o := range valid {
		keep[rules.Label{Plugin: plugin, Network: network, ContainerID: o.ContainerID, IfName: o.IfName}.String()] = true
	}
	return conn.Remove(func(comment string) bool {
		return strings.HasPrefix(comment, rules.Prefix(plugin, network)) && !keep[comment]
	})
}

// gc of flannel also forgets the state files of its network, and hands the rest to the plugin that does
// the work.
func (flannel) gc(args *skel.CmdArgs) error {
	c, err := conf.ParseFlannel(args.StdinData)
	if err != nil {
		return err
	}
	valid, state := validOwners(c.ValidAttachments), statefile.Dir(c.DataDir)
	keys, err := state.Keys()
	if err != nil {
		return err
	}
	kind, err := c.DelegateType()
	if err != nil {
		return err
	}
	if kind == "bridge" {
		b, err := bare(c)
		if err != nil {
			return err
		}
		b.ValidAttachments = c.ValidAttachments
		if err := gcBridge(b); err != nil {
			return err
		}
	}
	errs := []error{state.Sweep()}
	for _, key := range keys {
		if !valid.has(hostlocal.Owner{ContainerID: key.ContainerID, IfName: key.IfName}) {
			errs = append(errs, forget(c, state, key, args))
		}
	}
	return errors.Join(errs...)
}

// forget removes a state file of the network, and first, if another plugin did the work or gave the
// addresses, has it delete what it added.
func forget(c conf.Flannel, state statefile.Dir, key statefile.Key, args *skel.CmdArgs) error {
	stored, err := state.Load(key)
	if err != nil {
		return err
	}
	var d struct{ Name, Type string }
	if json.Unmarshal(stored, &d) != nil || d.Name != c.Name {
		return nil // another network's, or nobody knows whose
	}
	program := d.Type
	if d.Type == "bridge" {
		program = ""
		if b, err := conf.ReadBridge(stored); err == nil && b.OtherIPAM() {
			program = b.IPAMType
		}
	}
	if program != "" {
		ifName := cmp.Or(key.IfName, "eth0") // the original keeps none, and no interface of the container is valid
		env := append(os.Environ(), "CNI_CONTAINERID="+key.ContainerID, "CNI_IFNAME="+ifName, "CNI_NETNS=")
		if _, err := runEnv(program, "DEL", args.Path, stored, env); err != nil {
			return err
		}
	}
	return state.Remove(key)
}
