package kernel

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/state"
)

// RenamesLive says whether this kernel renames a device that is up, as Linux 6.2 and later do. Whatever hangs on
// the device hangs on its index, and stays; addresses get the new name as label, sysctls move to its path.
func RenamesLive() bool {
	var u unix.Utsname
	return unix.Uname(&u) == nil && renamesLive(unix.ByteSliceToString(u.Release[:]))
}

func renamesLive(release string) bool {
	first, rest, _ := strings.Cut(release, ".")
	second := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	major, errMajor := strconv.Atoi(first)
	minor, errMinor := strconv.Atoi(second)
	return errMajor == nil && errMinor == nil && (major > 6 || major == 6 && minor >= 2)
}

// former returns the name under which a wanted link is there: that of a device with our mark which is not wanted
// under it and has all that cannot be changed in a living device. Nothing: there is none, or the kernel renames none.
func (h have) former(want state.Link, wanted state.State, sc Scope) string {
	if !h.renames || want.Kind != kindVXLAN {
		return ""
	}
	for _, name := range sortedKeys(h.links) {
		d := h.links[name]
		if _, keep := wanted.Links[name]; !keep && sc.marked(d) && d.Kind == want.Kind && mustRecreate(d, h.stored(want, d)) == "" {
			return name
		}
	}
	return ""
}

// findRefused finds the devices that the kernel did not rename, which has been said: traffic still goes through
// them.
func (r *rest) findRefused() {
	for name, l := range r.want.Links {
		if _, exists := r.h.links[name]; exists {
			continue
		}
		if dev := r.h.former(l, r.want, r.sc); dev != "" {
			r.refused[dev] = true
		}
	}
}

// renamed returns h as it is when a device has got another name.
func (h have) renamed(from, to string) have {
	dev := func(name string) string {
		if name == from {
			return to
		}
		return name
	}
	links := make(map[string]device, len(h.links))
	for name, d := range h.links {
		d.VXLAN.Parent = dev(d.VXLAN.Parent)
		links[dev(name)] = d
	}
	h.links = links
	h.addresses = rekeyed(h.addresses, func(a state.Address) state.Address { a.Dev = dev(a.Dev); return a })
	h.neighbour = rekeyed(h.neighbour, func(n state.NeighbourKey) state.NeighbourKey { n.Dev = dev(n.Dev); return n })
	h.fdb = rekeyed(h.fdb, func(f state.FDBKey) state.FDBKey { f.Dev = dev(f.Dev); return f })
	h.sysctls = rekeyed(h.sysctls, func(key string) string { return sysctlOf(key, from, to) })
	h.connected = maps.Clone(h.connected)
	for p, c := range h.connected {
		c.Dev = dev(c.Dev)
		h.connected[p] = c
	}
	h.routes = maps.Clone(h.routes)
	for key, list := range h.routes {
		list = slices.Clone(list)
		for i := range list {
			list[i].Dev = dev(list[i].Dev)
		}
		h.routes[key] = list
	}
	return h
}

func rekeyed[K comparable, V any](m map[K]V, f func(K) K) map[K]V {
	out := make(map[K]V, len(m))
	for k, v := range m {
		out[f(k)] = v
	}
	return out
}

// sysctlOf returns the key of device to that is the same as that of device from; other keys as they are.
func sysctlOf(key, from, to string) string {
	return strings.Replace(key, "/"+from+"/", "/"+to+"/", 1)
}
