package firewall

import (
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/netnstest"
)

// TestFindings says what other rules do to pods, and nothing on an ordinary host.
func TestFindings(t *testing.T) {
	cases := []struct {
		name, script string
		want         []string // one finding each that contains the text; none: silence
	}{
		{"nothing there", "", nil},
		{"Docker on iptables-nft", "iptables-nft -P FORWARD DROP; iptables-nft -I FORWARD -i docker0 -j ACCEPT", nil},
		{"a refusal before our jump", "iptables-nft -A FORWARD -j REJECT",
			[]string{"chain ip filter FORWARD drops or rejects every packet before the jump"}},
		{"a drop with a comment before our jump", "ip6tables-nft -A FORWARD -m comment --comment no -j DROP",
			[]string{"chain ip6 filter FORWARD drops or rejects every packet"}},
		{"a refusal of something else", "iptables-nft -A FORWARD -i eth9 -j REJECT", nil},
		{"another base chain that drops", "nft 'table inet fw { chain f { type filter hook forward priority 1; policy drop; }; }'",
			[]string{"chain inet fw f refuses every forwarded packet that it does not accept"}},
		{"another base chain that rejects at its end",
			"nft 'table inet fw { chain f { type filter hook forward priority 1; iif lo accept; reject; }; }'",
			[]string{"chain inet fw f refuses"}},
		{"a policy that only clamping looks at", "iptables-nft -t mangle -P FORWARD DROP", []string{"chain ip mangle FORWARD refuses"}},
		{"other base chains", `nft 'table inet fw { chain f { type filter hook forward priority 1; iif lo drop; }
			chain i { type filter hook input priority 1; policy drop; }; chain g { drop; }; }'`, nil},
		{"legacy tables looked at", "iptables-legacy -S; iptables-legacy -t nat -S; ip6tables-legacy -S", nil},
		{"legacy rules", "iptables-legacy -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE",
			[]string{"legacy iptables has rules for IPv4 (nat)"}},
		{"legacy FORWARD policy", "iptables-legacy -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP",
			[]string{"run iptables-legacy -P FORWARD ACCEPT", "run ip6tables-legacy -P FORWARD ACCEPT"}},
		{"legacy INPUT policy", "iptables-legacy -P INPUT DROP", nil},
		{"the original's rules in legacy iptables",
			"iptables-legacy -N FLANNEL-FWD; iptables-legacy -A FORWARD -j FLANNEL-FWD",
			[]string{"still holds chains of flannel in table filter"}},
	}
	need(t)
	netnstest.Need(t, "iptables-legacy", "iptables")
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			netnstest.Run(t, func(t *testing.T) {
				sh(t, c.script)
				fw := open(t)
				apply(t, fw, clamping(IPTables))
				got := fw.Findings()
				if len(got) != len(c.want) {
					t.Fatalf("%d findings: %q", len(got), got)
				}
				for i := range got {
					if !strings.Contains(got[i], c.want[i]) {
						t.Errorf("finding %q, want %q", got[i], c.want[i])
					}
				}
			})
		})
	}
}

// TestFindingsTouchNothing makes sure that looking for legacy tables does not make them.
func TestFindingsTouchNothing(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		open(t).Findings()
		if s := sh(t, "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>&1 || :"); strings.Contains(s, "filter") {
			t.Errorf("tables: %s", s)
		}
	})
}

func TestBridgeNetfilter(t *testing.T) {
	for _, f := range family.All() {
		t.Run(f.String(), func(t *testing.T) {
			name := map[family.Family]string{family.V4: "iptables", family.V6: "ip6tables"}[f]
			netnstest.Run(t, func(t *testing.T) {
				if _, present := BridgeNetfilter(f); !present {
					netnstest.Unavailable(t, "no br_netfilter")
				}
				for _, want := range []bool{false, true} {
					sh(t, "echo "+map[bool]string{false: "0", true: "1"}[want]+" > /proc/sys/net/bridge/bridge-nf-call-"+name)
					if on, _ := BridgeNetfilter(f); on != want {
						t.Errorf("on: %v, want %v", on, want)
					}
				}
			})
		})
	}
}
