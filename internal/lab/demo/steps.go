package demo

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/lab"
	"github.com/weftnet/weft/internal/lab/frame"
)

func (s *show) leases(ctx context.Context) error {
	s.heading("The leases, as they stand in etcd", `
Each node has taken a subnet of the cluster's network for itself, and says how
the others reach it. This is all that the nodes know of each other.`)
	leases, err := s.lab.Etcd().Leases(ctx)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, key := range slices.Sorted(maps.Keys(leases)) {
		rows = append(rows, []string{lab.Prefix + "/" + key, leases[key]})
	}
	s.table(rows)
	s.check(len(leases) == len(s.lab.Nodes), "one lease per node")
	return nil
}

// routes shows the routes that lead to other nodes' pods.
func (s *show) routes(ctx context.Context) error {
	s.heading("The routes that follow from them", `
One per peer. "via ... dev eth0" sends the bare packet to the peer, which the node
can reach directly; "dev flannel.1" wraps it into VXLAN.`)
	if err := s.lab.AwaitRoutes(ctx); err != nil {
		return err
	}
	for _, n := range s.lab.Nodes {
		var rows [][]string
		err := n.Do(func() error {
			for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				routes, err := netlink.RouteListFiltered(fam, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
				if err != nil {
					return err
				}
				for _, r := range routes {
					if row, ok := peerRoute(r); ok {
						rows = append(rows, append([]string{"on " + n.Name}, row...))
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		s.table(rows)
	}
	return nil
}

// peerRoute renders a route to a peer's subnet. Other routes have no gateway or are default routes.
func peerRoute(r netlink.Route) ([]string, bool) {
	if r.Gw == nil || r.Dst == nil {
		return nil, false
	}
	if ones, _ := r.Dst.Mask.Size(); ones == 0 {
		return nil, false
	}
	link, err := netlink.LinkByIndex(r.LinkIndex)
	if err != nil {
		return nil, false // gone since
	}
	return []string{r.Dst.String(), "via " + r.Gw.String(), "dev " + link.Attrs().Name}, true
}

// paths asks each node's kernel how it reaches a pod of each other node, and compares.
func (s *show) paths(ctx context.Context) error {
	s.heading("Which path each pair of nodes takes", `
The kernel of the node on the left, asked for the way to a pod of the node above.`)
	rows := [][]string{{""}}
	for _, n := range s.lab.Nodes {
		rows[0] = append(rows[0], "to "+n.Name)
	}
	for _, from := range s.lab.Nodes {
		row := []string{"from " + from.Name}
		for _, to := range s.lab.Nodes {
			path := "-"
			if from != to {
				var err error
				if path, err = s.settledPath(ctx, from, to); err != nil {
					return err
				}
				s.expect(path == wantPath(from, to), "%s reaches %s by %s, not %s", from.Name, to.Name, path, wantPath(from, to))
			}
			row = append(row, path)
		}
		rows = append(rows, row)
	}
	s.table(rows)
	s.check(true, "direct within the segment, VXLAN across the router")
	return nil
}

func wantPath(from, to *lab.Node) string {
	if from.Segment() == to.Segment() {
		return "direct"
	}
	return "vxlan"
}

// settledPath gives an agent that has not had its processor yet the time to take the path that is wanted.
func (s *show) settledPath(ctx context.Context, from, to *lab.Node) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for {
		path, err := s.path(from, to)
		if err != nil || path == wantPath(from, to) {
			return path, err
		}
		select {
		case <-ctx.Done():
			return path, nil
		case <-look.C:
		}
	}
}

func (s *show) path(from, to *lab.Node) (string, error) {
	pods, err := to.Pods()
	if err != nil {
		return "", err
	}
	path := ""
	for _, a := range pods[0].Addrs() {
		dev, err := deviceTo(from, a)
		if err != nil {
			return "", err
		}
		this := "vxlan"
		if dev == lab.Uplink {
			this = "direct"
		}
		if path != "" && path != this {
			return "both ways", nil
		}
		path = this
	}
	return path, nil
}

// deviceTo returns the device through which a node reaches an address.
func deviceTo(n *lab.Node, a netip.Addr) (dev string, err error) {
	err = n.Do(func() error {
		routes, err := netlink.RouteGet(a.AsSlice())
		if err != nil || len(routes) == 0 {
			return fmt.Errorf("node %s has no route to %s: %w", n.Name, a, err)
		}
		link, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err == nil {
			dev = link.Attrs().Name
		}
		return err
	})
	return dev, err
}

// patience is for what takes no time, on a machine that is busy.
const patience = 30 * time.Second

func (s *show) matrix(context.Context) error {
	s.heading("Every pod pings every pod", "\nRound trip in milliseconds.")
	pairs, err := s.lab.PingAll(patience)
	if err != nil {
		return err
	}
	pods, err := s.lab.Pods()
	if err != nil {
		return err
	}
	cells := map[[2]string][]string{}
	lost := 0
	for _, p := range pairs {
		cell := fmt.Sprintf("%.2f", float64(p.RTT.Microseconds())/1000)
		if p.Err != nil {
			cell, lost = "LOST", lost+1
			s.expect(false, "%v: %v", p, p.Err)
		}
		key := [2]string{p.From.Name, p.To.Name}
		cells[key] = append(cells[key], cell)
	}
	rows := [][]string{{""}}
	for _, p := range pods {
		rows[0] = append(rows[0], p.Name)
	}
	for _, from := range pods {
		row := []string{from.Name}
		for _, to := range pods {
			row = append(row, strings.Join(cells[[2]string{from.Name, to.Name}], " "))
		}
		rows = append(rows, row)
	}
	s.table(rows)
	s.check(lost == 0, "%d of %d pings answered", len(pairs)-lost, len(pairs))
	return nil
}

// wire captures on A's underlay device while one of its pods pings a pod of B and one of C.
func (s *show) wire(context.Context) error {
	s.heading("What passes the wire", `
Captured on A's underlay device, while pod-A1 pings a pod on B and one on C.`)
	pods, err := s.lab.Pods()
	if err != nil {
		return err
	}
	from := pods[0]
	for _, to := range pods {
		if to.Name != "pod-B1" && to.Name != "pod-C1" {
			continue
		}
		for _, a := range to.Addrs() {
			if err := s.onePing(from, to, a); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *show) onePing(from, to *lab.Pod, addr netip.Addr) error {
	capture, err := lab.StartCapture(from.Node, lab.Uplink, lab.VXLANPort)
	if err != nil {
		return err
	}
	_, pingErr := lab.Ping(from, addr, patience)
	packets, err := capture.Stop()
	if err != nil {
		return err
	}
	s.expect(pingErr == nil, "%v", pingErr)
	s.say("%s to %s:", from.Name, to.Name)
	bare, wrapped := 0, 0
	for _, p := range packets {
		inner := p
		if p.VXLAN != nil {
			inner = p.VXLAN.Inner
		}
		if !inner.Echo() || !(inner.Dst == addr || inner.Src == addr) {
			continue
		}
		s.say("    %s", p)
		count(p, &bare, &wrapped)
	}
	if wantPath(from.Node, to.Node) == "direct" {
		s.check(bare == 2 && wrapped == 0, "%s to %s: bare pod packets on the wire, nothing wrapped", from.Node.Name, to.Node.Name)
		return nil
	}
	s.check(bare == 0 && wrapped == 2, "%s to %s: VXLAN frames on the wire, no pod address visible to the router", from.Node.Name, to.Node.Name)
	return nil
}

func count(p frame.Packet, bare, wrapped *int) {
	if p.VXLAN != nil {
		*wrapped++
		return
	}
	*bare++
}
