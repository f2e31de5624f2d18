package firewall

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/netnstest"
)

const iptables4 = `
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.7.0/24 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.7.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.7.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
`

const iptables6 = `
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s fd00:5:0:7::/64 -d fd00:5::/48 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s fd00:5::/48 -d fd00:5:0:7::/64 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s fd00:5::/48 -d fd00:5:0:7::/64 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s fd00:5::/48 ! -d ff00::/8 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s fd00:5::/48 -d fd00:5::/48 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
`

const forward4 = `
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
`

const forward6 = `
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s fd00:5::/48 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d fd00:5::/48 -m comment --comment "flanneld forward" -j ACCEPT
`

// TestIPTablesText holds the rules of iptables mode to the letter, as iptables-nft prints them.
func TestIPTablesText(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		fw := open(t)
		apply(t, fw, dual(IPTables))
		shows(t, "iptables-nft -t nat -S | grep ^-A", iptables4)
		shows(t, "iptables-nft -t filter -S | grep ^-A", forward4)
		shows(t, "ip6tables-nft -t nat -S | grep ^-A", iptables6)
		shows(t, "ip6tables-nft -t filter -S | grep ^-A", forward6)
		settled(t, fw, dual(IPTables))
	})
}

// TestNFTablesText holds the rules of nftables mode to the letter, as nft prints them.
func TestNFTablesText(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		fw := open(t)
		apply(t, fw, dual(NFTables))
		shows(t, "nft list ruleset", `
			table ip flannel-ipv4 {
				comment "rules for flannel-ipv4"
				chain postrtg {
					comment "chain to manage traffic masquerading by flannel"
					type nat hook postrouting priority srcnat; policy accept;
					meta mark & 0x00004000 == 0x00004000 return
					ip saddr 10.5.7.0/24 ip daddr 10.5.0.0/16 return
					ip saddr 10.5.0.0/16 ip daddr 10.5.7.0/24 return
					ip saddr != 10.5.0.0/16 ip daddr 10.5.7.0/24 return
					ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
					ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random
				}
				chain forward {
					comment "chain to accept flannel traffic"
					type filter hook forward priority filter; policy accept;
					ip saddr 10.5.0.0/16 accept
					ip daddr 10.5.0.0/16 accept
				}
			}
			table ip6 flannel-ipv6 {
				comment "rules for flannel-ipv6"
				chain postrtg {
					comment "chain to manage traffic masquerading by flannel"
					type nat hook postrouting priority srcnat; policy accept;
					meta mark & 0x00004000 == 0x00004000 return
					ip6 saddr fd00:5:0:7::/64 ip6 daddr fd00:5::/48 return
					ip6 saddr fd00:5::/48 ip6 daddr fd00:5:0:7::/64 return
					ip6 saddr != fd00:5::/48 ip6 daddr fd00:5:0:7::/64 return
					ip6 saddr fd00:5::/48 ip6 daddr != ff00::/8 masquerade fully-random
					ip6 saddr != fd00:5::/48 ip6 daddr fd00:5::/48 masquerade fully-random
				}
				chain forward {
					comment "chain to accept flannel traffic"
					type filter hook forward priority filter; policy accept;
					ip6 saddr fd00:5::/48 accept
					ip6 daddr fd00:5::/48 accept
				}
			}`)
		settled(t, fw, dual(NFTables))
	})
}

