package k8s

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/manifest"
	"github.com/weftnet/weft/test/k8s/cluster"
)

// TestUninstall removes the network as the documentation says, and wants the nodes to be as they were.
func TestUninstall(t *testing.T) {
	long(t)
	net := ours(t)
	o := cluster.Options{Segments: [][]string{{"cp", "n1"}}, Proxy: "none"}
	ctx, c := up(t, 8*time.Minute, o, net)
	before := map[string]string{}
	for _, n := range c.Nodes {
		before[n.Name] = state(ctx, t, n)
	}
	text, err := net.manifest(netConf(o, `{"Type": "vxlan"}`))
	must(t, err)
	text = withServer(text, node(t, c, "cp").Addrs()[0])
	must(t, c.Apply(ctx, text))
	rolledOut(ctx, t, c)
	pods := deployWeb(ctx, t, c)
	pingAll(t, pods)
	must(t, c.Delete(ctx, web))
	must(t, c.Delete(ctx, text))

	uninstall, err := manifest.Uninstall(manifest.Options{})
	must(t, err)
	must(t, c.Apply(ctx, string(uninstall)))
	kubectl(ctx, t, c, "-n", "kube-system", "rollout", "status", "daemonset/kube-flannel-uninstall", "--timeout=180s")
	must(t, c.Delete(ctx, string(uninstall)))
	for _, n := range c.Nodes {
		if after := state(ctx, t, n); after != before[n.Name] {
			t.Errorf("node %s before:\n%s\nand after:\n%s", n.Name, before[n.Name], after)
		}
	}
}

// looks are what can be seen of a pod network on a node. Sockets and locks of others' are left out.
var looks = []string{
	"ip -o link | sed 's/.*: \\([^:@]*\\)[@:].*mtu.*/\\1/' | sort",
	"ip -4 addr | grep inet", "ip -4 route show table all | sort", "ip -6 route | grep -v fe80 | sort", "ip rule",
	"nft -s list ruleset", "find /etc/cni /opt/cni /var/lib/cni /var/lib/flannel /run/flannel -type f 2>/dev/null | sort",
	"cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding /proc/sys/net/ipv6/conf/eth0/accept_ra",
}

// emptyChain is a base chain that does nothing: iptables makes those of a whole table with its first rule there, and
// never removes them.
var emptyChain = regexp.MustCompile(`\n*\tchain [A-Z]+ \{\n\t\ttype [^\n]* policy accept;\n\t\}`)

func state(ctx context.Context, t *testing.T, n *cluster.Node) string {
	t.Helper()
	var b strings.Builder
	for _, look := range looks {
		out, err := n.Exec(ctx, "sh", "-c", look+" || true")
		must(t, err)
		b.WriteString("# " + look + "\n" + emptyChain.ReplaceAllString(out, ""))
	}
	return b.String()
}
