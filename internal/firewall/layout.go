package firewall

import (
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// A spot is one of the places of a family where rules of ours can be. Each is a chain in a table.
type spot int

// The spots, in the order in which a pass goes through them.
const (
	spotOwnNAT    spot = iota // postrtg of our own table
	spotOwnFilter             // forward of our own table
	spotOwnMangle             // mss of our own table
	spotNAT                   // FLANNEL-POSTRTG of table nat
	spotFilter                // FLANNEL-FWD of table filter
	spotMangle                // FLANNEL-MSS of table mangle
	spotCount
)

// A place says where a spot is.
type place struct {
	table, chain string
	base         base

	// own is set where table and base chain are ours: the base chain is the chain itself. Elsewhere the
	// base chain belongs to everybody, and a jump leads from it to the chain.
	own                        bool
	tableComment, chainComment string
}

// A base is a base chain: what hooks a table into the packets' way.
type base struct {
	name, kind string
	hook       uint32 // NF_INET_*
	priority   int32
}

// Hook priorities (NF_IP_PRI_MANGLE, _FILTER, _NAT_SRC) that nft prints as "mangle", "filter" and "srcnat".
const (
	priorityMangle = -150
	priorityFilter = 0
	prioritySource = 100
)

func (s spot) place(f family.Family) place {
	table, number := "flannel-ipv4", "ipv4"
	if f == family.V6 {
		table, number = "flannel-ipv6", "ipv6"
	}
	comment := "rules for flannel-" + number
	switch s {
	case spotOwnNAT:
		return place{
			table: table, chain: "postrtg", own: true,
			base:         base{"postrtg", "nat", unix.NF_INET_POST_ROUTING, prioritySource},
			tableComment: comment, chainComment: "chain to manage traffic masquerading by flannel",
		}
	case spotOwnFilter:
		return place{
			table: table, chain: "forward", own: true,
			base:         base{"forward", "filter", unix.NF_INET_FORWARD, priorityFilter},
			tableComment: comment, chainComment: "chain to accept flannel traffic",
		}
	case spotOwnMangle:
		return place{
			table: table, chain: "mss", own: true,
			base:         base{"mss", "filter", unix.NF_INET_FORWARD, priorityMangle},
			tableComment: comment, chainComment: "chain to clamp the MSS of pods' connections",
		}
	case spotMangle:
		return place{
			table: "mangle", chain: "FLANNEL-MSS",
			base: base{"FORWARD", "filter", unix.NF_INET_FORWARD, priorityMangle},
		}
	case spotNAT:
		return place{
			table: "nat", chain: "FLANNEL-POSTRTG",
			base: base{"POSTROUTING", "nat", unix.NF_INET_POST_ROUTING, prioritySource},
		}
	default:
		return place{
			table: "filter", chain: "FLANNEL-FWD",
			base: base{"FORWARD", "filter", unix.NF_INET_FORWARD, priorityFilter},
		}
	}
}

// jumpTo returns the rule that leads from a shared base chain to ours.
func (s spot) jumpTo(f family.Family) rule {
	comment := commentMasquerade
	switch s {
	case spotFilter:
		comment = commentForward
	case spotMangle:
		comment = commentClamp
	}
	return rule{action: actionJump, jump: s.place(f).chain, comment: comment}
}

// A layout is what one family should have in each spot.
type layout struct {
	mode  Mode
	spots [spotCount]wanted
}

// A wanted is what one spot should have.
type wanted struct {
	rules []rule // none: neither chain nor jump

	// ifHooked wants the rules only where the shared base chain is already there.
	ifHooked bool
}

// layout returns what p wants of family f: nothing if p does not enable it.
func (p Policy) layout(f family.Family) layout {
	l := layout{mode: p.Mode}
	if len(p.Network.Of(f)) == 0 {
		return l
	}
	if p.Masquerade && p.Mode == IPTables {
		l.spots[spotNAT].rules = commented(p.masquerade(f), commentMasquerade)
	}
	if p.Masquerade && p.Mode == NFTables {
		l.spots[spotOwnNAT].rules = p.masquerade(f)
	}
	if p.Forward {
		l.spots[spotFilter] = wanted{rules: commented(p.forward(f), commentForward), ifHooked: p.Mode == NFTables}
	}
	if p.Forward && p.Mode == NFTables {
		l.spots[spotOwnFilter].rules = p.forward(f)
	}
	if p.Clamp && p.Mode == IPTables {
		l.spots[spotMangle].rules = commented(p.clamp(f), commentClamp)
	}
	if p.Clamp && p.Mode == NFTables {
		l.spots[spotOwnMangle].rules = p.clamp(f)
	}
	return l
}

// tableFamilyName returns the word by which nft knows tables of family f.
func tableFamilyName(f family.Family) string {
	if f == family.V6 {
		return "ip6"
	}
	return "ip"
}

// protocolFamily returns the number by which netfilter knows f.
func protocolFamily(f family.Family) byte {
	if f == family.V6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}