// TestRuleText takes rules of every shape through the kernel, in both encodings: what comes back is equal,
// and the programs print what text says.
func TestRuleText(t *testing.T) {
	need(t)
	prefix := netip.MustParsePrefix
	cases := []struct {
		name string
		f    family.Family
		rule rule
	}{
		{"mark", family.V4, rule{mark: kubeMark, action: actionReturn}},
		{"other mark", family.V6, rule{mark: 0x00300000, action: actionReturn}},
		{"source", family.V4, rule{src: is(prefix("10.0.0.0/8")), action: actionAccept}},
		{"not source, destination", family.V4, rule{src: not(prefix("10.4.0.0/14")), dst: is(prefix("10.4.1.0/25")), action: actionReturn}},
		{"one address", family.V4, rule{src: is(prefix("10.4.0.1/32")), action: actionAccept}},
		{"one bit", family.V4, rule{dst: is(prefix("128.0.0.0/1")), action: actionAccept}},
		{"masquerade", family.V4, rule{src: is(prefix("10.4.0.0/31")), action: actionMasquerade}},
		{"masquerade to random ports", family.V4, rule{dst: not(prefix("224.0.0.0/4")), action: actionMasquerade, random: true}},
		{"jump", family.V4, rule{action: actionJump, jump: "ELSEWHERE"}},
		{"comment", family.V4, rule{action: actionJump, jump: "ELSEWHERE", comment: "flanneld masq"}},
		{"clamp", family.V4, rule{src: is(prefix("10.5.0.0/16")), action: actionClamp, comment: "flanneld mss"}},
		{"clamp marked", family.V4, rule{mark: kubeMark, dst: not(prefix("10.5.0.0/17")), action: actionClamp}},
		{"IPv6 clamp", family.V6, rule{dst: is(prefix("fd00:5::/48")), action: actionClamp}},
		{"IPv6 source", family.V6, rule{src: is(prefix("fd00:5::/48")), action: actionAccept}},
		{"IPv6 odd length", family.V6, rule{src: not(prefix("fd00:5::/61")), dst: is(prefix("fc00::/7")), action: actionReturn}},
		{"IPv6 one address", family.V6, rule{dst: is(prefix("fd00:5::1/128")), action: actionAccept}},
		{"IPv6 masquerade", family.V6, rule{dst: is(prefix("fd00:5::/64")), action: actionMasquerade}},
		{"IPv6 masquerade to random ports", family.V6, rule{src: is(prefix("fd00:5::/64")), action: actionMasquerade, random: true}},
	}
	for _, m := range []Mode{IPTables, NFTables} {
		for _, c := range cases {
			t.Run(m.String()+" "+c.name, func(t *testing.T) {
				netnstest.Run(t, func(t *testing.T) { ruleText(t, c.f, m, c.rule) })
			})
		}
	}
}

func ruleText(t *testing.T, f family.Family, m Mode, want rule) {
	fw := open(t)
	p := place{table: "nat", chain: "TEXT", base: spotNAT.place(f).base}
	elsewhere := place{table: "nat", chain: "ELSEWHERE"}
	err := fw.conn.commit(f, 0, []request{
		p.addTable(f), p.addBase(f), p.addChain(f), elsewhere.addChain(f), p.appendRule(f, m, p.chain, want),
	})
	if err != nil {
		t.Fatal(err)
	}
	rules, err := fw.conn.chainRules(protocolFamily(f), p.table, p.chain)
	if err != nil || len(rules) != 1 {
		t.Fatalf("rules %v, error %v", rules, err)
	}
	if got, ok := rules[0].rule(f); !ok || got != want {
		t.Errorf("from the kernel: %+v, %v; want %+v", got, ok, want)
	}
	if m == NFTables {
		shows(t, "nft list chain "+tableFamilyName(f)+" nat TEXT | sed -n 3p", want.text(f, NFTables))
	}
	if m == NFTables && (want.action == actionMasquerade || want.action == actionClamp) {
		return // iptables-nft cannot print nft's own
	}
	program := "iptables-nft"
	if f == family.V6 {
		program = "ip6tables-nft"
	}
	shows(t, program+" -t nat -S TEXT | grep ^-A", "-A TEXT "+want.text(f, IPTables))
}

