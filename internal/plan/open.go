package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/weftnet/weft/internal/backend"
	"github.com/weftnet/weft/internal/backend/alloc"
	"github.com/weftnet/weft/internal/backend/hostgw"
	"github.com/weftnet/weft/internal/backend/udp"
	"github.com/weftnet/weft/internal/backend/vxlan"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/state"
)

// backendOf returns the backend that k stands for, under the names that the original gives its devices. What k
// leaves open is as configured.
func backendOf(in Input, k lease.Key) (backend.Backend, error) {
	return devices{}.backend(in, k)
}

// open returns the backends that keys stand for, with devices that do not collide, and whose devices those are.
func open(in Input, keys []lease.Key) ([]backend.Backend, map[string]lease.Key, error) {
	d := devices{vxlan: map[lease.Key]family.Pair[string]{}, udp: map[lease.Key]string{}}
	for _, f := range family.All() {
		d.nameVXLAN(in, keys, f)
	}
	d.nameUDP(in, keys)
	var bs []backend.Backend
	for _, k := range keys {
		b, err := d.backend(in, k)
		if err != nil {
			return nil, nil, err
		}
		bs = append(bs, b)
	}
	return bs, d.owners(), nil
}

// devices holds the names of the devices of each key.
type devices struct {
	vxlan map[lease.Key]family.Pair[string]
	udp   map[lease.Key]string
	wide  lease.Key // of udp's keys: the one whose device has the route to all pods
}

func (d devices) owners() map[string]lease.Key {
	m := map[string]lease.Key{}
	for k, names := range d.vxlan {
		m[names.V4], m[names.V6] = k, k
	}
	for k, name := range d.udp {
		m[name] = k
	}
	return m
}

func (d devices) backend(in Input, k lease.Key) (backend.Backend, error) {
	if c, ok := vxlan.ParseKey(k); ok {
		names, named := d.vxlan[k]
		if !named {
			names = vxlan.Names(c.VNI)
		}
		if now, ok := in.Config.Backend.(netconf.VXLAN); ok {
			c.MTU, c.Learning = now.MTU, now.Learning
		} else if l, ok := in.Host.Devices[cmp.Or(names.V4, names.V6)]; ok {
			c.MTU = vxlan.UnderlayMTU(l) // as it was configured when it was
		}
		return vxlan.New(c, names), nil
	}
	if c, ok := udp.ParseKey(k); ok {
		if now, ok := in.Config.Backend.(netconf.UDP); ok {
			now.Port = c.Port
			c = now
		}
		name := d.udp[k]
		if name == "" {
			name = udp.Device
		}
		return udp.New(c, name, d.wide == k), nil
	}
	switch k {
	case hostgw.Key:
		if now, ok := in.Config.Backend.(netconf.VXLAN); ok && now.DirectRouting {
			return hostgw.Direct(now.Type()), nil
		}
		return hostgw.New(), nil
	case alloc.Key:
		return alloc.Alloc{}, nil
	}
	return nil, fmt.Errorf("backend %s is not built into this version", printable(string(k)))
}

// nameVXLAN names the devices of one family. A device that is there keeps its name as long as another has
// the one that the original would give it, or as the kernel cannot rename it while it is up.
func (d *devices) nameVXLAN(in Input, keys []lease.Key, f family.Family) {
	taken := others(in)
	names := map[lease.Key]string{}
	for _, k := range keys {
		c, ok := vxlan.ParseKey(k)
		if !ok {
			continue
		}
		if name := existing(in, c, f); name != "" {
			names[k], taken[name] = name, true
		}
	}
	for _, k := range keys {
		c, ok := vxlan.ParseKey(k)
		if !ok {
			continue
		}
		usual := vxlan.Names(c.VNI).Of(f)
		_, there := in.Host.Devices[usual]
		switch had := names[k]; {
		case had == "" && taken[usual]:
			names[k] = further(c.Port, f, taken)
		case had == "", in.Host.Rename && !taken[usual] && !there:
			names[k] = usual
		}
		taken[names[k]] = true
		pair := d.vxlan[k]
		*pair.Ref(f) = names[k]
		d.vxlan[k] = pair
	}
}

// others returns the names of the devices that belong to other agents of this host.
func others(in Input) map[string]bool {
	taken := map[string]bool{}
	for name, l := range in.Host.Devices {
		taken[name] = l.Owner != "" && l.Owner != in.Self.Owner
	}
	return taken
}

// existing returns the name of a device that fits, preferring the usual one, or nothing.
func existing(in Input, c netconf.VXLAN, f family.Family) string {
	fits := func(l state.Link) bool {
		return l.Kind == "vxlan" && l.VXLAN.VNI == c.VNI && l.VXLAN.Port == c.Port && l.VXLAN.GBP == c.GBP
	}
	usual := vxlan.Names(c.VNI).Of(f)
	if fits(in.Host.Devices[usual]) {
		return usual
	}
	for name, l := range in.Host.Devices {
		if fits(l) && l.Owner == in.Self.Owner && strings.HasPrefix(name, further(c.Port, f, nil)) {
			return name // there is one at most: the kernel makes no second
		}
	}
	return ""
}

// further returns the name of a device whose usual name is taken.
func further(port int, f family.Family, taken map[string]bool) string {
	base := "flannel-" + strconv.Itoa(port)
	if f == family.V6 {
		base = "flannel6-" + strconv.Itoa(port)
	}
	name := base
	for c := 'a'; taken[name]; c++ {
		name = base + string(c)
	}
	return name
}

// nameUDP names the TUN devices: each keeps the one that it has, and another agent's is left to it. The route to all pods stays with the oldest, the
// last in order, since peers of the others have routes of their own while there are several.
func (d *devices) nameUDP(in Input, keys []lease.Key) {
	taken := others(in)
	for name, port := range in.Host.Tunnels {
		k := udp.Key(netconf.UDP{Port: port})
		if slices.Contains(keys, k) {
			d.udp[k], taken[name] = name, true
		}
	}
	for _, k := range keys {
		if _, ok := udp.ParseKey(k); !ok {
			continue
		}
		d.wide = k
		for i := 0; d.udp[k] == ""; i++ {
			if name := "flannel" + strconv.Itoa(i); !taken[name] {
				d.udp[k], taken[name] = name, true
			}
		}
	}
}
