package e2e

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/lab"
)

// look prints all that an agent keeps in the kernel of its node, in a stable form: what counts up or
// depends on the order of things is taken out below.
const look = `
ip -d -o link show type vxlan
for d in /sys/class/net/flannel*; do
	d=${d##*/}
	[ -e "/sys/class/net/$d" ] || continue
	ip -o addr show dev "$d" scope global
	ip neigh show dev "$d" nud permanent
	ip -6 neigh show dev "$d" nud permanent
	bridge fdb show dev "$d"
done
ip route show
ip -6 route show
cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding
nft list ruleset
cat /run/flannel/subnet.env
`

// unstable is what differs between two looks at the same state: device indexes, counters, handles.
var unstable = regexp.MustCompile(`(?m)^\d+: |packets \d+ bytes \d+|valid_lft \S+|preferred_lft \S+| offload| linkdown| pref medium`)

// kernelState returns what look prints, one sorted line each.
func kernelState(ctx context.Context, t *testing.T, n *lab.Node) string {
	t.Helper()
	state, err := kernelStateOf(ctx, n)
	must(t, err)
	return state
}

func kernelStateOf(ctx context.Context, n *lab.Node) (string, error) {
	out, err := n.Exec(ctx, "sh", "-c", look)
	if err != nil {
		return "", fmt.Errorf("node %s: %w", n.Name, err)
	}
	lines := strings.Split(unstable.ReplaceAllString(out, ""), "\n")
	lines = slices.DeleteFunc(lines, func(s string) bool { return strings.HasPrefix(s, "fe80::") || strings.TrimSpace(s) == "" })
	slices.Sort(lines)
	return strings.Join(lines, "\n"), nil
}

// lineDiff shows the lines that only one of two texts has.
func lineDiff(before, after string) string {
	had, has := strings.Split(before, "\n"), strings.Split(after, "\n")
	var b strings.Builder
	for _, s := range had {
		if !slices.Contains(has, s) {
			fmt.Fprintf(&b, "\n- %s", s)
		}
	}
	for _, s := range has {
		if !slices.Contains(had, s) {
			fmt.Fprintf(&b, "\n+ %s", s)
		}
	}
	return b.String()
}
