package firewall

import (
	"context"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/state"
)

// everything prints all rules in the namespace, in an order and form that does not depend on who made them
// when: the tables of iptables as iptables-nft prints them, the others as nft does.
func everything(t testing.TB) string {
	t.Helper()
	s := sh(t, `iptables-nft-save; ip6tables-nft-save
		nft list tables | sort | grep -Ev 'table ip6? (nat|filter|mangle)$' | while read l; do
			echo $l; nft list $l | grep -E '^.(comment|flags)' || :
		done
		nft list chains | awk '/^table/ { t = $2" "$3 } $1 == "chain" { print t, $2 }' | sort |
			grep -Ev '^ip6? (nat|filter|mangle) ' | while read l; do nft list chain $l; done
		nft list sets | { grep -v table || :; }`)
	s = regexp.MustCompile(`(?m)\[\d+:\d+\]|^#.*$`).ReplaceAllString(s, "")
	return strings.Join(lines(s), "\n")
}

// TestAdopt meets what iptables-nft wrote for the original and finds nothing to do.
func TestAdopt(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		sh(t, original)
		settled(t, open(t), dual(IPTables))
	})
}

// TestIPTablesKnowsOurRules checks and deletes each rule with iptables-nft, as the original does when it
// takes a node back.
func TestIPTablesKnowsOurRules(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		fw, p := open(t), clamping(m)
		sh(t, "iptables-nft -P FORWARD DROP; ip6tables-nft -P FORWARD DROP") // has FLANNEL-FWD in both modes
		apply(t, fw, p)
		for _, f := range family.All() {
			program := map[family.Family]string{family.V4: "iptables-nft", family.V6: "ip6tables-nft"}[f]
			want := p.layout(f)
			for _, s := range []spot{spotNAT, spotFilter, spotMangle} {
				pl := s.place(f)
				if len(want.spots[s].rules) == 0 {
					continue
				}
				check := func(chain string, r rule) {
					t.Helper()
					line := chain + " " + r.iptables()
					sh(t, program+" -t "+pl.table+" -C "+line)
					sh(t, program+" -t "+pl.table+" -D "+line)
				}
				for _, r := range want.spots[s].rules {
					check(pl.chain, r)
				}
				check(pl.base.name, s.jumpTo(f))
				sh(t, program+" -t "+pl.table+" -X "+pl.chain)
			}
		}
		apply(t, fw, p)
		settled(t, fw, p)
	})
}

