package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A LivePort says which addresses live behind a port of the bridge.
type LivePort struct {
	Name  string
	Ours  bool         // made by this plugin for this network: its alias says so
	Other bool         // made by this plugin for another network
	Addrs []netip.Addr // of the namespace at the other end, link-local ones excepted
}

// Ports lists the veth ports of a bridge, and the ports of the network that have lost theirs, with the
// addresses at their other end. The kernel answers for other namespaces (IFA_TARGET_NETNSID, Linux 4.20),
// so this holds for pods that any plugin attached. An older kernel is an error.
func (k *Kernel) Ports(device, network string) ([]LivePort, error) {
	links, err := whole(k.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	bridge := -1
	for _, l := range links {
		if l.Attrs().Name == device {
			bridge = l.Attrs().Index
		}
	}
	socket, err := strictSocket()
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	var ports []LivePort
	for _, l := range links {
		a := l.Attrs()
		ours := a.Alias == Alias(network)
		if l.Type() != "veth" || a.MasterIndex != bridge && !ours {
			continue
		}
		p := LivePort{Name: a.Name, Ours: ours, Other: !ours && strings.HasPrefix(a.Alias, Alias(""))}
		p.Addrs, err = whole(func() ([]netip.Addr, error) { return addressesOf(socket, a.NetNsID) })
		if errors.Is(err, unix.EINVAL) {
			continue // the namespace is being taken down, and the port with it
		}
		if err != nil {
			return nil, fmt.Errorf("addresses behind %s: %w", a.Name, err)
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// whole lists again while the list changes: what is missing from it would be taken for dead.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 100 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// strictSocket returns a socket on which a dump may be filtered.
func strictSocket() (*nl.NetlinkSocket, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	if err := unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		s.Close()
		return nil, fmt.Errorf("netlink: filtered dumps: %w", err)
	}
	return s, nil
}

const ifaTargetNetnsid = 10 // IFA_TARGET_NETNSID of linux/if_addr.h

// addressesOf dumps the addresses of a namespace by its id; below zero it is our own.
func addressesOf(s *nl.NetlinkSocket, nsid int) ([]netip.Addr, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
	req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
	if nsid >= 0 {
		req.AddData(nl.NewRtAttr(ifaTargetNetnsid, nl.Uint32Attr(uint32(nsid))))
	}
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, m := range msgs {
		if a, ok := parseAddress(m); ok && !a.IsLinkLocalUnicast() && !a.IsLoopback() {
			addrs = append(addrs, a)
		}
	}
	return addrs, nil
}

// parseAddress returns the address of an RTM_NEWADDR message: IFA_LOCAL where it differs from
// IFA_ADDRESS, which is the peer's on point-to-point links.
func parseAddress(m []byte) (netip.Addr, bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return netip.Addr{}, false
	}
	var address, local netip.Addr
	for rest := m[unix.SizeofIfAddrmsg:]; len(rest) >= unix.SizeofRtAttr; {
		length, kind := int(binary.NativeEndian.Uint16(rest)), binary.NativeEndian.Uint16(rest[2:])
		if length < unix.SizeofRtAttr || length > len(rest) {
			break
		}
		value := rest[unix.SizeofRtAttr:length]
		switch kind {
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(value)
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(value)
		}
		rest = rest[min(len(rest), (length+3)&^3):]
	}
	if local.IsValid() {
		return local, true
	}
	return address, address.IsValid()
}
