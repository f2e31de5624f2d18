package firewall

import (
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/netnstest"
)

// TestForwardStaysLast moves the jump behind rules that others append: once for each, and not behind one that
// refuses everything.
func TestForwardStaysLast(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		fw, p := open(t), dual(m)
		sh(t, "iptables-nft -P FORWARD DROP")
		apply(t, fw, p)
		last := func(want string) {
			t.Helper()
			apply(t, fw, p)
			before := generation(t, fw)
			if c := apply(t, fw, p); generation(t, fw) != before {
				t.Errorf("no rest: %+v", c)
			}
			if s := sh(t, "iptables-nft -S FORWARD | tail -1"); !strings.Contains(s, want) {
				t.Errorf("last in FORWARD: %s, want %s", s, want)
			}
		}
		sh(t, "iptables-nft -N POLICY; iptables-nft -A FORWARD -j POLICY")
		last("FLANNEL-FWD")
		sh(t, "iptables-nft -D FORWARD -j POLICY; iptables-nft -A FORWARD -j POLICY")
		last("POLICY") // it insists: no race
		sh(t, "iptables-nft -A FORWARD -i eth9 -j ACCEPT")
		last("FLANNEL-FWD")
		sh(t, "iptables-nft -A FORWARD -j REJECT")
		last("REJECT")
		if s := sh(t, "iptables-nft -S FORWARD | grep -c FLANNEL-FWD"); strings.TrimSpace(s) != "1" {
			t.Errorf("%s jumps", s)
		}
	})
}

// TestForwardOnlyWhereFiltered leaves table filter alone in nftables mode until somebody has a FORWARD chain.
func TestForwardOnlyWhereFiltered(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		fw, p := open(t), dual(NFTables)
		apply(t, fw, p)
		shows(t, "nft list tables", "table ip flannel-ipv4\ntable ip6 flannel-ipv6")
		sh(t, "iptables-nft -P FORWARD DROP")
		apply(t, fw, p)
		settled(t, fw, p)
		shows(t, "iptables-nft -S | grep ^-A", forward4)
		shows(t, "nft list tables", "table ip flannel-ipv4\ntable ip6 flannel-ipv6\ntable ip filter")
		p.Forward = false
		apply(t, fw, p)
		settled(t, fw, p)
		shows(t, "iptables-nft -S", "-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT")
	})
}
