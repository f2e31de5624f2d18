package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

// repairLimit is how long the agent may take to mend anything.
const repairLimit = time.Second

// shellTime is what a shell takes for the longest damage where nothing else is done.
const shellTime = 100 * time.Millisecond

// names gives damage something to hit: the vxlan device, and of a peer behind the router its subnet,
// next hop and VTEP MAC.
const names = `
dev=flannel.1
far=$(ip route show dev $dev | awk '/onlink/ {print $1; exit}')
via=${far%/*}
mac=$(ip neigh show $via dev $dev nud permanent | awk '{print $3}')
`

// TestDamageIsMended breaks node A by hand in every way and measures until everything is as it was
// before and pods answer.
func TestDamageIsMended(t *testing.T) {
	for _, mode := range []struct {
		name     string
		backend  string
		nftables bool
		damage   [][2]string // what it is called, and the shell command
	}{
		{"nftables", direct, true, damage},
		{"vxlan to every peer", vxlan, true, [][2]string{
			{"vxlan device deleted", `ip link del $dev`},
			{"all our routes flushed", `ip route flush proto 119; ip -6 route flush proto 119`},
			{"neighbours flushed", `ip neigh flush dev $dev nud permanent; ip -6 neigh flush dev flannel-v6.1 nud permanent`},
			{"FDB entries deleted", `for d in $dev flannel-v6.1; do
				bridge fdb show dev $d | while read m _ to _; do bridge fdb del $m dev $d dst $to; done; done`},
			{"MAC of the IPv6 device changed", `ip link set flannel-v6.1 address 02:00:00:00:00:01`},
		}},
		{"iptables", direct, false, [][2]string{
			{"nft flush ruleset", `nft flush ruleset`},
			{"iptables -F", `iptables-nft -F; iptables-nft -t nat -F`},
			{"jump deleted", `iptables-nft -D FORWARD -j FLANNEL-FWD -m comment --comment "flanneld forward"`},
		}},
	} {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			ctx, l := up(t, lab.Options{Segments: three(), Family: lab.Dual, Config: config(lab.Dual, mode.backend, mode.nftables)})
			pods := addPods(ctx, t, l)
			awaitRoutes(ctx, t, l)
			pingAll(t, l)
			for _, d := range mode.damage {
				t.Run(d[0], func(t *testing.T) { mend(ctx, t, l, pods, d[1]) })
			}
		})
	}
}

var damage = [][2]string{
	{"vxlan device deleted", `ip link del $dev`},
	{"vxlan device down", `ip link set $dev down`},
	{"vxlan device renamed", `ip link set $dev down; ip link set $dev name elsewhere; ip link set elsewhere up || true`},
	// The agent is quick: it takes a few tries to be first.
	{"vxlan device replaced by another one", `for i in $(seq 100); do date +%s%N
		printf 'link del %s\nlink add %s type vxlan id 99 dstport 9999\n' $dev $dev | ip -batch - 2>/dev/null && exit; done; exit 1`},
	{"MAC changed", `ip link set $dev address 02:00:00:00:00:01`},
	{"MTU changed", `ip link set $dev mtu 1300`},
	{"address removed", `ip addr flush dev $dev scope global`},
	{"extra address", `ip addr add 10.244.250.250/32 dev $dev`},
	{"peer's route deleted", `ip route del $far`},
	{"all our routes flushed", `ip route flush proto 119`},
	{"all routes of the device flushed", `ip route flush dev $dev`},
	{"peer's route led astray", `ip route replace $far via 172.31.0.1`},
	{"peer's route to nowhere", `ip route replace blackhole $far`},
	{"neighbour deleted", `ip neigh del $via dev $dev`},
	{"neighbour changed", `ip neigh replace $via lladdr 02:00:00:00:00:02 dev $dev nud permanent`},
	{"FDB entry deleted", `bridge fdb del $mac dev $dev`},
	{"FDB entry changed", `bridge fdb replace $mac dev $dev dst 172.31.0.99 self permanent`},
	{"further FDB entry", `bridge fdb append 02:00:00:00:00:03 dev $dev dst 172.31.0.98 self permanent`},
	{"forwarding off", `echo 0 >/proc/sys/net/ipv4/ip_forward`},
	{"IPv6 device deleted", `ip link del flannel-v6.1`},
	{"IPv6 routes flushed", `ip -6 route flush proto 119`},
	{"IPv6 forwarding off", `echo 0 >/proc/sys/net/ipv6/conf/all/forwarding`},
	{"nft flush ruleset", `nft flush ruleset`},
	{"uplink down and up", `ip link set eth0 down; ip link set eth0 up; ip route replace default via 172.31.0.1
		ip -6 addr replace fd31::a/64 dev eth0 nodad; ip -6 route replace default via fd31::1`},
}

// mend does the damage to A and waits until it is gone and A's pod reaches the others again.
func mend(ctx context.Context, t *testing.T, l *lab.Lab, pods map[string]*lab.Pod, script string) {
	a := l.Nodes[0]
	pid := a.Agent.PID()
	before := kernelState(ctx, t, a)
	logged, had := len(a.Agent.Log()), waited(a)
	out := strings.Fields(sh(ctx, t, a, names+"date +%s%N; "+script))
	stamp := out[len(out)-1] // damage that takes several tries prints one each
	done := time.Now()       // at the latest
	seen := eventually(t, 5*time.Second, "repair", func() error {
		now, err := kernelStateOf(ctx, a)
		if err == nil && now != before {
			err = fmt.Errorf("still different:%s", lineDiff(before, now))
		}
		return err
	})
	nanos, err := strconv.ParseInt(stamp, 10, 64)
	must(t, err)
	began, busy := time.Unix(0, nanos), waited(a)-had
	took, ok := lastWrite(a.Agent.Log()[logged:], began)
	if !ok {
		took = seen
	}
	// To do the damage takes some milliseconds, and on a busy machine as long as the shell has to wait.
	if took > repairLimit+max(0, done.Sub(began)-shellTime)+busy {
		t.Errorf("mended after %v, want less than %v; the damage took %v, and the agent waited %v for processors", took, repairLimit, done.Sub(began), busy)
	}
	t.Logf("mended after %v", took.Round(time.Millisecond))
	eventually(t, 5*time.Second, "pods", func() error { return reaches(pods["A"], pods["B"], pods["C"]) })
	if a.Agent.PID() != pid {
		t.Error("the agent was restarted")
	}
}

