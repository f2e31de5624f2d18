package kernel

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel/rtnl"
	"github.com/weftnet/weft/internal/state"
)

const (
	rtaNexthopID = 30 // RTA_NH_ID

	offTOS, offTable, offProtocol, offScope, offType, offFlags = 3, 4, 5, 6, 7, 8 // in struct rtmsg

	nextHopStep = 1 // metric of the route that helps an IPv6 onlink route in; see replaceOnlink
)

// A routeFilter says which routes are worth keeping of what may be a full table of the Internet.
type routeFilter struct {
	wanted   map[netip.Prefix]bool
	networks []netip.Prefix
}

func newRouteFilter(want state.State, sc Scope) routeFilter {
	f := routeFilter{wanted: make(map[netip.Prefix]bool, len(want.Routes)), networks: sc.Networks}
	for key := range want.Routes {
		f.wanted[key.Dst] = true
	}
	return f
}

func (f routeFilter) keeps(dst netip.Prefix, r route) bool {
	return r.Protocol == state.Protocol || f.wanted[dst] || inside(dst, f.networks)
}

func (k *Kernel) listRoutes(h *have, family uint8, filter routeFilter) error {
	names := h.names()
	four := family == unix.AF_INET
	return k.dump("routes", func(b *rtnl.Batch) {
		header := make([]byte, unix.SizeofRtMsg)
		header[0], header[offTable] = family, unix.RT_TABLE_MAIN
		b.Begin(unix.RTM_GETROUTE, 0, header)
	}, func() {
		for key := range h.routes {
			if key.Dst.Addr().Is4() == four {
				delete(h.routes, key)
			}
		}
		maps.DeleteFunc(h.connected, func(p netip.Prefix, _ connected) bool { return p.Addr().Is4() == four })
	}, func(m rtnl.Message) {
		key, r, ok := parseRoute(m, names)
		switch {
		// A kernel without IPv6 answers with all other families; one that is interrupted may say things twice.
		case !ok || m.Body[0] != family || !filter.keeps(key.Dst, r) || slices.Contains(h.routes[key], r):
		case r.Protocol == unix.RTPROT_KERNEL:
			h.connected[key.Dst] = connected{Dev: r.Dev, Metric: key.Metric}
		default:
			h.routes[key] = append(h.routes[key], r)
		}
	})
}

