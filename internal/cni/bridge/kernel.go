package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// A Kernel is the host's side: one netlink socket.
type Kernel struct {
	nl *netlink.Handle
}

// Open opens the socket in the caller's namespace.
func Open() (*Kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &Kernel{nl: h}, nil
}

// Close closes the socket.
func (k *Kernel) Close() { k.nl.Close() }

// ErrAttached means that the pod has an interface of that name, from an ADD before or from somebody else.
var ErrAttached = errors.New("already: DEL comes before another ADD")

// Made is what only the kernel knows of an attachment.
type Made struct {
	Bridge, Port, Pod net.HardwareAddr
	Extra             []netip.Prefix // addresses of the bridge that the plan does not want
}

// Attach makes what p says, and on failure takes away the veth pair again. The bridge stays: others may
// use it by then.
func (k *Kernel) Attach(p Plan, ns *Namespace) (Made, error) {
	bridge, extra, err := k.ensureDevice(p.Bridge, p.Port)
	if err != nil {
		return Made{}, err
	}
	pod, err := ns.handle()
	if err != nil {
		return Made{}, err
	}
	defer pod.Close()
	if err := k.makePair(p, bridge.Attrs().Index, ns, pod); err != nil {
		return Made{}, err
	}
	made, err := k.configurePair(p, ns, pod)
	if err != nil {
		return Made{}, k.undo(p.Port.Name, err)
	}
	bridge, err = k.nl.LinkByName(p.Bridge.Name) // a foreign bridge's MAC may follow its ports
	if err != nil {
		return Made{}, k.undo(p.Port.Name, err)
	}
	made.Bridge, made.Extra = bridge.Attrs().HardwareAddr, extra
	return made, nil
}

// makePair makes the veth pair. A port of that name without its inner end in the pod is what an ADD that
// was killed left behind in a namespace that is no longer the pod's; it is replaced.
func (k *Kernel) makePair(p Plan, bridge int, ns *Namespace, pod *netlink.Handle) error {
	err := createPair(p, bridge, int(ns.file.Fd()))
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if _, err := pod.LinkByName(p.Pod.Name); !missing(err) {
		return fmt.Errorf("the pod has an interface %s %w", p.Pod.Name, ErrAttached)
	}
	if _, err := k.DeletePort(p.Port.Name); err != nil {
		return err
	}
	return createPair(p, bridge, int(ns.file.Fd()))
}

// createPair makes both ends and puts the outer one on the bridge, up, in one message. The inner one
// cannot be made up: veth_open wants its peer first (ENOTCONN).
func createPair(p Plan, bridge, ns int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(upInfo())
	addLinkAttrs(req.AddData, p.Port.Name, p.Port.MTU, nil)
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	peer.AddChild(nl.NewIfInfomsg(unix.AF_UNSPEC))
	addLinkAttrs(func(d nl.NetlinkRequestData) { peer.AddChild(d) }, p.Pod.Name, p.Pod.MTU, p.Pod.MAC)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns)))
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("make veth pair %s: %w", p.Port.Name, err)
	}
	return nil
}

func upInfo() *nl.IfInfomsg {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Flags, m.Change = unix.IFF_UP, unix.IFF_UP
	return m
}

