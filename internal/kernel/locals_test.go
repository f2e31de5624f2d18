package kernel_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/state"
)

// letGo is the state of a node whose tunnels have been let go.
func letGo() state.State {
	s := state.New()
	s.Routes[state.RouteKey{Dst: subnet4(2)}] = state.Route{Type: state.Unicast, Via: peerAddr(2), Dev: "eth0", Protocol: state.Protocol}
	s.Locals[netip.MustParseAddr("10.244.0.0")] = true
	s.Locals[netip.MustParseAddr("fd24::")] = true
	return s
}

func localTable(t testing.TB) string {
	t.Helper()
	return sh(t, "ip route show table local") + sh(t, "ip -6 route show table local")
}

const (
	held4 = "local 10.244.0.0 dev lo proto 119 scope host"
	held6 = "local fd24:: dev lo proto 119 metric 1024 pref medium"
)

func TestOwnAddressOutlivesItsDevice(t *testing.T) {
	for _, strict := range []bool{true, false} {
		t.Run(fmt.Sprintf("strict checks %v", strict), func(t *testing.T) {
			netnstest.Run(t, func(t *testing.T) {
				k := host(t)
				if !strict {
					if err := k.LoseStrictChecks(); err != nil {
						t.Fatal(err)
					}
				}
				// Another agent's, somebody's, and what a bridge in the subnet has before Linux 5.14.
				foreign := []string{"local 10.50.0.0 dev lo proto 119 scope host", "local 10.244.9.9 dev lo scope host", "broadcast 10.244.0.0 dev eth0 scope link"}
				for _, r := range foreign {
					sh(t, "ip route add table local "+r)
				}
				tunnels := node(2)
				apply(t, k, tunnels)
				lacks(t, localTable(t), held4, held6)

				planned, err := k.Plan(letGo(), scope)
				if err != nil {
					t.Fatal(err)
				}
				added := 0
				for _, c := range planned {
					if c.Op == state.Add && (c.Object == "local 10.244.0.0" || c.Object == "local fd24::") && c.Want == "dev lo table local" {
						added++
					} else if c.Op == state.Remove && added < 2 {
						t.Errorf("%s %s goes before the address is held: %q", c.Kind, c.Object, lines(planned))
					}
				}
				apply(t, k, letGo())
				contains(t, localTable(t), append([]string{held4, held6}, foreign...)...)
				if out := sh(t, "ip route get 10.244.0.0"); out[:6] != "local " {
					t.Errorf("the address is not local: %s", out)
				}
				rests(t, k, letGo())

				for _, r := range []string{held4, held6} {
					sh(t, "ip route del table local "+r)
					apply(t, k, letGo())
					contains(t, localTable(t), held4, held6)
				}

				apply(t, k, tunnels)
				eventually(t, "the devices have the addresses", func() bool { apply(t, k, tunnels); return len(held(t)) == 1 })
				contains(t, localTable(t), foreign...)
				rests(t, k, tunnels)
			})
		})
	}
}

// held returns the addresses that are local by protocol 119.
func held(t testing.TB) (lines []string) {
	t.Helper()
	for _, f := range []string{"-4", "-6"} {
		if out := sh(t, "ip "+f+" route show table local proto 119"); out != "" {
			lines = append(lines, out)
		}
	}
	return lines
}

func TestOwnAddressIsLostWithTheSubnet(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		apply(t, k, letGo())
		incomplete := scope
		incomplete.Complete = false
		if _, err := k.Apply(context.Background(), state.New(), incomplete); err != nil {
			t.Fatal(err)
		}
		contains(t, localTable(t), held4, held6)
		apply(t, k, state.New())
		lacks(t, localTable(t), "proto 119")
	})
}

func TestLossOfAnOwnAddressWakes(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		k := host(t)
		apply(t, k, letGo())
		woke := watch(t, k)
		sh(t, "ip route del table local "+held4)
		if seen := woke(); !slices.Contains(seen, "route") {
			t.Errorf("woke for %v", seen)
		}
		apply(t, k, letGo())
		if seen := woke(); slices.Contains(seen, "route") {
			t.Errorf("our own write woke %v", seen)
		}
	})
}
