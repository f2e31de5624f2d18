package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/internal/family"
)

// A heldLease is what the lab reads of an entry in etcd.
type heldLease struct {
	node    string
	subnets []netip.Prefix
}

// AwaitRoutes waits until every node has a route to the subnet of every other node that holds a lease, and
// no better one that is still being probed.
func (l *Lab) AwaitRoutes(ctx context.Context) error {
	leases, err := l.heldLeases(ctx)
	if err != nil {
		return err
	}
	return l.EachNode(func(n *Node) error {
		for {
			missing, err := n.missingRoutes(leases)
			if err != nil || len(missing) == 0 {
				return err
			}
			if sleep(ctx, pollEvery) != nil {
				return fmt.Errorf("no route to %v; the agent's last lines:\n%s", missing, n.Agent.LogTail(15))
			}
		}
	})
}

// heldLeases reads the leases of the lab's nodes; whatever else is below the prefix is left out.
func (l *Lab) heldLeases(ctx context.Context) ([]heldLease, error) {
	raw, err := l.etcd.Leases(ctx)
	if err != nil {
		return nil, err
	}
	nodes := map[string]string{} // address to name
	for _, n := range l.Nodes {
		for _, a := range n.Addrs() {
			nodes[a.String()] = n.Name
		}
	}
	var leases []heldLease
	for key, value := range raw {
		var v struct{ PublicIP, PublicIPv6 string }
		if json.Unmarshal([]byte(value), &v) != nil {
			continue
		}
		if node := cmp.Or(nodes[v.PublicIP], nodes[v.PublicIPv6]); node != "" {
			leases = append(leases, heldLease{node: node, subnets: subnetsOf(path.Base(key))})
		}
	}
	return leases, nil
}

// subnetsOf reads a lease's name, "10.244.7.0-24&fd24:0:0:7::-64".
func subnetsOf(name string) []netip.Prefix {
	var out []netip.Prefix
	for part := range strings.SplitSeq(name, "&") {
		addr, bits, _ := strings.Cut(part, "-")
		if p, err := netip.ParsePrefix(addr + "/" + bits); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// missingRoutes returns the subnets of other nodes to which n has no route of its own, or has several.
func (n *Node) missingRoutes(leases []heldLease) ([]netip.Prefix, error) {
	h, err := n.Netlink()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	var missing []netip.Prefix
	for _, l := range leases {
		if l.node == n.Name {
			continue
		}
		for _, p := range l.subnets {
			fam := netlink.FAMILY_V4
			if family.Of(p.Addr()) == family.V6 {
				fam = netlink.FAMILY_V6
			}
			routes, err := h.RouteListFiltered(fam, &netlink.Route{Dst: prefixNet(p)}, netlink.RT_FILTER_DST)
			if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
				return nil, fmt.Errorf("list routes: %w", err)
			}
			if len(routes) != 1 {
				missing = append(missing, p)
			}
		}
	}
	return missing, nil
}
