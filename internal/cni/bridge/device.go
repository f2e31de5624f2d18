package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// ensureDevice makes the bridge or brings an existing one, whoever made it, in line. Any number of
// processes may do so at once. It returns the addresses that the bridge has beyond those wanted.
func (k *Kernel) ensureDevice(want Device, port Port) (link netlink.Link, extra []netip.Prefix, err error) {
	link, made, err := k.findOrMake(want)
	if err == nil {
		extra, err = k.configureDevice(want, link)
	}
	if err == nil && made {
		err = k.adoptOrphans(port, link.Attrs().Index)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("bridge %s: %w", want.Name, err)
	}
	return link, extra, nil
}

func (k *Kernel) findOrMake(want Device) (link netlink.Link, made bool, err error) {
	link, err = k.nl.LinkByName(want.Name)
	if missing(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = want.Name, want.MTU, want.MAC
		err = k.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
		made = err == nil
		if made || errors.Is(err, unix.EEXIST) { // another ADD was quicker
			link, err = k.nl.LinkByName(want.Name)
		}
	}
	if err == nil && link.Type() != "bridge" {
		err = fmt.Errorf("a device of that name exists and is a %s: remove it, or name another bridge in delegate.bridge", link.Type())
	}
	return link, made, err
}

func (k *Kernel) configureDevice(want Device, link netlink.Link) ([]netip.Prefix, error) {
	attrs := link.Attrs()
	if want.Promisc && attrs.Promisc == 0 {
		if err := k.nl.SetPromiscOn(link); err != nil {
			return nil, fmt.Errorf("promiscuous mode: %w", err)
		}
	}
	if err := deviceSysctls(want); err != nil {
		return nil, err
	}
	if attrs.Flags&net.FlagUp == 0 {
		if err := k.nl.LinkSetUp(link); err != nil {
			return nil, fmt.Errorf("set up: %w", err)
		}
	}
	extra, err := k.setGateways(want, link)
	if err != nil {
		return nil, err
	}
	for _, f := range want.Forward {
		if err := setSysctl(forwarding(f), "1"); err != nil {
			return nil, err
		}
	}
	return extra, nil
}

func deviceSysctls(want Device) error {
	dir := "ipv6/conf/" + want.Name + "/"
	// The routes of the bridge are ours; a router that some pod plays must not add any.
	if err := setSysctl(dir+"accept_ra", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if !slices.Contains(want.Forward, family.V6) {
		return nil
	}
	// Neighbours are solicited from the link-local address, and not at all while that is tentative: without
	// this no packet is forwarded to a pod for two seconds. With hairpin the detection would even see itself.
	if err := setSysctl(dir+"accept_dad", "0"); err != nil {
		return fmt.Errorf("IPv6 is needed: %w", err)
	}
	return setSysctl(dir+"disable_ipv6", "0") // it may be off for new devices
}

func forwarding(f family.Family) string {
	if f == family.V4 {
		return "ipv4/ip_forward"
	}
	return "ipv6/conf/all/forwarding"
}

// setGateways adds the gateway addresses that are missing, and returns what else is there. With
// ForceAddress nothing else stays in the families of the gateways.
func (k *Kernel) setGateways(want Device, link netlink.Link) (extra []netip.Prefix, err error) {
	if len(want.Addrs) == 0 {
		return nil, nil
	}
	have, err := k.addresses(link)
	if err != nil {
		return nil, err
	}
	for _, p := range want.Addrs {
		if have[p] {
			delete(have, p)
			continue
		}
		if err := k.nl.AddrReplace(link, address(p, false)); err != nil {
			return nil, fmt.Errorf("add address %s: %w", p, err)
		}
	}
	for p := range have {
		if want.ForceAddress && slices.Contains(want.Forward, family.Of(p.Addr())) {
			if err := k.deleteAddress(link, p); err != nil {
				return nil, err
			}
			continue
		}
		extra = append(extra, p)
	}
	return extra, nil
}

// DeleteAddress deletes an address of the bridge. One that is gone is fine.
func (k *Kernel) DeleteAddress(device string, p netip.Prefix) error {
	link, err := k.nl.LinkByName(device)
	if missing(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", device, err)
	}
	return k.deleteAddress(link, p)
}

func (k *Kernel) deleteAddress(link netlink.Link, p netip.Prefix) error {
	if err := k.nl.AddrDel(link, address(p, true)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("delete address %s: %w", p, err)
	}
	return nil
}

// addresses returns the addresses of a device, IPv6 link-local ones excepted.
func (k *Kernel) addresses(link netlink.Link) (map[netip.Prefix]bool, error) {
	list, err := k.nl.AddrList(link, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	have := map[netip.Prefix]bool{}
	for _, a := range list {
		if p, ok := prefix(*a.IPNet); ok && !p.Addr().IsLinkLocalUnicast() {
			have[p] = true
		}
	}
	return have, nil
}

// adoptOrphans puts the ports of pods that were on a bridge of this name before somebody deleted it
// onto the new one. They are like the one that is about to be made.
func (k *Kernel) adoptOrphans(like Port, bridge int) error {
	links, err := k.nl.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if a := l.Attrs(); a.Alias == like.Alias && a.MasterIndex == 0 {
			err := errors.Join(k.nl.LinkSetMasterByIndex(l, bridge), k.setFlags(l, like))
			if err != nil && !missing(err) {
				return fmt.Errorf("attach %s again: %w", a.Name, err)
			}
		}
	}
	return nil
}

// setFlags sets what only a port of a bridge has.
func (k *Kernel) setFlags(l netlink.Link, want Port) (err error) {
	if want.Hairpin {
		err = k.nl.LinkSetHairpin(l, true)
	}
	if err == nil && want.Isolated {
		err = k.nl.LinkSetIsolated(l, true)
	}
	return err
}

// address is the netlink form of p. Nobody else can have the addresses that IPAM gives, so without dad
// the kernel does not hold them back for the second that duplicate address detection takes.
func address(p netip.Prefix, dad bool) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if family.Of(p.Addr()) == family.V6 && !dad {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// missing says whether err means that a device is not there.
func missing(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}
