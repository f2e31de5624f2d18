package netconf

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/family"
)

// A kind is a backend as the configuration knows it.
type kind struct {
	name  string
	built bool // false: flannel has it, weft does not have it yet
	ipv6  bool // carries IPv6

	keys     any      // struct with the keys that are read, besides Type
	unread   []string // keys that the original knows and that have no effect on Linux
	decode   func(p *parser, ms []member) Backend
	overhead family.Pair[int] // bytes that it adds to a packet of each family, where it has an MTU key
}

// kinds is the table of backends, in the order of their names.
func kinds() []kind {
	return []kind{
		{name: "alloc", built: true, keys: Alloc{}, decode: decodeAlloc},
		{name: "extension", ipv6: true, keys: Extension{}, unread: []string{"ShutdownCommand"}, decode: decodeExtension},
		{name: "host-gw", built: true, ipv6: true, keys: HostGW{}, unread: []string{"Name", "DNSServerList"}, decode: decodeHostGW},
		{name: "ipip", keys: IPIP{}, decode: decodeIPIP},
		{name: "ipsec", keys: rawIPsec{}, decode: decodeIPsec},
		{name: "tencent-vpc", keys: rawTencentVPC{}, decode: decodeTencentVPC},
		{name: "udp", built: true, ipv6: true, keys: UDP{}, decode: decodeUDP},
		{name: "vxlan", built: true, ipv6: true, keys: VXLAN{}, unread: []string{"Name", "MacPrefix"}, decode: decodeVXLAN, overhead: family.Pair[int]{V4: 50, V6: 70}},
		{name: "wireguard", ipv6: true, keys: rawWireGuard{}, decode: decodeWireGuard, overhead: family.Pair[int]{V4: 80, V6: 80}},
	}
}

// Built returns the names of the backends that this build has.
func Built() []string { return names(func(k kind) bool { return k.built }) }

// Known returns the names of all backends that flannel has on Linux, built here or not.
func Known() []string { return names(func(kind) bool { return true }) }

func names(want func(kind) bool) []string {
	var ns []string
	for _, k := range kinds() {
		if want(k) {
			ns = append(ns, k.name)
		}
	}
	return ns
}

func backendKeys() []string {
	keys := []string{"Type"}
	for _, k := range kinds() {
		keys = append(keys, fieldNames(k.keys)...)
		keys = append(keys, k.unread...)
	}
	return keys
}

// backend checks the Backend member. Absent, it selects udp: that is what the original's daemon does, and
// not what its manual says.
func (p *parser) backend(raw json.RawMessage, enabled family.Pair[bool]) Backend {
	if raw == nil {
		p.warn("Backend", "absent, which selects udp (the manual of flannel says vxlan, flanneld takes udp): say which is meant")
		raw = json.RawMessage(`{"Type":"udp"}`)
	}
	ms, err := members(raw)
	if err != nil {
		p.problem("Backend", "must be an object such as {\"Type\": \"vxlan\"}")
		return nil
	}
	var t struct{ Type string }
	options := slices.Clone(ms)
	before := len(p.problems)
	p.object("Backend.", typeOnly(ms), &t)
	options = slices.DeleteFunc(options, func(m member) bool { return strings.EqualFold(m.key, "Type") })
	if len(p.problems) > before {
		return nil
	}
	if t.Type == "" {
		p.problem("Backend.Type", "missing: one of %s", list(Built()))
		return nil
	}
	all := kinds()
	i := slices.IndexFunc(all, func(k kind) bool { return k.name == strings.ToLower(t.Type) })
	if i < 0 {
		p.problem("Backend.Type", "%q is no backend: one of %s", clip(t.Type), list(Built()))
		return nil
	}
	k := all[i]
	if !k.built {
		p.problem("Backend.Type", "%q is not built yet: one of %s", k.name, list(Built()))
	}
	b := k.decode(p, options)
	p.unknownOption(k, options)
	p.families(k, b, enabled)
	return b
}

func typeOnly(ms []member) []member {
	var ts []member
	for _, m := range ms {
		if strings.EqualFold(m.key, "Type") {
			ts = append(ts, m)
		}
	}
	return ts
}

func list(ns []string) string { return strings.Join(ns, ", ") }

func (p *parser) unknownOption(k kind, ms []member) {
	own := fieldNames(k.keys)
	for _, m := range ms {
		field := "Backend." + m.key
		if _, ok := match(m.key, own); ok {
			continue
		}
		if _, ok := match(m.key, k.unread); ok {
			if m.key == "ShutdownCommand" {
				p.warn(field, "occurs in old samples and is not read")
			}
			continue
		}
		if name, ok := match(m.key, backendKeys()); ok {
			p.warn(field, "ignored: %s is not an option of %s", name, k.name)
		} else if name, ok := match(m.key, fieldNames(document{})); ok {
			p.warn(field, "ignored here: %s belongs beside Backend", name)
		} else if name, ok := near(m.key, own); ok {
			p.warn(field, "unknown, ignored: perhaps %s is meant", name)
		}
	}
}

// families checks what depends on the families that are on.
func (p *parser) families(k kind, b Backend, enabled family.Pair[bool]) {
	if enabled.V6 && !k.ipv6 {
		if enabled.V4 {
			p.warn("Backend.Type", "%s is IPv4 only: it does nothing for IPv6", k.name)
		} else {
			p.problem("Backend.Type", "%s is IPv4 only, and IPv4 is off", k.name)
		}
	}
	if b, ok := b.(WireGuard); ok && b.Mode == "separate" && enabled.V4 && enabled.V6 && b.ListenPort == b.ListenPortV6 {
		p.problem("Backend.ListenPortV6", "%d is ListenPort too, and mode separate has a device for each family", b.ListenPortV6)
	}
	if mtu := underlayMTU(b); mtu != 0 {
		// What protocols allow pods at least: 68 bytes for IPv4 (RFC 791), 1280 for IPv6 (RFC 8200).
		least := 68 + k.overhead.V4
		if enabled.V6 {
			least = 1280 + k.overhead.V6
		}
		p.between("MTU", mtu, least, 65535)
	}
}

// underlayMTU returns the MTU that the configuration gives, 0 for none.
func underlayMTU(b Backend) int {
	switch b := b.(type) {
	case VXLAN:
		return b.MTU
	case WireGuard:
		return b.MTU
	}
	return 0
}

// PodMTU returns the MTU that pods get where Backend.MTU is given, which is the underlay's, and 0 where it
// follows from the external interface.
func PodMTU(c Config) int {
	mtu := underlayMTU(c.Backend)
	if mtu == 0 {
		return 0
	}
	all := kinds()
	k := all[slices.IndexFunc(all, func(k kind) bool { return k.name == c.Backend.Type() })]
	if c.Network.V6.Enabled() {
		return mtu - k.overhead.V6
	}
	return mtu - k.overhead.V4
}