// TestForeignRules makes sure that a rule which means anything else is not taken for one of ours.
func TestForeignRules(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		sh(t, `iptables-nft -t nat -N TEXT`)
		for _, r := range []string{
			"-i lo -s 10.5.0.0/16 -j ACCEPT",
			"-p tcp -s 10.5.0.0/16 -j ACCEPT",
			"-s 10.5.0.0/16 -m limit --limit 1/s -j ACCEPT",
			"-m mark --mark 0x4000 -j RETURN",
			"-m mark ! --mark 0x4000/0x4000 -j RETURN",
			"-m mark --mark 0/0x4000 -j RETURN",
			"-s 10.5.0.0/255.255.0.255 -j ACCEPT",
			"-s 10.5.0.0/16 -j LOG",
			"-s 10.5.0.0/16",
			"-s 10.5.0.0/16 -j MASQUERADE --random",
			"-p udp -s 10.5.0.0/16 -j MASQUERADE --to-ports 1000-2000",
			"-p tcp --tcp-flags SYN,RST SYN -s 10.5.0.0/16 -j ACCEPT",
			"-p tcp --tcp-flags SYN,ACK SYN -s 10.5.0.0/16 -j TCPMSS --clamp-mss-to-pmtu",
			"-p tcp --tcp-flags SYN,RST SYN -s 10.5.0.0/16 -j TCPMSS --set-mss 1400",
			"-p tcp --tcp-flags SYN,RST SYN --dport 80 -j TCPMSS --clamp-mss-to-pmtu",
			"-s 10.5.0.0/16 -m statistic --mode nth --every 2 --packet 0 -j ACCEPT",
		} {
			sh(t, "iptables-nft -t nat -A TEXT "+r)
		}
		sh(t, `
			nft add rule ip nat TEXT ip saddr 10.5.0.0/16 ip saddr 10.5.0.0/24 accept
			nft add rule ip nat TEXT ip saddr '{ 10.5.0.0/16, 10.7.0.0/16 }' accept
			nft add rule ip nat TEXT ip saddr 10.5.0.0-10.5.0.9 accept
			nft add rule ip nat TEXT ct mark 0x4000 return
			nft add rule ip nat TEXT ip daddr 10.5.0.0/16 fib daddr type local return
			nft add rule ip nat TEXT masquerade persistent
			nft add rule ip nat TEXT tcp flags syn tcp option maxseg size set rt mtu
			nft add rule ip nat TEXT tcp flags syn / syn,rst tcp option maxseg size set 1400
			nft add rule ip nat TEXT tcp option maxseg size set rt mtu
			nft add rule ip nat TEXT tcp flags syn / syn,rst return
			nft add rule ip nat TEXT ip saddr 10.5.0.0/16 meta mark set 1 return
			nft add rule ip nat TEXT ip saddr 10.5.0.0/16 drop
			nft add rule ip nat TEXT ip protocol udp accept`)
		rules, err := open(t).conn.chainRules(protocolFamily(family.V4), "nat", "TEXT")
		if err != nil || len(rules) != 29 {
			t.Fatalf("%d rules, error %v", len(rules), err)
		}
		for i, k := range rules {
			if r, ok := k.rule(family.V4); ok {
				t.Errorf("rule %d is taken for %q", i, r.iptables())
			}
		}
	})
}

// TestBaseChainAsIPTables compares the tables and base chains with those that iptables-nft makes.
func TestBaseChainAsIPTables(t *testing.T) {
	need(t)
	chains := func(t *testing.T, fw *Firewall) map[string]string {
		got := map[string]string{}
		for _, s := range []spot{spotNAT, spotFilter} {
			p := s.place(family.V4)
			b, err := fw.conn.chain(family.V4, p.table, p.base.name)
			if err != nil || b == nil {
				t.Fatalf("chain %s: %v, %v", p.base.name, b, err)
			}
			_, flags, err := fw.conn.table(family.V4, p.table)
			if err != nil {
				t.Fatal(err)
			}
			got[p.table] = fmt.Sprintf("%+v, table flags %d", *b, flags)
		}
		return got
	}
	var theirs, ours map[string]string
	netnstest.Run(t, func(t *testing.T) {
		sh(t, "iptables-nft -t nat -A POSTROUTING -j ACCEPT; iptables-nft -A FORWARD -j ACCEPT")
		theirs = chains(t, open(t))
	})
	netnstest.Run(t, func(t *testing.T) {
		fw := open(t)
		apply(t, fw, dual(IPTables))
		ours = chains(t, fw)
		shows(t, `nft list tables`, "table ip nat\ntable ip filter\ntable ip6 nat\ntable ip6 filter")
	})
	if diff := cmp.Diff(theirs, ours); diff != "" {
		t.Errorf("(-iptables-nft +ours):\n%s", diff)
	}
}