func addLinkAttrs(add func(nl.NetlinkRequestData), name string, mtu int, mac net.HardwareAddr) {
	add(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if mtu > 0 {
		add(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	}
	if mac != nil {
		add(nl.NewRtAttr(unix.IFLA_ADDRESS, mac))
	}
}

func (k *Kernel) configurePair(p Plan, ns *Namespace, pod *netlink.Handle) (Made, error) {
	port, err := k.nl.LinkByName(p.Port.Name)
	if err != nil {
		return Made{}, fmt.Errorf("port %s: %w", p.Port.Name, err)
	}
	err = k.nl.LinkSetAlias(port, p.Port.Alias)
	if err == nil {
		err = k.setFlags(port, p.Port)
	}
	if err != nil {
		return Made{}, fmt.Errorf("port %s: %w", p.Port.Name, err)
	}
	inner, err := pod.LinkByName(p.Pod.Name)
	if err == nil {
		err = configurePod(p.Pod, inner, ns, pod)
	}
	if err != nil {
		return Made{}, fmt.Errorf("interface %s of the pod: %w", p.Pod.Name, err)
	}
	return Made{Port: port.Attrs().HardwareAddr, Pod: inner.Attrs().HardwareAddr}, nil
}

func configurePod(want Interface, link netlink.Link, ns *Namespace, pod *netlink.Handle) error {
	if err := podSysctls(want, ns); err != nil {
		return err
	}
	for _, p := range want.Addrs {
		if err := pod.AddrAdd(link, address(p, want.DAD)); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	if err := pod.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	if want.DAD {
		if err := settle(link, pod); err != nil {
			return err
		}
	}
	for _, r := range want.Routes {
		route := r.netlink(link.Attrs().Index)
		// Whatever the kernel or another plugin put there first is what was asked for.
		if err := pod.RouteAdd(&route); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add route to %s via %s: %w", r.Dst, r.Via, err)
		}
	}
	return nil
}

// podSysctls prepares the interface while it is down. arp_notify tells the neighbours, who may remember
// the MAC of the last pod that had the address. IPv6 is turned on if it is needed: runtimes turn it off
// for the namespaces they make.
func podSysctls(want Interface, ns *Namespace) error {
	return ns.Do(func() error {
		if err := setSysctl("ipv4/conf/"+want.Name+"/arp_notify", "1"); err != nil {
			return err
		}
		if !slices.ContainsFunc(want.Addrs, func(p netip.Prefix) bool { return family.Of(p.Addr()) == family.V6 }) {
			return nil
		}
		dir := "ipv6/conf/" + want.Name + "/"
		if err := setSysctl(dir+"disable_ipv6", "0"); err != nil {
			return fmt.Errorf("IPv6 is needed: %w", err)
		}
		if !want.DAD {
			if err := setSysctl(dir+"accept_dad", "0"); err != nil {
				return err
			}
		}
		if err := setSysctl(dir+"keep_addr_on_down", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// settle waits until the kernel has found no duplicate of the addresses.
func settle(link netlink.Link, pod *netlink.Handle) error {
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := pod.AddrList(link, netlink.FAMILY_V6)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list addresses: %w", err)
		}
		tentative := false
		for _, a := range list {
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				return fmt.Errorf("somebody else has address %s", a.IPNet)
			}
			tentative = tentative || a.Flags&unix.IFA_F_TENTATIVE != 0
		}
		if !tentative {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return errors.New("duplicate address detection does not end")
		}
	}
}

func (r Route) netlink(link int) netlink.Route {
	k := netlink.Route{
		LinkIndex: link, Dst: ipNet(r.Dst), MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Table: r.Table,
		Scope: netlink.Scope(r.Scope),
	}
	if r.Via.IsValid() {
		k.Gw = r.Via.AsSlice()
	}
	return k
}

// DeletePort deletes a veth pair by its outer end and returns whether there was one.
func (k *Kernel) DeletePort(name string) (bool, error) {
	link, err := k.nl.LinkByName(name)
	if err == nil {
		err = k.nl.LinkDel(link)
	}
	if missing(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete port %s: %w", name, err)
	}
	return true, nil
}

// undo is DeletePort for what has failed halfway.
func (k *Kernel) undo(name string, because error) error {
	_, err := k.DeletePort(name)
	return errors.Join(because, err)
}

// Detach deletes the pod's interface, whoever made it. No namespace, or none with such an interface, is
// fine.
func (k *Kernel) Detach(a Attachment, netns string) error {
	deleted, err := k.DeletePort(a.PortName())
	if err != nil || deleted || netns == "" {
		return err // both ends of a pair go together
	}
	ns, err := OpenNamespace(netns)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	pod, err := ns.handle()
	if err != nil {
		return err
	}
	defer pod.Close()
	link, err := pod.LinkByName(a.IfName)
	if err == nil {
		err = pod.LinkDel(link)
	}
	if err != nil && !missing(err) {
		return fmt.Errorf("delete interface %s of the pod: %w", a.IfName, err)
	}
	return nil
}
