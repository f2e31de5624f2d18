// Package udp carries pod traffic between nodes as bare IP packets in UDP datagrams, through a TUN device
// and this process.
//
//   - One route per range leads the whole pod network to the device; subnets of this node have more specific ones.
//   - The tunnel (internal/udptun) looks the destination up among the peers' subnets and sends the packet to
//     the node that holds it; where nobody does, it answers with ICMP.
//   - Whatever comes in goes to the device, and from there by the node's own routes.
//
// Take the peer's subnet away and its pods get "network unreachable" at once, not a timeout.
package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/weftnet/weft/internal/backend"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/ranges"
	"github.com/weftnet/weft/internal/state"
)

const (
	// Device is the name that the original's pattern flannel%d comes to where nothing else has it.
	Device = "flannel0"

	overhead4 = 20 + 8 // IPv4, UDP
	overhead6 = 40 + 8 // IPv6, UDP
)

// UDP is the udp backend. The outer packets are of the same family as the inner ones; the original has
// only IPv4 and does not look at the other's socket.
type UDP struct {
	conf netconf.UDP
	dev  string
	wide bool
}

var _ backend.Backend = UDP{}

// New returns the backend for a checked configuration, with a device of this name. With wide, one route
// leads all pods of other nodes to it.
func New(conf netconf.UDP, dev string, wide bool) UDP { return UDP{conf, dev, wide} }

// Key returns the key of a configuration: udp/<port>.
func Key(conf netconf.UDP) lease.Key { return lease.Key("udp/" + strconv.Itoa(conf.Port)) }

// ParseKey returns the configuration that k stands for.
func ParseKey(k lease.Key) (netconf.UDP, bool) {
	port, _ := strings.CutPrefix(string(k), "udp/")
	n, _ := strconv.Atoi(port)
	c := netconf.UDP{Port: n}
	return c, n > 0 && n < 1<<16 && Key(c) == k
}

// Key implements backend.Backend.
func (u UDP) Key() lease.Key { return Key(u.conf) }

// Type implements backend.Backend: leases of this backend carry no type.
func (UDP) Type() string { return "" }

// Wide says whether one route leads all pods of other nodes to the device.
func (u UDP) Wide() bool { return u.wide }

// MTU implements backend.Backend. Pods have one MTU for both families, so the larger overhead counts.
func (UDP) MTU(self backend.Self) int {
	if self.Network.V6.Enabled() {
		return self.Uplink.MTU - overhead6
	}
	return self.Uplink.MTU - overhead4
}

// Publish implements backend.Backend: the public address is all that peers need.
func (u UDP) Publish(backend.Self, []lease.Receiver, map[string]state.Link) lease.Receiver {
	return lease.Receiver{Key: u.Key()}
}

// Receive implements backend.Backend: the device with the network address of the own subnet, which is the
// source of what the host itself sends to pods, and the route to all pods.
func (u UDP) Receive(self backend.Self, own lease.Lease, s *state.State) error {
	t := state.Tunnel{Port: u.conf.Port, Queues: u.conf.Queues, Off: off(u.conf)}
	link := state.Link{Kind: "tun", MTU: u.MTU(self), Owner: self.Owner}
	for _, f := range family.All() {
		if !own.Has(f) {
			continue
		}
		local := self.Uplink.Addr.Of(f)
		if !local.IsValid() {
			return fmt.Errorf("udp: %s has no %s address to receive on", self.Uplink.Name, f)
		}
		addr := own.Subnet.Of(f).Masked().Addr()
		*t.Local.Ref(f), *t.Addr.Ref(f) = local, addr
		s.Addresses[state.Address{Dev: u.dev, Prefix: netip.PrefixFrom(addr, addr.BitLen())}] = true
		if u.wide {
			for n := range self.Network.Of(f).Ranges().All() {
				s.Routes[wideRoute(n)] = u.route()
			}
		}
		if f == family.V4 {
			link.Prune.V4 = self.Network.V4.Ranges()
			// The tunnel answers from the device's own address, which comes in from outside.
			s.Sysctls["net/ipv4/conf/"+u.dev+"/accept_local"] = "1"
			// Loose, as with any tunnel; see vxlan.
			s.Sysctls["net/ipv4/conf/"+u.dev+"/rp_filter"] = "2"
		} else {
			link.Prune.V6 = ranges.Of(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
		}
	}
	s.Sysctls["net/ipv6/conf/"+u.dev+"/accept_ra"] = "0"
	s.Links[u.dev] = link
	s.Tunnels[u.dev] = t
	return nil
}

// wideRoute returns the key of the route to all pods. The device outlives this process. Should the original run
// here next, it makes a device of its own and, at metric 0, a route that takes the place of nothing and comes
// before this one; at the same metric it would take this one for its own.
func wideRoute(network netip.Prefix) state.RouteKey {
	k := backend.Route(network)
	k.Metric = max(k.Metric, 1)
	return k
}

func off(c netconf.UDP) state.TunnelOff {
	return state.TunnelOff{
		Checksum: c.DisableChecksumOffload, TSO: c.DisableTSO, USO: c.DisableUSO,
		Segment: c.DisableUDPSegment, GRO: c.DisableUDPGRO, SourceCheck: c.DisableSourceCheck,
	}
}

// route leads to the device.
func (u UDP) route() state.Route {
	return state.Route{Type: state.Unicast, Dev: u.dev, Protocol: state.Protocol}
}

// Admit implements backend.Backend: the tunnel takes packets from nodes that it knows only, and of their subnets.
func (u UDP) Admit(p backend.Peer, s *state.State) {
	if s.Tunnels[u.dev].Local.Of(p.Family).IsValid() {
		s.TunnelPeers[state.TunnelKey{Dev: u.dev, Subnet: p.Subnet}] = p.Public
	}
}

// Speaks implements backend.Backend. The original publishes no port.
func (u UDP) Speaks(r lease.Receiver) bool { return r.Type == u.Type() }

// Reach implements backend.Backend.
func (u UDP) Reach(p backend.Peer, s *state.State) (backend.Way, state.Route, error) {
	if !s.Tunnels[u.dev].Local.Of(p.Family).IsValid() {
		return backend.Way{}, state.Route{}, errors.New("no address of this family to send from")
	}
	u.Admit(p, s)
	return backend.Way{Key: u.Key(), Name: "udp", Dev: u.dev, Via: p.Public}, u.route(), nil
}
