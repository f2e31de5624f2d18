package firewall

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/internal/family"
)

// An action is what a rule does with a packet that it matches.
type action uint8

const (
	actionReturn action = iota + 1
	actionAccept
	actionMasquerade
	actionJump
	actionClamp // lower the MSS in a TCP SYN; other packets do not match
)

// A rule is one rule of the policy. It is comparable, and a rule that the kernel lists becomes one if it
// means exactly what some rule says, whoever wrote it and in whichever encoding.
type rule struct {
	mark    uint32 // bits that the packet's mark must have; 0: any mark
	src     match
	dst     match
	action  action
	random  bool   // masquerade to random ports
	jump    string // chain, for actionJump
	comment string
}

// A match compares an address with a prefix. The zero match matches all.
type match struct {
	prefix netip.Prefix
	not    bool
}

// kubeMark is the bit by which kube-proxy marks packets for its own masquerading (--iptables-masquerade-bit,
// 14 unless changed).
const kubeMark = 0x4000

// The comments of all rules and jumps in iptables mode, by which the original's users know them.
const (
	commentMasquerade = "flanneld masq"
	commentForward    = "flanneld forward"
	commentClamp      = "flanneld mss" // the original has no such rules
)

func is(p netip.Prefix) match  { return match{prefix: p.Masked()} }
func not(p netip.Prefix) match { return match{prefix: p.Masked(), not: true} }

// masquerade returns the rules that hide pods from the outside and the outside from pods elsewhere. Several
// networks need no more than the same rule once per network: what goes from one to another is taken by a
// rule further up.
func (p Policy) masquerade(f family.Family) []rule {
	subnet := p.Subnet.Of(f)
	multicast := netip.MustParsePrefix("224.0.0.0/4")
	if f == family.V6 {
		multicast = netip.MustParsePrefix("ff00::/8")
	}
	rules := []rule{{mark: kubeMark, action: actionReturn}}
	each := func(r func(network netip.Prefix) rule) {
		for _, n := range p.Network.Of(f) {
			rules = append(rules, r(n))
		}
	}
	each(func(n netip.Prefix) rule { return rule{src: is(subnet), dst: is(n), action: actionReturn} })
	each(func(n netip.Prefix) rule { return rule{src: is(n), dst: is(subnet), action: actionReturn} })
	each(func(n netip.Prefix) rule { return rule{src: not(n), dst: is(subnet), action: actionReturn} })
	each(func(n netip.Prefix) rule {
		return rule{src: is(n), dst: not(multicast), action: actionMasquerade, random: p.RandomFully}
	})
	each(func(n netip.Prefix) rule {
		return rule{src: not(n), dst: is(n), action: actionMasquerade, random: p.RandomFully}
	})
	return rules
}

// forward returns the rules that let pod traffic through.
func (p Policy) forward(f family.Family) []rule {
	var rules []rule
	for _, n := range p.Network.Of(f) {
		rules = append(rules, rule{src: is(n), action: actionAccept}, rule{dst: is(n), action: actionAccept})
	}
	return rules
}

func commented(rules []rule, comment string) []rule {
	for i := range rules {
		rules[i].comment = comment
	}
	return rules
}

// text returns the rule as the command of mode m prints it.
func (r rule) text(f family.Family, m Mode) string {
	if m == NFTables {
		return r.nft(f)
	}
	return r.iptables()
}

// iptables returns the rule as iptables -S prints it, without "-A chain".
func (r rule) iptables() string {
	var b strings.Builder
	address := func(option string, m match) {
		if !m.prefix.IsValid() {
			return
		}
		if m.not {
			b.WriteString("! ")
		}
		fmt.Fprintf(&b, "%s %s ", option, m.prefix)
	}
	address("-s", r.src)
	address("-d", r.dst)
	if r.action == actionClamp {
		b.WriteString("-p tcp -m tcp --tcp-flags SYN,RST SYN ")
	}
	if r.mark != 0 {
		fmt.Fprintf(&b, "-m mark --mark %#x/%#x ", r.mark, r.mark)
	}
	if r.comment != "" {
		fmt.Fprintf(&b, "-m comment --comment %q ", r.comment)
	}
	switch r.action {
	case actionReturn:
		b.WriteString("-j RETURN")
	case actionAccept:
		b.WriteString("-j ACCEPT")
	case actionJump:
		b.WriteString("-j " + r.jump)
	case actionMasquerade:
		b.WriteString("-j MASQUERADE")
		if r.random {
			b.WriteString(" --random-fully")
		}
	case actionClamp:
		b.WriteString("-j TCPMSS --clamp-mss-to-pmtu")
	}
	return b.String()
}

// nft returns the rule as nft list prints it.
func (r rule) nft(f family.Family) string {
	var b strings.Builder
	address := func(field string, m match) {
		if !m.prefix.IsValid() {
			return
		}
		b.WriteString(tableFamilyName(f) + " " + field + " ")
		if m.not {
			b.WriteString("!= ")
		}
		if m.prefix.IsSingleIP() {
			b.WriteString(m.prefix.Addr().String() + " ")
			return
		}
		b.WriteString(m.prefix.String() + " ")
	}
	if r.mark != 0 {
		fmt.Fprintf(&b, "meta mark & 0x%08x == 0x%08x ", r.mark, r.mark)
	}
	address("saddr", r.src)
	address("daddr", r.dst)
	switch r.action {
	case actionReturn:
		b.WriteString("return")
	case actionAccept:
		b.WriteString("accept")
	case actionJump:
		b.WriteString("jump " + r.jump)
	case actionMasquerade:
		b.WriteString("masquerade")
		if r.random {
			b.WriteString(" fully-random")
		}
	case actionClamp:
		b.WriteString("tcp flags syn / syn,rst tcp option maxseg size set rt mtu")
	}
	if r.comment != "" {
		fmt.Fprintf(&b, " comment %q", r.comment)
	}
	return b.String()
}
