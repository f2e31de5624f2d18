package lab

import (
	"context"
	"fmt"
	"strings"

	"github.com/weftnet/weft/internal/family"
)

// HoldBack cuts a node off from etcd, in both directions and inside the node, so that it learns of nothing
// that happens there; with on false it is told again, in its own time. Its peers stay reachable.
func (n *Node) HoldBack(ctx context.Context, on bool) error {
	var rules strings.Builder
	rules.WriteString("add table inet lab-hold\ndelete table inet lab-hold\n")
	if on {
		rules.WriteString("table inet lab-hold {\n")
		rules.WriteString(n.dropEtcd("in", "prerouting", "saddr"))
		rules.WriteString(n.dropEtcd("out", "output", "daddr"))
		rules.WriteString("}\n")
	}
	if _, err := n.Exec(ctx, "sh", "-c", "nft -f - <<'END'\n"+rules.String()+"END"); err != nil {
		return fmt.Errorf("hold back %s: %w", n.Name, err)
	}
	return nil
}

// dropEtcd returns a chain that drops what comes from etcd's machine, or goes there.
func (n *Node) dropEtcd(chain, hook, match string) string {
	s := fmt.Sprintf("chain %s { type filter hook %s priority raw;\n", chain, hook)
	etcd := n.lab.Options.ports()[etcdName].Addr
	for f, word := range map[family.Family]string{family.V4: "ip", family.V6: "ip6"} {
		if a := etcd.Of(f); a.IsValid() {
			s += fmt.Sprintf("%s %s %s drop\n", word, match, a.Addr())
		}
	}
	return s + "}\n"
}