// lastWrite returns how long after since the agent logged its last write to the kernel.
func lastWrite(log string, since time.Time) (took time.Duration, ok bool) {
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "msg=repaired") && !strings.Contains(line, "msg=applied") {
			continue
		}
		stamp, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
		if at, err := time.Parse(time.RFC3339Nano, stamp); err == nil {
			took, ok = at.Sub(since), true
		}
	}
	return took, ok
}

// reaches pings every address of the given pods once.
func reaches(from *lab.Pod, to ...*lab.Pod) error {
	var errs []error
	for _, p := range to {
		for _, addr := range p.Addrs() {
			_, err := lab.Ping(from, addr, 200*time.Millisecond)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// TestForeignDeviceInTheWayIsReported has a bridge under the name of the vxlan device. It may be anybody's,
// so it stays; the agent says so, and goes on as soon as it is gone.
func TestForeignDeviceInTheWayIsReported(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, lab.Options{Segments: three(), Config: config(lab.IPv4, direct, true), NoAgents: true})
	a := l.Nodes[0]
	sh(ctx, t, a, "ip link add flannel.1 type bridge")
	must(t, a.Agent.Launch())
	eventually(t, 10*time.Second, "a reason not to be ready", func() error {
		code, body, err := a.Agent.Get(ctx, "/readyz")
		if err == nil && (code != http.StatusServiceUnavailable || !strings.Contains(body, "flannel.1")) {
			err = fmt.Errorf("/readyz says %d %q", code, body)
		}
		return err
	})
	had := waited(a)
	sh(ctx, t, a, "ip link del flannel.1")
	took := eventually(t, patience, "readiness", func() error { return a.Agent.Ready(ctx) })
	if busy := waited(a) - had; took > repairLimit+busy {
		t.Errorf("ready after %v, want less than %v; the agent waited %v for processors", took, repairLimit, busy)
	}
}

// TestUplinkIsReplaced takes the network card out and puts it in again: its index differs, and the kernel has
// deleted the vxlan devices along with it.
func TestUplinkIsReplaced(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, lab.Options{Segments: three(), Family: lab.Dual, Config: config(lab.Dual, direct, true)})
	pods := addPods(ctx, t, l)
	awaitRoutes(ctx, t, l)
	a := l.Nodes[0]
	before := kernelState(ctx, t, a)
	logged, had := len(a.Agent.Log()), waited(a)
	must(t, a.Replug())
	done := time.Now()
	took := eventually(t, 10*time.Second, "repair", func() error {
		now, err := kernelStateOf(ctx, a)
		if err == nil && now != before {
			err = errors.New(lineDiff(before, now))
		}
		return err
	})
	if last, ok := lastWrite(a.Agent.Log()[logged:], done); ok {
		took = last // to look takes time as well
	}
	t.Logf("mended within %v of the new card's being there", took.Round(time.Millisecond))
	if busy := waited(a) - had; took > repairLimit+busy {
		t.Errorf("mended after %v, want less than %v; the agent waited %v for processors", took, repairLimit, busy)
	}
	eventually(t, 20*time.Second, "pods", func() error { return reaches(pods["A"], pods["B"], pods["C"]) })
}

// TestForeignStateSurvives sets up things that look much like ours and damages our own beside them.
func TestForeignStateSurvives(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, lab.Options{Segments: three(), Config: config(lab.IPv4, direct, true)})
	addPods(ctx, t, l)
	awaitRoutes(ctx, t, l)
	a := l.Nodes[0]
	sh(ctx, t, a, `
		ip link add flannel.77 type vxlan id 77 dstport 8477 dev eth0
		ip link set flannel.77 up
		ip route add 192.0.2.0/24 via 172.31.0.11
		ip route add 198.51.100.0/24 via 172.31.0.1 proto static
		ip route add 10.99.0.0/24 dev flannel.77
		bridge fdb append 02:00:00:00:00:07 dev flannel.77 dst 172.31.0.50 self permanent
		ip neigh add 10.99.0.7 lladdr 02:00:00:00:00:07 dev flannel.77 nud permanent
		ip addr add 203.0.113.9/32 dev flannel.1
		nft 'add table ip mine; add chain ip mine c { type filter hook forward priority 0; policy accept; }; add rule ip mine c counter'
		iptables-nft -t nat -A POSTROUTING -s 192.0.2.7 -j ACCEPT`)
	foreign := kernelState(ctx, t, a)
	sh(ctx, t, a, `ip route flush proto 119; nft delete table ip flannel-ipv4`)
	eventually(t, 5*time.Second, "repair", func() error {
		now, err := kernelStateOf(ctx, a)
		if err == nil && now != foreign {
			err = errors.New(lineDiff(foreign, now))
		}
		return err
	})
	must(t, a.Agent.Restart(ctx))
	if now := kernelState(ctx, t, a); now != foreign {
		t.Errorf("a restart changed:%s", lineDiff(foreign, now))
	}
}
