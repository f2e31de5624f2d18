package cleanup

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/backend"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/firewall"
	"github.com/weftnet/weft/internal/kernel"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/plan"
	"github.com/weftnet/weft/internal/snapshot"
	"github.com/weftnet/weft/internal/state"
	"github.com/weftnet/weft/internal/subnetfile"
	"github.com/weftnet/weft/internal/uplink"
)

const owner = "weft:/run/flannel/subnet.env"

// look is everything about the host that the network may have touched.
func look(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, c := range []string{
		"ip -o link", "ip -o addr", "ip route show table all", "ip -6 route show table all", "ip neigh show nud permanent",
		"nft list ruleset",
	} {
		args := strings.Fields(c)
		fmt.Fprintf(&b, "# %s\n", c)
		for line := range strings.Lines(netnstest.Command(t, args[0], args[1:]...)) {
			if !strings.Contains(line, "fe80:") && !strings.Contains(line, "multicast ff00::/8") { // come and go by themselves
				b.WriteString(line)
			}
		}
	}
	for _, s := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/eth0/rp_filter"} {
		raw, err := os.ReadFile("/proc/sys/" + s)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s = %s", s, raw)
	}
	return b.String()
}

// attach does what an agent on this host does: kernel, rules, files.
func attach(t *testing.T, dir string, c netconf.Config, raw string) Options {
	t.Helper()
	own := lease.Lease{
		Subnet: family.Pair[netip.Prefix]{V4: netip.MustParsePrefix("10.244.1.0/24"), V6: netip.MustParsePrefix("fd24:0:0:1::/64")},
		Public: family.Pair[netip.Addr]{V4: netip.MustParseAddr("10.77.0.1"), V6: netip.MustParseAddr("fd77::1")},
	}
	self := backend.Self{Identity: "0123456789abcdef", Owner: owner, Network: c.Network,
		Uplink: uplink.Uplink{Name: "eth0", MTU: 1500, Addr: own.Public, Public: own.Public}}
	o, err := plan.First(c, self, lease.Lease{}, plan.Host{})
	if err != nil {
		t.Fatal(err)
	}
	own.Receive, own.Send = o.Receive, o.Send
	other := self
	other.Identity = "fedcba9876543210"
	peer := lease.Lease{
		Subnet: family.Pair[netip.Prefix]{V4: netip.MustParsePrefix("10.244.2.0/24"), V6: netip.MustParsePrefix("fd24:0:0:2::/64")},
		Public: family.Pair[netip.Addr]{V4: netip.MustParseAddr("10.77.0.2"), V6: netip.MustParseAddr("fd77::2")},
	}
	if o, err = plan.First(c, other, lease.Lease{}, plan.Host{}); err != nil {
		t.Fatal(err)
	}
	peer.Receive, peer.Send = o.Receive, o.Send
	held := family.Pair[netip.Addr]{V4: own.Subnet.V4.Addr(), V6: own.Subnet.V6.Addr()} // by an earlier tunnel
	p, err := plan.Build(plan.Input{Config: c, Self: self, Own: own, Leases: []lease.Lease{peer}, Held: held,
		Options: plan.Options{Masquerade: true, ForwardRules: true, RandomFully: true, BlackholeRoute: true}})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	k, err := kernel.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	rep, err := k.Apply(context.Background(), p.State, kernel.Scope{Owner: owner, Networks: slices.Concat(c.Network.V4.Ranges().Prefixes(), c.Network.V6.Ranges().Prefixes()), Uplink: "eth0", Complete: true})
	if err != nil || rep.Err() != nil {
		t.Fatal(err, rep.Err())
	}
	f, err := firewall.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Apply(context.Background(), p.Firewall); err != nil {
		t.Fatal(err)
	}
	opts := Options{
		Owner: owner, SubnetFile: filepath.Join(dir, "run", "subnet.env"), SnapshotFile: filepath.Join(dir, "lib", "snapshot.json"),
		CNIConfDir: filepath.Join(dir, "net.d"), CNIStateDir: filepath.Join(dir, "cni"), CNIBinDir: filepath.Join(dir, "bin"),
	}
	if _, err := subnetfile.Write(opts.SubnetFile, p.Subnet); err != nil {
		t.Fatal(err)
	}
	if _, err := snapshot.Write(opts.SnapshotFile, snapshot.Snapshot{
		SavedAt: time.Now(), Identity: self.Identity, Config: json.RawMessage(raw), Self: own, Peers: []lease.Lease{peer}, Sysctls: rep.Sysctls,
		Settings: json.RawMessage(`{"Uplink":{"Name":"eth0"}}`),
	}); err != nil {
		t.Fatal(err)
	}
	return opts
}