// parseRoute reads RTM_NEWROUTE and RTM_DELROUTE. It is not ok for routes outside the main table, those
// for one TOS or source only, and IPv6 cache entries.
func parseRoute(m rtnl.Message, names map[int32]string) (key state.RouteKey, r route, ok bool) {
	if len(m.Body) < unix.SizeofRtMsg {
		return key, r, false
	}
	h := m.Body[:unix.SizeofRtMsg]
	table, flags := uint32(h[offTable]), rtnl.Uint32(h[offFlags:])
	r.Type, r.Protocol = state.RouteType(h[offType]), int(h[offProtocol])
	r.OnLink = flags&unix.RTNH_F_ONLINK != 0
	dst := netip.IPv4Unspecified()
	if h[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	for typ, v := range rtnl.Attrs(m.Body[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_TABLE:
			table = rtnl.Uint32(v)
		case unix.RTA_DST:
			dst = rtnl.Addr(v)
		case unix.RTA_PRIORITY:
			key.Metric = int(rtnl.Uint32(v))
		case unix.RTA_GATEWAY:
			r.Via = rtnl.Addr(v)
		case unix.RTA_OIF:
			r.Dev = names[int32(rtnl.Uint32(v))]
		case unix.RTA_MULTIPATH, unix.RTA_METRICS, unix.RTA_PREFSRC, unix.RTA_FLOW, unix.RTA_VIA, unix.RTA_ENCAP, rtaNexthopID:
			r.Odd = true
		}
	}
	key.Dst = netip.PrefixFrom(dst, int(h[1]))
	if r.Type == state.Blackhole { // the kernel shows lo for IPv6
		r.Dev = ""
	}
	foreign := table != unix.RT_TABLE_MAIN || h[offTOS] != 0 || h[2] != 0 || flags&unix.RTM_F_CLONED != 0
	return key, r, key.Dst.IsValid() && !foreign
}

// A routeStep sets or deletes a route.
type routeStep struct {
	op         state.Op
	key        state.RouteKey
	have, want route
}

func (s *routeStep) kind() string { return "route" }

func (s *routeStep) change() state.Change {
	c := state.Change{Op: s.op, Kind: s.kind(), Object: s.key.String()}
	if s.op != state.Add {
		c.Have = s.have.String()
	}
	if s.op != state.Remove {
		c.Want = s.want.String()
	}
	return c
}

func (r route) String() string {
	switch {
	case !r.Odd:
		return r.Route.String()
	case r.Dev == "" && r.Type == state.Unicast:
		return "several next hops"
	default:
		return r.Route.String() + " with attributes of its own"
	}
}

func (s *routeStep) encode(b *rtnl.Batch, h have) {
	if s.op == state.Remove {
		s.encodeDelete(b, h)
		return
	}
	header := routeHeader(s.key, s.want.Route)
	b.Begin(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, header)
	routeAttrs(b, s.key, s.want.Route, h)
}

// encodeDelete names everything that tells the route from others with the same destination, the protocol
// above all: between listing and now somebody else's may have taken its place.
func (s *routeStep) encodeDelete(b *rtnl.Batch, h have) {
	r := s.have.Route
	header := routeHeader(s.key, r)
	header[offScope] = unix.RT_SCOPE_NOWHERE // any
	put32(header[offFlags:], 0)
	b.Begin(unix.RTM_DELROUTE, 0, header)
	if s.have.Odd { // by its next hop alone it would not be found, or only one of several
		r.Via, r.Dev = netip.Addr{}, ""
	}
	routeAttrs(b, s.key, r, h)
}

// routeHeader is struct rtmsg.
func routeHeader(key state.RouteKey, r state.Route) []byte {
	h := make([]byte, unix.SizeofRtMsg)
	h[0], h[1] = familyOf(key.Dst.Addr()), uint8(key.Dst.Bits())
	h[offTable], h[offProtocol], h[offType] = unix.RT_TABLE_MAIN, uint8(r.Protocol), uint8(r.Type)
	h[offScope] = unix.RT_SCOPE_UNIVERSE
	if r.Type == state.Unicast && !r.Via.IsValid() {
		h[offScope] = unix.RT_SCOPE_LINK
	}
	if r.OnLink {
		put32(h[offFlags:], unix.RTNH_F_ONLINK)
	}
	return h
}

func routeAttrs(b *rtnl.Batch, key state.RouteKey, r state.Route, h have) {
	b.Addr(unix.RTA_DST, key.Dst.Addr())
	if key.Metric != 0 {
		b.Uint32(unix.RTA_PRIORITY, uint32(key.Metric))
	}
	if r.Via.IsValid() {
		b.Addr(unix.RTA_GATEWAY, r.Via)
	}
	if r.Dev != "" {
		b.Uint32(unix.RTA_OIF, uint32(h.links[r.Dev].Index))
	}
}

// helpless says whether the kernel refused an IPv6 onlink route because of where its next hop is routed.
func (s *routeStep) helpless(err error) bool {
	return errors.Is(err, unix.EINVAL) && s.op != state.Remove && s.want.OnLink && s.key.Dst.Addr().Is6()
}

// replaceOnlink sets IPv6 routes that the kernel has refused. It takes an onlink next hop only if no other
// route leads there through another device (ip6_route_check_nh_onlink), and the next hop of an overlay
// route lies inside its own destination: the very route that is to be replaced stands in the way when a
// peer moves from the underlay to the overlay. A host route for the next hop, there for the moment between
// two messages of one system call, settles the question; pods' addresses are never without a route.
func (k *Kernel) replaceOnlink(ctx context.Context, steps []*routeStep, h have, failed func(step, error)) error {
	for len(steps) > 0 && ctx.Err() == nil {
		n := min(len(steps), batchSize/3)
		var b rtnl.Batch
		for _, s := range steps[:n] {
			help := routeStep{
				key:  state.RouteKey{Dst: netip.PrefixFrom(s.want.Via, s.want.Via.BitLen()), Metric: nextHopStep},
				want: route{Route: state.Route{Type: state.Unicast, Dev: s.want.Dev, Protocol: state.Protocol}},
			}
			help.encode(&b, h)
			s.encode(&b, h)
			help.op, help.have = state.Remove, help.want
			help.encode(&b, h)
		}
		err := k.conn.Exec(&b, func(i int, err error) {
			if i%3 == 1 {
				failed(steps[i/3], err)
			}
		}, nil)
		if err != nil {
			return err
		}
		steps = steps[n:]
	}
	return ctx.Err()
}
