package firewall

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// Findings returns, in plain language, what about the host's other rules keeps ours from working: a rule
// before our jump that refuses everything (as of the last Plan or Apply), another program's base chain that
// does, legacy iptables beside nftables. None is usual. It reads more than a pass does, and looks for legacy
// iptables in the calling thread's network namespace.
func (f *Firewall) Findings() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var findings []string
	for _, fam := range family.All() {
		if chain := f.blocked.Of(fam); chain != "" {
			findings = append(findings, fmt.Sprintf("a rule in chain %s drops or rejects every packet before the"+
				" jump to FLANNEL-FWD is reached, so pod traffic is refused: move that rule behind the jump", chain))
		}
	}
	guards, err := f.conn.forwardGuards()
	if err != nil {
		findings = append(findings, fmt.Sprintf("cannot tell whether another program's rules refuse pods: %v", err))
	}
	for _, g := range guards {
		findings = append(findings, fmt.Sprintf("chain %s refuses every forwarded packet that it does not accept"+
			" itself, and an accept elsewhere does not overrule it: make that program accept the pod network", g))
	}
	for _, fam := range family.All() {
		findings = append(findings, legacyFindings(fam)...)
	}
	return findings
}

// forwardGuards names the base chains at the forward hook that refuse what they do not accept, those apart
// that our own jump goes into.
func (c *conn) forwardGuards() ([]string, error) {
	families := []struct {
		name   string
		number byte
	}{{"ip", unix.NFPROTO_IPV4}, {"ip6", unix.NFPROTO_IPV6}, {"inet", unix.NFPROTO_INET}}
	var guards []string
	for _, f := range families {
		answers, err := c.ask(f.number, unix.NFT_MSG_GETCHAIN, netlink.Dump, nil)
		if err != nil {
			return guards, err
		}
		for _, a := range answers {
			b := parseChain(a)
			if b.base.kind != "filter" || b.base.hook != unix.NF_INET_FORWARD || ours(f.name, b) {
				continue
			}
			refuses, err := c.refuses(f.number, b)
			if err != nil {
				return guards, err
			}
			if refuses {
				guards = append(guards, f.name+" "+b.table+" "+b.base.name)
			}
		}
	}
	return guards, nil
}

// ours says whether our rules accept pods in the base chain b of a table of an nft family.
func ours(tableFamily string, b foundBase) bool {
	return slices.ContainsFunc([]family.Family{family.V4, family.V6}, func(f family.Family) bool {
		return tableFamily == tableFamilyName(f) && slices.ContainsFunc([]spot{spotFilter, spotOwnFilter}, func(s spot) bool {
			p := s.place(f)
			return p.table == b.table && p.base.name == b.base.name
		})
	})
}

func (c *conn) refuses(tableFamily byte, b foundBase) (bool, error) {
	if b.policy != verdictAccept {
		return true, nil
	}
	rules, err := c.chainRules(tableFamily, b.table, b.base.name)
	return slices.ContainsFunc(rules, kernelRule.refusesAll), err
}

// BridgeNetfilter says whether packets that cross a bridge of this host meet the rules of family f
// (net.bridge.bridge-nf-call-iptables, -ip6tables), and whether the kernel has that switch at all, which it
// does once br_netfilter is loaded.
func BridgeNetfilter(f family.Family) (on, present bool) {
	name := "bridge-nf-call-iptables"
	if f == family.V6 {
		name = "bridge-nf-call-ip6tables"
	}
	b, err := os.ReadFile("/proc/sys/net/bridge/" + name)
	return err == nil && strings.TrimSpace(string(b)) == "1", err == nil
}