// A host is after cleanup what it was before it had the network, in every form that the network takes; what is
// foreign survives; a dry run names the same and does nothing; and a second run finds nothing.
func TestCleanupLeavesTheHostAsItWas(t *testing.T) {
	netnstest.Need(t, "nft", "nftables")
	for name, raw := range map[string]string{
		"vxlan, iptables": `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd24::/48","Backend":{"Type":"vxlan"}}`,
		"vxlan, nftables": `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd24::/48","EnableNFTables":true,"Backend":{"Type":"vxlan","VNI":7,"Port":4789}}`,
		"host-gw":         `{"Network":"10.244.0.0/16","AdditionalNetworks":["10.248.0.0/16"],"EnableIPv6":true,"IPv6Network":"fd24::/48","EnableNFTables":true,"Backend":{"Type":"host-gw"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			netnstest.Run(t, func(t *testing.T) {
				for _, c := range []string{
					"ip link add eth0 type veth peer name peer0", "ip link set eth0 up", "ip link set peer0 up",
					"ip addr add 10.77.0.1/24 dev eth0", "ip addr add fd77::1/64 dev eth0 nodad",
					// Somebody else's: a tunnel, a route beside the pods' network, a table, a bridge.
					"ip link add vx9 type vxlan id 9 dstport 9999 local 10.77.0.1", "ip link set vx9 up", "ip route add 10.9.0.0/24 via 10.77.0.9",
					"nft add table ip mine", "nft add chain ip mine c { type filter hook forward priority 5 ; }", "ip link add br9 type bridge",
				} {
					args := strings.Fields(c)
					netnstest.Command(t, args[0], args[1:]...)
				}
				for _, c := range []struct{ command, shows string }{ // the kernel sees to it in its own time
					{"ip -o link show dev peer0", " state UP "}, {"ip -o link show dev eth0", " state UP "}, {"ip -6 route show table local", "local fd77::1 "},
				} {
					args := strings.Fields(c.command)
					for end := time.Now().Add(time.Minute); !strings.Contains(netnstest.Command(t, args[0], args[1:]...), c.shows); time.Sleep(time.Millisecond) {
						if time.Now().After(end) {
							t.Fatalf("%s: no %q", c.command, c.shows)
						}
					}
				}
				before := look(t)
				c, _, err := netconf.Parse([]byte(raw), netconf.Etcd)
				if err != nil {
					t.Fatal(err)
				}
				opts := attach(t, t.TempDir(), c, raw)
				for n := range c.Network.V4.Ranges().All() { // of the original, to a node on the segment
					netnstest.Command(t, "ip", "route", "add", netip.PrefixFrom(n.Addr(), 24).String(), "via", "10.77.0.9")
				}
				for _, c := range []string{"nft add table ip weft-cni", "nft add table bridge weft-cni", "nft add chain ip weft-cni c"} { // of the plugin
					args := strings.Fields(c)
					netnstest.Command(t, args[0], args[1:]...)
				}
				installed := look(t)

				log := slog.New(slog.DiscardHandler)
				opts.DryRun = true
				planned, err := Run(context.Background(), opts, log)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(installed, look(t)); diff != "" {
					t.Errorf("the dry run changed the host (-before +after):\n%s", diff)
				}
				opts.DryRun = false
				done, err := Run(context.Background(), opts, log)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(planned, done); diff != "" {
					t.Errorf("planned and done (-planned +done):\n%s", diff)
				}
				if diff := cmp.Diff(before, look(t)); diff != "" {
					t.Errorf("the host (-before +after):\n%s", diff)
				}
				if again, err := Run(context.Background(), opts, log); err != nil || len(kinds(again)) != 0 {
					t.Errorf("a second run found %v, %v", again, err)
				}
			})
		})
	}
}

func kinds(cs []state.Change) []string {
	var ks []string
	for _, c := range cs {
		ks = append(ks, c.Kind+" "+c.Object)
	}
	return ks
}

func TestCleanupWaitsForPods(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		for _, c := range []string{
			"ip link add cni0 type bridge", "ip addr add 10.244.1.1/24 dev cni0", "ip link add v0 type veth peer name v1", "ip link set v0 master cni0",
		} {
			args := strings.Fields(c)
			netnstest.Command(t, args[0], args[1:]...)
		}
		dir := t.TempDir()
		opts := Options{SubnetFile: filepath.Join(dir, "subnet.env"), SnapshotFile: filepath.Join(dir, "snapshot.json"),
			CNIConfDir: dir, CNIStateDir: dir, CNIBinDir: dir, Networks: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}
		log := slog.New(slog.DiscardHandler)
		if _, err := Run(context.Background(), opts, log); err == nil || !strings.Contains(err.Error(), "--force") {
			t.Fatalf("error %v", err)
		}
		opts.Force = true
		if _, err := Run(context.Background(), opts, log); err != nil {
			t.Fatal(err)
		}
		if out := netnstest.Command(t, "ip", "-o", "link"); strings.Contains(out, "cni0") {
			t.Errorf("the bridge is left:\n%s", out)
		}
	})
}
