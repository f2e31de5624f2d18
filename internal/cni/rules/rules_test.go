package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/weftnet/weft/internal/netnstest"
)

func masquerade(i int) []Rule {
	pod := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
	return []Rule{{Table: V4, Chain: PostRouting, Exprs: Join(From(netip.PrefixFrom(pod, 32)), Masquerade())}}
}

func open(t *testing.T) *Conn {
	t.Helper()
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Processes that delete and replace the same rules at the same time do not disturb each other.
func TestSeveralAtOnce(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		conns := []*Conn{open(t), open(t), open(t), open(t)}
		for round := range 20 {
			for i := range 30 {
				if err := conns[0].Replace(Label{"bridge", "n", fmt.Sprint(i), "eth0"}, masquerade(i)); err != nil {
					t.Fatal(err)
				}
			}
			var wg sync.WaitGroup
			for w, c := range conns {
				wg.Go(func() {
					var err error
					if w == 0 {
						err = c.Replace(Label{"bridge", "n", fmt.Sprint(round), "eth0"}, masquerade(99))
					} else {
						err = c.Remove(func(comment string) bool { return strings.HasPrefix(comment, Prefix("bridge", "n")) })
					}
					if err != nil {
						t.Errorf("round %d: %v", round, err)
					}
				})
			}
			wg.Wait()
		}
		if err := conns[1].Remove(func(string) bool { return true }); err != nil {
			t.Error(err)
		}
		if left, err := conns[2].Count(); err != nil || len(left) > 0 {
			t.Errorf("left %v, %v", left, err)
		}
	})
}

// Of a list that the kernel hands over in pieces no rule is left out because another one goes meanwhile.
func TestALongChainIsListedWhole(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		const pods, conns = 300, 6
		all := make([]*Conn, conns)
		for w := range all {
			all[w] = open(t)
		}
		for i := range pods {
			all[0].add(Label{"bridge", "n", fmt.Sprint(i), "eth0"}, slices.Repeat(masquerade(i), 8))
		}
		if err := all[0].deleteAnd(nil); err != nil {
			t.Fatal(err)
		}
		if there, err := all[0].Count(); err != nil || len(there) != pods {
			t.Errorf("%d pods have rules, %v", len(there), err)
		}
		var wg sync.WaitGroup
		for w, c := range all {
			wg.Go(func() {
				for i := w; i < pods; i += conns {
					label := Label{"bridge", "n", fmt.Sprint(i), "eth0"}.String()
					if err := c.Remove(func(comment string) bool { return comment == label }); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if left, err := all[0].Count(); err != nil || len(left) > 0 {
			t.Errorf("left %v, %v", left, err)
		}
	})
}

func TestSomebodyElsesTables(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		netnstest.Need(t, "nft", "nftables")
		c := open(t)
		if err := c.Remove(func(string) bool { return true }); err != nil {
			t.Errorf("nothing there: %v", err)
		}
		netnstest.Command(t, "nft", "add table ip other; add chain ip other postrouting { type nat hook postrouting priority 100; }; add rule ip other postrouting masquerade comment \"bridge n/a/eth0\"")
		before := netnstest.Command(t, "nft", "list", "table", "ip", "other")
		if err := c.Replace(Label{"bridge", "n", "a", "eth0"}, masquerade(1)); err != nil {
			t.Fatal(err)
		}
		first := netnstest.Command(t, "nft", "list", "table", "ip", TableName)
		if err := c.Replace(Label{"bridge", "n", "a", "eth0"}, masquerade(1)); err != nil {
			t.Fatal(err)
		}
		if second := netnstest.Command(t, "nft", "list", "table", "ip", TableName); second != first {
			t.Errorf("the second time makes a difference:\n%s\n%s", first, second)
		}
		if err := c.Remove(func(string) bool { return true }); err != nil {
			t.Error(err)
		}
		if after := netnstest.Command(t, "nft", "list", "table", "ip", "other"); after != before {
			t.Errorf("somebody else's table is now\n%s", after)
		}
	})
}

func TestLabels(t *testing.T) {
	long := strings.Repeat("x", 300)
	seen := map[string]bool{}
	for _, l := range []Label{
		{"bridge", "n", "a", "eth0"}, {"portmap", "n", "a", "eth0"}, {"bridge", "n", long, "eth0"}, {"bridge", "n", long, "net1"},
		{"bridge", long, "a", "eth0"}, {"bridge", long + "y", "a", "eth0"},
	} {
		s := l.String()
		if len(s) > maxComment || seen[s] || !strings.HasPrefix(s, Prefix(l.Plugin, l.Network)) {
			t.Errorf("%.40v: %q", l, s)
		}
		seen[s] = true
	}
}
