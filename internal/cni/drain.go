package cni

import (
	"net/netip"
	"slices"

	"github.com/weftnet/weft/internal/cni/bridge"
	"github.com/weftnet/weft/internal/cni/conf"
	"github.com/weftnet/weft/internal/cni/hostlocal"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/subnetfile"
)

// When the node gets another subnet, the bridge gets its gateway's address beside the old one, because
// the pods of the old subnet live on and need theirs. Once the last of them has gone, so does the old
// address: at its DEL, or at the next ADD.

// drained returns those of the bridge's extra addresses that were gateways of a former subnet of the
// cluster's networks and whose pods are gone. An address that a person put there is no gateway of ours,
// unless it looks exactly like one.
func drained(extra, networks []netip.Prefix, held []netip.Addr) []netip.Prefix {
	var gone []netip.Prefix
	for _, p := range extra {
		inside := slices.ContainsFunc(networks, func(n netip.Prefix) bool {
			return n.Bits() > 0 && n.Bits() < p.Bits() && n.Contains(p.Addr())
		})
		if inside && p == subnetfile.Gateway(p) && !slices.ContainsFunc(held, p.Contains) {
			gone = append(gone, p)
		}
	}
	return gone
}

// drain deletes what is drained at an ADD. Pods that died without DEL hold nothing back. A failure must not
// fail the pod: the next ADD tries again.
func drain(c conf.Bridge, k *bridge.Kernel, extra []netip.Prefix, r reclaim) {
	if len(extra) == 0 || c.IPAMType != "host-local" {
		return
	}
	var networks []netip.Prefix
	for _, r := range c.IPAM.Routes {
		if n, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			ones, _ := r.Dst.Mask.Size()
			networks = append(networks, netip.PrefixFrom(n.Unmap(), ones))
		}
	}
	dir, err := hostlocal.OpenExisting(c.IPAM.Dir)
	if dir == nil || err != nil {
		return
	}
	defer dir.Close()
	held, err := heldIn(dir)
	if err != nil {
		return
	}
	if former := drained(extra, networks, nil); len(former) > len(drained(former, networks, held)) {
		if n, _ := r(dir); n > 0 {
			if held, err = heldIn(dir); err != nil {
				return
			}
		}
	}
	for _, p := range drained(extra, networks, held) {
		_ = k.DeleteAddress(c.Device, p)
	}
}

// drainOwn deletes the gateways of the subnets that a deleted pod was in, if they are not this node's any
// more and it was the last. Without subnet.env nobody knows, and they stay.
func drainOwn(c conf.Flannel, b conf.Bridge) error {
	env, err := subnetfile.ReadLists(c.SubnetFile)
	if err != nil || conf.CheckEnv(env) != nil || b.IPAMType != "host-local" || !b.Gateway {
		return nil
	}
	var old []netip.Prefix
	for _, set := range b.IPAM.Sets {
		for _, r := range set {
			if !slices.Contains(env.Subnet.Of(family.Of(r.Subnet.Addr())), r.Subnet) {
				old = append(old, netip.PrefixFrom(r.Gateway, r.Subnet.Bits()))
			}
		}
	}
	if len(old) == 0 {
		return nil
	}
	dir, err := hostlocal.OpenExisting(b.IPAM.Dir)
	if dir == nil || err != nil {
		return err
	}
	defer dir.Close()
	held, err := heldIn(dir)
	if err != nil {
		return err
	}
	k, err := bridge.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	for _, p := range old {
		if !slices.ContainsFunc(held, p.Contains) {
			if err := k.DeleteAddress(b.Device, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func heldIn(dir *hostlocal.Dir) ([]netip.Addr, error) {
	entries, err := dir.Entries()
	var held []netip.Addr
	for a := range entries {
		held = append(held, a)
	}
	return held, err
}
