package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/internal/family"
)

// Check returns what differs from the plan, as sentences; none if nothing does.
func (k *Kernel) Check(p Plan, ns *Namespace) ([]string, error) {
	device, differences, err := k.checkDevice(p.Bridge)
	if err != nil {
		return nil, err
	}
	more, err := k.checkPort(p.Port, device)
	if err != nil {
		return nil, err
	}
	pod, err := ns.handle()
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	inside, err := checkPod(p.Pod, pod)
	return slices.Concat(differences, more, inside), err
}

type list []string

func (l *list) add(differs bool, format string, args ...any) {
	if differs {
		*l = append(*l, fmt.Sprintf(format, args...))
	}
}

func (k *Kernel) checkDevice(want Device) (index int, differences list, err error) {
	link, err := k.nl.LinkByName(want.Name)
	if missing(err) {
		return 0, list{"bridge " + want.Name + " is gone"}, nil
	}
	if err != nil {
		return 0, nil, fmt.Errorf("bridge %s: %w", want.Name, err)
	}
	differences.add(link.Type() != "bridge", "%s is a %s, not a bridge", want.Name, link.Type())
	differences.add(link.Attrs().Flags&net.FlagUp == 0, "bridge %s is down", want.Name)
	differences.add(want.Promisc && link.Attrs().Promisc == 0, "bridge %s is not promiscuous", want.Name)
	have, err := k.addresses(link)
	if err != nil {
		return 0, nil, err
	}
	for _, a := range want.Addrs {
		differences.add(!have[a], "bridge %s has no address %s", want.Name, a)
	}
	for _, f := range want.Forward {
		raw, err := os.ReadFile("/proc/sys/net/" + forwarding(f))
		differences.add(err == nil && strings.TrimSpace(string(raw)) == "0", "this node does not forward %s", f)
	}
	return link.Attrs().Index, differences, nil
}

func (k *Kernel) checkPort(want Port, bridge int) (differences list, err error) {
	link, err := k.nl.LinkByName(want.Name)
	if missing(err) {
		return list{"port " + want.Name + " is gone"}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("port %s: %w", want.Name, err)
	}
	differences.add(link.Attrs().Flags&net.FlagUp == 0, "port %s is down", want.Name)
	differences.add(want.MTU > 0 && link.Attrs().MTU != want.MTU, "port %s has MTU %d, not %d", want.Name, link.Attrs().MTU, want.MTU)
	if link.Attrs().MasterIndex != bridge || bridge == 0 {
		differences.add(true, "port %s is not on the bridge", want.Name)
		return differences, nil
	}
	flags, err := k.nl.LinkGetProtinfo(link)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("port %s: %w", want.Name, err)
	}
	differences.add(want.Hairpin && !flags.Hairpin, "port %s has no hairpin", want.Name)
	differences.add(want.Isolated && !flags.Isolated, "port %s is not isolated", want.Name)
	return differences, nil
}

func checkPod(want Interface, pod *netlink.Handle) (differences list, err error) {
	link, err := pod.LinkByName(want.Name)
	if missing(err) {
		return list{"the pod has no interface " + want.Name}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("interface %s of the pod: %w", want.Name, err)
	}
	a := link.Attrs()
	differences.add(a.Flags&net.FlagUp == 0, "interface %s of the pod is down", want.Name)
	differences.add(want.MTU > 0 && a.MTU != want.MTU, "interface %s of the pod has MTU %d, not %d", want.Name, a.MTU, want.MTU)
	differences.add(want.MAC != nil && !bytes.Equal(a.HardwareAddr, want.MAC), "interface %s of the pod has MAC %s, not %s", want.Name, a.HardwareAddr, want.MAC)
	have, err := (&Kernel{nl: pod}).addresses(link)
	if err != nil {
		return nil, err
	}
	for _, p := range want.Addrs {
		differences.add(!have[p], "interface %s of the pod has no address %s", want.Name, p)
	}
	for _, r := range want.Routes {
		ok, err := hasRoute(pod, r)
		if err != nil {
			return nil, err
		}
		differences.add(!ok, "the pod has no route to %s via %s", r.Dst, r.Via)
	}
	return differences, nil
}

func hasRoute(pod *netlink.Handle, want Route) (bool, error) {
	filter := want.netlink(0)
	mask := uint64(netlink.RT_FILTER_DST)
	if filter.Gw != nil {
		mask |= netlink.RT_FILTER_GW
	}
	if filter.Table != 0 {
		mask |= netlink.RT_FILTER_TABLE
	}
	v := netlink.FAMILY_V4
	if family.Of(want.Dst.Addr()) == family.V6 {
		v = netlink.FAMILY_V6
	}
	routes, err := pod.RouteListFiltered(v, &filter, mask)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, fmt.Errorf("list the pod's routes: %w", err)
	}
	return len(routes) > 0, nil
}
