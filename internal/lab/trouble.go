package lab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// Cable pulls a node's cable (connected false) or plugs it in again.
func (l *Lab) Cable(node string, connected bool) error {
	n, err := l.Node(node)
	if err != nil {
		return err
	}
	err = l.router.inside(func() error {
		link, err := netlink.LinkByName(node)
		if err != nil {
			return fmt.Errorf("cable of %s: %w", node, err)
		}
		if connected {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
	if err == nil && connected {
		err = l.awaitLink(node, n.machine, n.Segment())
	}
	return err
}

// partitionTable is the router's table for traffic that must vanish.
const partitionTable = 31

// Partition makes everything vanish silently that a node sends to etcd, or lets it through again. Its
// peers stay reachable.
func (l *Lab) Partition(node string, on bool) error {
	if _, err := l.Node(node); err != nil {
		return err
	}
	ports := l.Options.ports()
	return l.router.inside(func() error {
		for _, f := range family.All() {
			from, to := ports[node].Addr.Of(f), ports[etcdName].Addr.Of(f)
			if !from.IsValid() {
				continue
			}
			if err := partition(f, from.Addr(), to.Addr(), on); err != nil {
				return fmt.Errorf("partition %s: %w", node, err)
			}
		}
		return nil
	})
}

func partition(f family.Family, from, to netip.Addr, on bool) error {
	fam := unix.AF_INET
	if f == family.V6 {
		fam = unix.AF_INET6
	}
	hole := &netlink.Route{
		Family: fam, Table: partitionTable, Type: unix.RTN_BLACKHOLE,
		Dst: prefixNet(netip.PrefixFrom(to, to.BitLen())),
	}
	rule := netlink.NewRule()
	rule.Family, rule.Table, rule.Priority = fam, partitionTable, 100
	rule.Src = prefixNet(netip.PrefixFrom(from, from.BitLen()))
	rule.Dst = prefixNet(netip.PrefixFrom(to, to.BitLen()))
	if err := netlink.RouteReplace(hole); err != nil {
		return err
	}
	if on {
		if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		return nil
	}
	if err := netlink.RuleDel(rule); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}
