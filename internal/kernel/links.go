package kernel

import (
	"cmp"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/kernel/rtnl"
	"github.com/weftnet/weft/internal/ranges"
	"github.com/weftnet/weft/internal/state"
)

const (
	kindVXLAN = "vxlan"
	kindTUN   = "tun" // adopted, never made

	// What the kernel takes off the lower device's MTU; it cuts a larger one down when the device is
	// made and refuses it later (VXLAN_HEADROOM and VXLAN6_HEADROOM in include/net/vxlan.h).
	overhead4 = 14 + 8 + 8 + 20 // Ethernet, VXLAN, UDP, IPv4
	overhead6 = 14 + 8 + 8 + 40 // Ethernet, VXLAN, UDP, IPv6
	minMTU    = 68              // ETH_MIN_MTU

	filterSkipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS: counters are most of a link's message
)

func (k *Kernel) listLinks() (have, error) {
	var h have
	indexes := map[int32]string{}
	parents := map[string]int32{}
	err := k.dump("links", func(b *rtnl.Batch) {
		b.Begin(unix.RTM_GETLINK, 0, make([]byte, unix.SizeofIfInfomsg))
		b.Uint32(unix.IFLA_EXT_MASK, filterSkipStats)
	}, func() { h = newHave() }, func(m rtnl.Message) {
		name, d, parent := parseLink(m)
		if name == "" {
			return
		}
		h.links[name] = d
		indexes[d.Index] = name
		parents[name] = parent
	})
	if err != nil {
		return h, err
	}
	h.vxlanPort, h.renames = kernelVXLANPort(), RenamesLive()
	for name, d := range h.links {
		if d.Kind == kindVXLAN {
			d.VXLAN.Parent = indexes[parents[name]]
			h.links[name] = d
		}
	}
	return h, nil
}

func (h have) names() map[int32]string {
	m := make(map[int32]string, len(h.links))
	for name, d := range h.links {
		m[d.Index] = name
	}
	return m
}

// parseLink reads RTM_NEWLINK and RTM_DELLINK. parent is the index of a VXLAN device's lower device.
func parseLink(m rtnl.Message) (name string, d device, parent int32) {
	if len(m.Body) < unix.SizeofIfInfomsg {
		return "", d, 0
	}
	d.Index = int32(rtnl.Uint32(m.Body[4:]))
	flags := rtnl.Uint32(m.Body[8:])
	d.Up, d.Loopback = flags&unix.IFF_UP != 0, flags&unix.IFF_LOOPBACK != 0
	for typ, v := range rtnl.Attrs(m.Body[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			name = rtnl.String(v)
		case unix.IFLA_MTU:
			d.MTU = int(rtnl.Uint32(v))
		case unix.IFLA_ADDRESS:
			if len(v) == len(d.MAC) {
				d.MAC = state.MAC(v)
			}
		case unix.IFLA_IFALIAS:
			d.Owner = rtnl.String(v)
		case unix.IFLA_MASTER:
			d.Port = rtnl.Uint32(v) != 0
		case unix.IFLA_LINKINFO:
			parent = parseLinkInfo(v, &d)
		}
	}
	return name, d, parent
}

func parseLinkInfo(b []byte, d *device) (parent int32) {
	var data []byte
	for typ, v := range rtnl.Attrs(b) {
		switch typ {
		case unix.IFLA_INFO_KIND:
			d.Kind = rtnl.String(v)
		case unix.IFLA_INFO_DATA:
			data = v
		}
	}
	if d.Kind == kindVXLAN {
		return parseVXLAN(data, d)
	}
	return 0
}

func parseVXLAN(b []byte, d *device) (parent int32) {
	x := &d.VXLAN
	for typ, v := range rtnl.Attrs(b) {
		switch typ {
		case unix.IFLA_VXLAN_ID:
			x.VNI = int(rtnl.Uint32(v))
		case unix.IFLA_VXLAN_PORT:
			x.Port = int(rtnl.Uint16BE(v))
		case unix.IFLA_VXLAN_LINK:
			parent = int32(rtnl.Uint32(v))
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			if a := rtnl.Addr(v); a.IsValid() && !a.IsUnspecified() {
				x.Local = a
			}
		case unix.IFLA_VXLAN_LEARNING:
			x.Learning = rtnl.Uint8(v) != 0
		case unix.IFLA_VXLAN_GBP: // a flag: there or not
			x.GBP = true
		case unix.IFLA_VXLAN_GROUP, unix.IFLA_VXLAN_GROUP6:
			d.Odd = "group"
		case unix.IFLA_VXLAN_GPE:
			d.Odd = "gpe"
		case unix.IFLA_VXLAN_L2MISS:
			if rtnl.Uint8(v) != 0 {
				d.Odd = "l2miss"
			}
		case unix.IFLA_VXLAN_COLLECT_METADATA:
			if rtnl.Uint8(v) != 0 {
				d.Odd = "external"
			}
		}
	}
	return parent
}

// kernelVXLANPort is the port that a device gets when none is asked for; 0: not known.
func kernelVXLANPort() int {
	b, err := os.ReadFile("/sys/module/vxlan/parameters/udp_port")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

// stored returns what the kernel would hold if it were given want, where d is the device as it is (zero:
// there is none). What want leaves open is as in d.
func (h have) stored(want state.Link, d device) state.Link {
	want.Prune = family.Pair[ranges.List]{}
	if want.MTU == 0 {
		want.MTU = d.MTU
	}
	if want.MAC == (state.MAC{}) {
		want.MAC = d.MAC
	}
	if want.Owner == "" {
		want.Owner = d.Owner
	}
	if want.Kind != kindVXLAN {
		return want
	}
	if want.VXLAN.Port == 0 {
		want.VXLAN.Port = cmp.Or(h.vxlanPort, d.VXLAN.Port)
	}
	if parent, ok := h.links[want.VXLAN.Parent]; ok {
		overhead := overhead4
		if want.VXLAN.Local.Is6() {
			overhead = overhead6
		}
		want.MTU = max(min(want.MTU, parent.MTU-overhead), minMTU)
	}
	return want
}

// mustRecreate names the attribute that cannot be changed in a living device, if one differs.
func mustRecreate(d device, want state.Link) string {
	h, w := d.VXLAN, want.VXLAN
	switch {
	case d.Odd != "":
		return d.Odd
	case h.VNI != w.VNI:
		return "vni"
	case h.Port != w.Port:
		return "port"
	case h.GBP != w.GBP:
		return "gbp"
	case w.Local.BitLen() != h.Local.BitLen(): // the family of the socket
		return "local"
	case w.Parent == "" && h.Parent != "":
		return "lower device"
	}
	return ""
}

// excludes says whether the kernel cannot have both: it makes no second device for one VNI and port
// (vxlan_config_validate), nor a second socket for one port with other flags (vxlan_find_sock).
func excludes(a, b state.VXLAN) bool {
	return a.Port == b.Port && a.Local.BitLen() == b.Local.BitLen() && (a.VNI == b.VNI || a.GBP != b.GBP)
}