// TestDamage breaks the rules by hand in every way; one pass brings back what was there.
func TestDamage(t *testing.T) {
	common := []string{
		"nft flush ruleset",
		"nft flush table ip filter",
		"nft delete table ip6 filter; nft add table ip6 filter",
		"iptables-nft -F FLANNEL-FWD",
		"iptables-nft -D FLANNEL-FWD 1",
		"iptables-nft -I FLANNEL-FWD -s 10.5.9.0/24 -j DROP",
		"iptables-nft -A FLANNEL-FWD -s 10.5.9.0/24 -j DROP",
		"iptables-nft -F FORWARD",
		"iptables-nft -F FORWARD; iptables-nft -F FLANNEL-FWD; iptables-nft -X FLANNEL-FWD",
		"iptables-nft -A FORWARD -j FLANNEL-FWD",
		"iptables-nft -I FORWARD -i lo -j FLANNEL-FWD",
		"iptables-nft -A FORWARD -g FLANNEL-FWD",
		`iptables-nft -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD`,
	}
	own := map[Mode][]string{
		IPTables: {
			"iptables-nft -t nat -F FLANNEL-POSTRTG",
			"iptables-nft -t nat -D FLANNEL-POSTRTG 6",
			"iptables-nft -t nat -I FLANNEL-POSTRTG -j RETURN",
			"ip6tables-nft -t nat -A FLANNEL-POSTRTG -j ACCEPT",
			"iptables-nft -t nat -F POSTROUTING",
			"iptables-nft -t nat -F; iptables-nft -t nat -X",
			"nft delete table ip nat",
			"nft insert rule ip nat FLANNEL-POSTRTG ip saddr 10.5.0.0/16 udp dport 53 accept",
			// The last two rules swapped.
			`iptables-nft -t nat -D FLANNEL-POSTRTG 5; iptables-nft -t nat -A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully`,
		},
		NFTables: {
			"nft delete table ip flannel-ipv4",
			"nft delete table ip6 flannel-ipv6",
			"nft flush table ip flannel-ipv4",
			"nft flush chain ip flannel-ipv4 postrtg",
			"nft insert rule ip flannel-ipv4 postrtg return",
			"nft add rule ip flannel-ipv4 forward drop",
			"nft insert rule ip6 flannel-ipv6 postrtg tcp dport 80 accept",
			"nft flush chain ip flannel-ipv4 postrtg; nft delete chain ip flannel-ipv4 postrtg",
			"nft flush chain ip flannel-ipv4 postrtg; nft delete chain ip flannel-ipv4 postrtg; nft add chain ip flannel-ipv4 postrtg",
			"nft 'add table ip flannel-ipv4 { flags dormant; }'",
			"nft 'chain ip flannel-ipv4 forward { policy drop; }'",
			"nft delete chain ip6 flannel-ipv6 forward; nft 'add chain ip6 flannel-ipv6 forward { type filter hook input priority 7; }'",
		},
	}
	modes(t, func(t *testing.T, m Mode) {
		fw, p := open(t), dual(m)
		host := "iptables-nft -P FORWARD ACCEPT; ip6tables-nft -P FORWARD ACCEPT" // makes the chains if need be
		sh(t, host)
		apply(t, fw, p)
		whole := everything(t)
		for _, damage := range append(own[m], common...) {
			sh(t, damage+"\n"+host)
			before := generation(t, fw)
			plan, err := fw.Plan(p)
			if err != nil || len(plan) == 0 || generation(t, fw) != before {
				t.Errorf("%s: plan %+v, error %v, wrote: %v", damage, plan, err, generation(t, fw) != before)
			}
			if diff := cmp.Diff(plan, apply(t, fw, p)); diff != "" {
				t.Errorf("%s: (-planned +done):\n%s", damage, diff)
			}
			if diff := cmp.Diff(whole, everything(t)); diff != "" {
				t.Errorf("%s: (-before +mended):\n%s", damage, diff)
			}
			settled(t, fw, p)
		}
	})
}

// TestLeavings starts on a node that a former process left in another state.
func TestLeavings(t *testing.T) {
	other := dual(IPTables)
	other.Network = family.Pair[[]netip.Prefix]{V4: prefixes("10.9.0.0/20", "10.10.0.0/16"), V6: prefixes("fd00:9::/50")}
	other.Subnet = family.Pair[netip.Prefix]{
		V4: netip.MustParsePrefix("10.9.1.0/25"), V6: netip.MustParsePrefix("fd00:9:0:1::/64"),
	}
	ours := func(m Mode) func(t *testing.T) {
		return func(t *testing.T) {
			p := other
			p.Mode = m
			apply(t, open(t), p)
		}
	}
	script := func(s string) func(t *testing.T) { return func(t *testing.T) { sh(t, s) } }
	leavings := map[string]func(t *testing.T){
		"ours in iptables mode, other subnet":         ours(IPTables),
		"ours in nftables mode, other subnet":         ours(NFTables),
		"the original's in iptables mode":             script(original),
		"the original's, switched to nftables":        script(originalSwitched),
		"the original's in nftables mode":             script(originalNFT),
		"the original's in both modes":                script(originalSwitched + originalNFT),
		"a jump from somebody else's chain":           script(original + "iptables-nft -t nat -N THEIRS; iptables-nft -t nat -A THEIRS -p tcp -j FLANNEL-POSTRTG"),
		"in both modes, with a chain in our table":    script(originalSwitched + originalNFT + "nft add chain ip flannel-ipv4 more"),
		"in iptables mode, twice, with other matches": script(original + "iptables-nft -t nat -I POSTROUTING -o lo -j FLANNEL-POSTRTG"),
	}
	modes(t, func(t *testing.T, m Mode) {
		base := "iptables-nft -F FORWARD; ip6tables-nft -F FORWARD" // in nftables mode too, ours goes where these are
		for name, leave := range leavings {
			t.Run(name, func(t *testing.T) {
				netnstest.Run(t, func(t *testing.T) {
					sh(t, base)
					apply(t, open(t), dual(m))
					clean := everything(t)
					sh(t, "nft flush ruleset; "+base)
					leave(t)
					fw := open(t)
					apply(t, fw, dual(m))
					settled(t, fw, dual(m))
					sh(t, "nft delete chain ip flannel-ipv4 more 2>&1 || :; nft flush chain ip nat THEIRS 2>&1 || :; nft delete chain ip nat THEIRS 2>&1 || :")
					if m == NFTables {
						sh(t, "nft delete table ip nat 2>&1 || :") // was theirs as well
					}
					if diff := cmp.Diff(clean, everything(t)); diff != "" {
						t.Errorf("(-fresh +after leavings):\n%s", diff)
					}
				})
			})
		}
	})
}

