package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/weftnet/weft/internal/cni/bridge"
	"github.com/weftnet/weft/internal/cni/conf"
	"github.com/weftnet/weft/internal/cni/hostlocal"
)

// A reclaim frees the dead entries of a directory and says how many there were.
type reclaim func(*hostlocal.Dir) (int, error)

// allocate gets the pod's addresses, from the directory or from the IPAM plugin that the configuration
// names. The Hold is the caller's to close when the ADD is over.
func allocate(c conf.Bridge, args *skel.CmdArgs, r reclaim) (bridge.Addressing, hostlocal.Hold, error) {
	switch c.IPAMType {
	case "":
		return bridge.Addressing{}, hostlocal.Hold{}, nil
	case "host-local":
		return allocateLocal(c.IPAM, ownerOf(args), r)
	}
	a, err := allocateElsewhere(c, args)
	return a, hostlocal.Hold{}, err
}

func allocateElsewhere(c conf.Bridge, args *skel.CmdArgs) (bridge.Addressing, error) {
	out, err := run(c.IPAMType, "ADD", args.Path, c.Raw)
	if err != nil {
		return bridge.Addressing{}, err
	}
	version := c.CNIVersion
	if version == "" {
		version = "0.1.0"
	}
	r, err := create.Create(version, out)
	if err != nil {
		return bridge.Addressing{}, fmt.Errorf("result of %s: %w", c.IPAMType, err)
	}
	full, err := types100.NewResultFromResult(r)
	if err != nil {
		return bridge.Addressing{}, fmt.Errorf("result of %s: %w", c.IPAMType, err)
	}
	return fromResult(full)
}

func allocateLocal(c conf.HostLocal, owner hostlocal.Owner, r reclaim) (bridge.Addressing, hostlocal.Hold, error) {
	given, hold, err := give(c, owner, r)
	if err != nil {
		return bridge.Addressing{}, hostlocal.Hold{}, err
	}
	a := bridge.Addressing{Routes: c.Routes}
	for _, g := range given {
		a.IPs = append(a.IPs, bridge.IP{Addr: g.Addr, Gateway: g.Gateway})
	}
	if c.ResolvConf != "" {
		raw, err := os.ReadFile(c.ResolvConf)
		if err != nil {
			defer hold.Close()
			return a, hostlocal.Hold{}, errors.Join(fmt.Errorf("ipam.resolvConf: %w", err), freeThese(c, hold.Fresh))
		}
		a.DNS = conf.ParseResolvConf(raw)
	}
	return a, hold, nil
}

// give allocates, and when a range is full once more after the dead entries have gone.
func give(c conf.HostLocal, owner hostlocal.Owner, r reclaim) ([]hostlocal.Given, hostlocal.Hold, error) {
	dir, err := hostlocal.Open(c.Dir)
	if err != nil {
		return nil, hostlocal.Hold{}, err
	}
	defer dir.Close()
	given, hold, err := dir.Allocate(c, owner)
	if !errors.Is(err, hostlocal.ErrFull) {
		return given, hold, err
	}
	n, reclaimErr := r(dir)
	if reclaimErr != nil && n == 0 {
		return nil, hostlocal.Hold{}, fmt.Errorf("%w, and the dead entries cannot be freed: %w", err, reclaimErr)
	}
	if n == 0 {
		return nil, hostlocal.Hold{}, full(c, err)
	}
	if given, hold, err = dir.Allocate(c, owner); errors.Is(err, hostlocal.ErrFull) {
		return nil, hostlocal.Hold{}, full(c, err)
	}
	return given, hold, err
}

func full(c conf.HostLocal, err error) error {
	return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("%v; every entry in %s belongs to a living pod: "+
		"run fewer pods on this node or give nodes larger subnets (SubnetLen)", err, c.Dir), "")
}

// free gives the pod's addresses back. What is free already is fine.
func free(c conf.Bridge, args *skel.CmdArgs) error {
	switch c.IPAMType {
	case "":
		return nil
	case "host-local":
		return freeLocal(c.IPAM, ownerOf(args))
	}
	_, err := run(c.IPAMType, "DEL", args.Path, c.Raw)
	return err
}

// giveBack is the free of an ADD that failed because of err: what the attachment held before stays, since
// the ADD before may have been a whole one, whose pod lives.
func giveBack(c conf.Bridge, args *skel.CmdArgs, hold hostlocal.Hold, err error) error {
	if c.IPAMType == "host-local" {
		return errors.Join(err, freeThese(c.IPAM, hold.Fresh))
	}
	if errors.Is(err, bridge.ErrAttached) {
		return err
	}
	return errors.Join(err, free(c, args))
}

func freeThese(c conf.HostLocal, addrs []netip.Addr) error {
	dir, err := hostlocal.OpenExisting(c.Dir)
	if dir == nil || err != nil {
		return err
	}
	defer dir.Close()
	var errs []error
	for _, a := range addrs {
		errs = append(errs, dir.Free(a))
	}
	return errors.Join(errs...)
}

func freeLocal(c conf.HostLocal, owner hostlocal.Owner) error {
	dir, err := hostlocal.OpenExisting(c.Dir)
	if dir == nil || err != nil {
		return err
	}
	defer dir.Close()
	_, err = dir.FreeAll(owner)
	return err
}

func ownerOf(args *skel.CmdArgs) hostlocal.Owner {
	return hostlocal.Owner{ContainerID: args.ContainerID, IfName: args.IfName}
}

// fromResult reads what an IPAM plugin answered.
func fromResult(r *types100.Result) (bridge.Addressing, error) {
	a := bridge.Addressing{Routes: r.Routes, DNS: r.DNS}
	for _, ip := range r.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		ones, _ := ip.Address.Mask.Size()
		p := netip.PrefixFrom(addr.Unmap(), ones)
		if !ok || !p.IsValid() {
			return a, fmt.Errorf("IPAM gave %s, which is not an address", ip.Address.String())
		}
		gw, _ := netip.AddrFromSlice(ip.Gateway)
		a.IPs = append(a.IPs, bridge.IP{Addr: p, Gateway: gw.Unmap()})
	}
	return a, nil
}