// TestOptions turns parts of the policy off.
func TestOptions(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		fw, p := open(t), dual(m)
		p.RandomFully = false
		apply(t, fw, p)
		settled(t, fw, p)
		if s := sh(t, "nft list ruleset; iptables-nft-save"); strings.Contains(s, "random") {
			t.Errorf("random ports although switched off:\n%s", s)
		}
		p.Forward = false
		apply(t, fw, p)
		settled(t, fw, p)
		if s := sh(t, "nft list ruleset"); strings.Contains(s, "accept\n") || strings.Contains(s, "FLANNEL-FWD") {
			t.Errorf("forward rules although switched off:\n%s", s)
		}
		p.Network.V6 = nil
		apply(t, fw, p)
		settled(t, fw, p)
		if s := sh(t, "nft list tables ip6; ip6tables-nft -t nat -S"); strings.Contains(strings.ToLower(s), "flannel") {
			t.Errorf("IPv6 rules although the family is off:\n%s", s)
		}
		p.Forward, p.Masquerade = true, false
		apply(t, fw, p)
		settled(t, fw, p)
		if s := sh(t, "nft list ruleset"); strings.Contains(s, "masquerade") {
			t.Errorf("masquerading although switched off:\n%s", s)
		}
	})
}

// TestSeveralNetworks gives each rule once per network, in the order of the policy.
func TestSeveralNetworks(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		fw, p := open(t), dual(NFTables)
		p.Network = family.Pair[[]netip.Prefix]{V4: prefixes("10.5.0.0/16", "10.8.0.0/16")}
		apply(t, fw, p)
		settled(t, fw, p)
		shows(t, "nft list chain ip flannel-ipv4 postrtg | grep 'ip '", `
			table ip flannel-ipv4 {
			ip saddr 10.5.7.0/24 ip daddr 10.5.0.0/16 return
			ip saddr 10.5.7.0/24 ip daddr 10.8.0.0/16 return
			ip saddr 10.5.0.0/16 ip daddr 10.5.7.0/24 return
			ip saddr 10.8.0.0/16 ip daddr 10.5.7.0/24 return
			ip saddr != 10.5.0.0/16 ip daddr 10.5.7.0/24 return
			ip saddr != 10.8.0.0/16 ip daddr 10.5.7.0/24 return
			ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
			ip saddr 10.8.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
			ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random
			ip saddr != 10.8.0.0/16 ip daddr 10.8.0.0/16 masquerade fully-random`)
	})
}

func TestPolicyCheck(t *testing.T) {
	bad := map[string]func(*Policy){
		"network of the other family": func(p *Policy) { p.Network.V4 = prefixes("fd00::/48") },
		"network is everything":       func(p *Policy) { p.Network.V4 = prefixes("0.0.0.0/0") },
		"no subnet":                   func(p *Policy) { p.Subnet.V6 = netip.Prefix{} },
		"invalid network":             func(p *Policy) { p.Network.V6 = []netip.Prefix{{}} },
	}
	for name, spoil := range bad {
		p := dual(IPTables)
		spoil(&p)
		if err := p.check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, p := range []Policy{{}, dual(NFTables), {Forward: true, Network: dual(IPTables).Network}} {
		if err := p.check(); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
}
