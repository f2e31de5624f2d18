package kernel

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/state"
)

// inside says whether p lies inside one of the networks or is one.
func inside(p netip.Prefix, networks []netip.Prefix) bool {
	for _, n := range networks {
		if n.Bits() <= p.Bits() && n.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

func strictlyInside(p netip.Prefix, networks []netip.Prefix) bool {
	for _, n := range networks {
		if n.Bits() < p.Bits() && n.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// owns says whether what hangs on a device is ours.
func (sc Scope) owns(name string, d device, want state.State) bool {
	l, wanted := want.Links[name]
	return wanted && sc.refusal(d, l) == nil || sc.marked(d)
}

// refusal says why a device cannot be adopted, nor be removed to make room, for the wanted link of its name.
func (sc Scope) refusal(d device, want state.Link) error {
	switch {
	case d.Kind != want.Kind:
		return fmt.Errorf("a device of kind %q has this name; it is not ours to remove", d.Kind)
	case sc.otherAgent(d):
		return fmt.Errorf("it belongs to another agent (alias %q)", d.Owner)
	}
	return nil
}

// marked says whether a device has our mark. Only what was made by software can be ours.
func (sc Scope) marked(d device) bool { return sc.Owner != "" && d.Owner == sc.Owner && d.Kind != "" }

// otherAgent says whether a device belongs to another agent of ours on the same host.
func (sc Scope) otherAgent(d device) bool {
	mark, _, marked := strings.Cut(sc.Owner, ":")
	theirs, _, _ := strings.Cut(d.Owner, ":")
	return marked && d.Owner != sc.Owner && theirs == mark
}

// staleLink says whether a link that is not wanted is ours, or was left by the original with another VNI:
// that has no mark but an address that only it gives, the network address of a subnet as a single host.
func (sc Scope) staleLink(name string, d device, h have) bool {
	if sc.marked(d) {
		return true
	}
	if d.Owner != "" || d.Kind != kindVXLAN || !overlayName(name) {
		return false
	}
	for a := range h.addresses {
		if a.Dev == name && a.Prefix.IsSingleIP() && inside(a.Prefix, sc.Networks) && networkAddress(a.Prefix.Addr()) {
			return true
		}
	}
	return false
}

// networkAddress says whether a can be the first address of a subnet; the smallest subnets have four.
func networkAddress(a netip.Addr) bool {
	b := a.AsSlice()
	return b[len(b)-1]&3 == 0
}

// overlayName says whether a name has the original's form for VXLAN devices.
func overlayName(name string) bool {
	vni, ok := strings.CutPrefix(name, "flannel.")
	if !ok {
		vni, ok = strings.CutPrefix(name, "flannel-v6.")
	}
	return ok && digits(vni)
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// originalLink says whether a link has the form of one of the original's, whoever made it.
func originalLink(name string, d device) bool {
	switch d.Kind {
	case kindVXLAN:
		return overlayName(name)
	case "ipip":
		return name == "flannel.ipip"
	case "wireguard":
		return name == "flannel-wg" || name == "flannel-wg-v6"
	case "tun":
		n, ok := strings.CutPrefix(name, "flannel")
		return ok && digits(n)
	}
	return false
}

// staleRoute says whether a route that is not wanted is ours, or has one of the original's forms.
func (sc Scope) staleRoute(key state.RouteKey, r route, h have, want state.State) bool {
	if r.Protocol == state.Protocol {
		d, ok := h.links[r.Dev]
		return inside(key.Dst, sc.Networks) || ok && sc.owns(r.Dev, d, want)
	}
	if sc.originalBlackhole(key, r) { // ours has another metric
		for k, w := range want.Routes {
			if k.Dst == key.Dst && w.Type == state.Blackhole {
				return true
			}
		}
		return false
	}
	return sc.originalRoute(key, r, h)
}

func (sc Scope) originalBlackhole(key state.RouteKey, r route) bool {
	return r.Protocol == unix.RTPROT_BOOT && r.Type == state.Blackhole && strictlyInside(key.Dst, sc.Networks)
}

// originalRoute knows two forms: to a VXLAN device with the subnet's network address as next hop, and to a
// node on the underlay.
func (sc Scope) originalRoute(key state.RouteKey, r route, h have) bool {
	if r.Protocol != unix.RTPROT_BOOT || r.Type != state.Unicast || r.Odd || !r.Via.IsValid() ||
		key.Metric != defaultMetric(key.Dst) || !strictlyInside(key.Dst, sc.Networks) {
		return false
	}
	if r.OnLink && overlayName(r.Dev) && h.links[r.Dev].Kind == kindVXLAN {
		return r.Via == key.Dst.Addr()
	}
	return sc.Uplink != "" && r.Dev == sc.Uplink
}

// defaultMetric is the metric that the kernel gives a route without one.
func defaultMetric(dst netip.Prefix) int {
	if dst.Addr().Is4() {
		return 0
	}
	return state.Metric6
}