// foreign is what other programs have in the same tables and beside them.
const foreign = `
iptables-nft -P FORWARD DROP
iptables-nft -t nat -N KUBE-POSTROUTING
iptables-nft -t nat -I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
iptables-nft -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
iptables-nft -N DOCKER-USER
iptables-nft -A FORWARD -j DOCKER-USER
iptables-nft -A FORWARD -p tcp -m multiport --dports 1,2,3 -j ACCEPT
nft 'table inet firewalld { set s { type ipv4_addr; elements = { 10.5.0.1 } ; }; chain c { type filter hook forward priority 10; ip saddr @s drop; }; }'
nft 'table ip flannel { chain postrtg { type nat hook postrouting priority 101; }; }'
`

// TestForeignSurvives applies, switches and cleans up around other programs' rules.
func TestForeignSurvives(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		sh(t, foreign)
		before := everything(t)
		fw := open(t)
		for _, p := range []Policy{dual(m), dual(NFTables), dual(IPTables), dual(m)} {
			apply(t, fw, p)
			settled(t, fw, p)
		}
		if s := sh(t, "iptables-nft -S FORWARD | tail -1"); !strings.Contains(s, "-j FLANNEL-FWD") {
			t.Errorf("the jump is not last in FORWARD but %s", s)
		}
		want, err := fw.Cleanup(context.Background(), true)
		if err != nil || len(want) == 0 {
			t.Fatalf("dry run: %v, %v", want, err)
		}
		done, err := fw.Cleanup(context.Background(), false)
		if err != nil || !cmp.Equal(want, done) {
			t.Errorf("cleanup: %v (-announced +done):\n%s", err, cmp.Diff(want, done))
		}
		if diff := cmp.Diff(before, everything(t)); diff != "" {
			t.Errorf("(-before +after cleanup):\n%s", diff)
		}
		if again, err := fw.Cleanup(context.Background(), true); err != nil || len(again) != 0 {
			t.Errorf("second cleanup finds %v, %v", again, err)
		}
	})
}

// TestCleanupOriginal removes what the original left.
func TestCleanupOriginal(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		sh(t, originalSwitched+originalNFT)
		if _, err := open(t).Cleanup(context.Background(), false); err != nil {
			t.Fatal(err)
		}
		if s := everything(t); strings.Contains(strings.ToLower(s), "flannel") {
			t.Errorf("left behind:\n%s", s)
		}
	})
}

// TestPlanText shows a plan as an operator reads it.
func TestPlanText(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		p := dual(IPTables)
		p.Network.V6 = nil
		fw := open(t)
		apply(t, fw, p)
		sh(t, `iptables-nft -D FLANNEL-FWD 2; iptables-nft -I FLANNEL-FWD -p tcp -j DROP; iptables-nft -F FORWARD`)
		got, err := fw.Plan(p)
		if err != nil {
			t.Fatal(err)
		}
		want := []state.Change{
			{Op: state.Add, Kind: "firewall", Object: "rule of ip filter FLANNEL-FWD",
				Want: `-d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT`},
			{Op: state.Remove, Kind: "firewall", Object: "rule of ip filter FLANNEL-FWD", Have: "rule with handle 6, not ours"},
			{Op: state.Add, Kind: "firewall", Object: "jump of ip filter FORWARD",
				Want: `-m comment --comment "flanneld forward" -j FLANNEL-FWD`},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}
