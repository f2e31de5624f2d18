package netconf

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/family"
)

// What a HostPrefix is.
const (
	HostAddress  = "address" // of a device; Prefix is not masked
	HostRoute    = "route"
	ServiceRange = "service range" // of the cluster; no device
)

// A HostPrefix is a range that is in use already.
type HostPrefix struct {
	Prefix netip.Prefix `json:"prefix"`
	Dev    string       `json:"dev,omitempty"`
	What   string       `json:"what"` // HostAddress, HostRoute, ServiceRange
}

// A Clash is a pod network that overlaps a range in use.
type Clash struct {
	Network netip.Prefix `json:"network"`
	Host    HostPrefix   `json:"host"`

	// Severe clashes cut off pods: the host, or a route at least as exact as the pods' own, takes their
	// packets. Otherwise the host's range is the wider one: pods work, and hosts of that range whose
	// addresses lie in the pod network are out of reach.
	Severe bool   `json:"severe"`
	Remedy string `json:"remedy"`
}

func (c Clash) String() string {
	who := fmt.Sprintf("the %s %s of %s", c.Host.What, c.Host.Prefix, c.Host.Dev)
	if c.Host.Dev == "" {
		who = fmt.Sprintf("the %s %s", c.Host.What, c.Host.Prefix)
	}
	effect := "overlaps " + who
	if !c.Severe {
		effect = "lies inside " + who + ", whose hosts in the pod network are out of reach"
	}
	return fmt.Sprintf("pod network %s %s: %s", c.Network, effect, c.Remedy)
}

// Clashes compares the pod networks with what is in use, and returns one Clash per network, device and
// range, severe ones first.
func Clashes(c Config, host []HostPrefix, extra ...HostPrefix) []Clash {
	found := map[spot]Clash{}
	for _, f := range family.All() {
		for i, n := range c.Network.Of(f).Ranges().Prefixes() {
			for _, h := range slices.Concat(host, extra) {
				if !h.Prefix.Overlaps(n) {
					continue
				}
				clash := Clash{Network: n, Host: h, Severe: severe(n, h), Remedy: remedy(rawNetwork{family: f}, i, h)}
				key := spot{n, h.Prefix.Masked(), h.Dev}
				if have, ok := found[key]; !ok || h.What == HostAddress && (clash.Severe || !have.Severe) {
					found[key] = clash
				}
			}
		}
	}
	var list []Clash
	for _, c := range found {
		list = append(list, c)
	}
	slices.SortFunc(list, compareClashes)
	return list
}

// A spot tells clashes apart: an address and its connected route are one.
type spot struct {
	network, host netip.Prefix
	dev           string
}

func compareClashes(a, b Clash) int {
	if a.Severe != b.Severe {
		if a.Severe {
			return -1
		}
		return 1
	}
	return cmp.Or(a.Network.Compare(b.Network), a.Host.Prefix.Compare(b.Host.Prefix), strings.Compare(a.Host.Dev, b.Host.Dev))
}

func severe(network netip.Prefix, h HostPrefix) bool {
	switch {
	case h.Prefix.Bits() >= network.Bits():
		return true
	case h.What == HostAddress:
		return network.Contains(h.Prefix.Addr())
	}
	return h.What == ServiceRange
}

// remedy says what to do about a clash of the i-th range.
func remedy(r rawNetwork, i int, h HostPrefix) string {
	choose := "choose another " + r.field("Network")
	if i > 0 {
		choose = "choose another range for " + r.entry(i-1)
	}
	switch {
	case h.What == ServiceRange:
		return choose + ", or another range for services (--service-cluster-ip-range)"
	case strings.HasPrefix(h.Dev, "docker") || strings.HasPrefix(h.Dev, "br-"):
		return choose + ", or give Docker other ranges (bip, default-address-pools)"
	case h.What == HostRoute:
		return choose + ", or remove the route"
	}
	return choose + ", or renumber or remove " + h.Dev
}
