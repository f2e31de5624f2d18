// Package plan decides what one node should have: leases and configuration in, one desired state out. It
// opens nothing, reads no clock and remembers nothing, so that the agent, weft plan and the tests
// all get the same answer from the same input.
package plan

import (
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/weftnet/weft/internal/backend"
	"github.com/weftnet/weft/internal/backend/hostgw"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/firewall"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/state"
	"github.com/weftnet/weft/internal/subnetfile"
)

// BlackholeMetric keeps the blackhole route behind a bridge's connected route, which has metric 0 or 256.
const BlackholeMetric = 1 << 20

// Input is all that a plan follows from.
type Input struct {
	Config  netconf.Config
	Self    backend.Self
	Own     lease.Lease   // the lease that this node holds
	Leases  []lease.Lease // all leases, in any order; the own one may be among them
	Direct  map[netip.Addr]string
	Options Options

	Host     Host
	Complete bool // Leases are all there are
	PodMTU   int  // the largest that a pod that runs here may have been given; 0: not known

	// Held is the address that a device of ours has had in this boot, by family; zero: none. The host's own
	// connections to pods of other nodes have it as source for as long as they last.
	Held family.Pair[netip.Addr]

	Probe   bool                       // ways are probed, and used when that has succeeded
	Health  map[WayID]Health           // what probes say; absent: Unknown
	Trouble map[WayID]string           // what probes met, for people
	Ways    map[netip.Prefix]lease.Key // what was in use last, by the peer's subnet
	Open    []lease.Key                // what was open last
	Recent  map[lease.Key]bool         // what reached some peer not long ago
}

// Host is what the plan has to know of this node's kernel.
type Host struct {
	Devices map[string]state.Link // VXLAN and TUN devices, by name
	Tunnels map[string]int        // ports of the tunnels that this process carries, by the name of the device
	Rename  bool                  // a device can be renamed while it is up (Linux 6.2)

	// UplinkRA is the external interface's accept_ra sysctl, empty if it has none. A host that forwards
	// ignores router advertisements unless it is 2 (Documentation/networking/ip-sysctl.rst).
	UplinkRA string

	StrictUplink bool   // reverse paths are filtered strictly on the external interface
	FilterBefore string // its UplinkFilter before we changed it, empty if we have not
}

// has says whether this node takes part in family f now: the host may have lost the address of a family of its
// lease, or not have it yet.
func (in Input) has(f family.Family) bool { return in.Own.Has(f) && in.Self.Network.Of(f).Enabled() }

// Options are the flags that a plan depends on.
type Options struct {
	Masquerade     bool
	RandomFully    bool
	ForwardRules   bool
	BlackholeRoute bool
}

// A Plan is what the node should have.
type Plan struct {
	State    state.State
	Firewall firewall.Policy
	Subnet   subnetfile.File
	Paths    []Path // one per peer and family, in order of subnets
	Probes   []Probe
	Offer    Offer                   // what to publish once the rest is applied
	Devices  map[string]lease.Key    // what the devices are for
	Open     []lease.Key             // what is open then, for the next plan; as before while the peers are not known
	Held     family.Pair[netip.Addr] // see Input, once the plan is applied
}

// A Path says how packets reach one peer, or why they do not.
type Path struct {
	Node   string        `json:"node,omitempty"`
	Family family.Family `json:"family"`
	Subnet netip.Prefix  `json:"subnet"`
	Public netip.Addr    `json:"public"`
	Way    *backend.Way  `json:"way,omitempty"`    // nil: no way
	Reason string        `json:"reason,omitempty"` // why there is none, or why not a better one

	Possible []lease.Key `json:"possible,omitempty"` // ways that both ends have, the preferred one first
	Since    time.Time   `json:"since,omitzero"`     // when the way came into use; the plan does not know it
}

// UsesDirect says whether the plan depends on which peers are on-link.
func UsesDirect(in Input) bool {
	in, err := complete(in)
	return err == nil && slices.Contains(openKeys(in), hostgw.Key)
}

// complete gives an own lease from before its time what it should say.
func complete(in Input) (Input, error) {
	if !in.Own.Original() && len(in.Own.Send) > 0 {
		return in, nil
	}
	o, err := First(in.Config, in.Self, in.Own, in.Host)
	in.Own.Receive, in.Own.Send, in.Own.Serial = o.Receive, o.Send, o.Serial
	return in, err
}

// openKeys returns what the node has open: what it should publish, what it has published, and what it had open,
// until it has seen in the store what it published last: then it has seen too who sends on what, and whoever
// comes later has seen what the node receives on. The preferred one is first.
func openKeys(in Input) []lease.Key {
	t, _, _ := turning(in, func(lease.Key) bool { return true })
	receive, send := t.next()
	return known(in, slices.Concat(send, receive, in.Own.Send, keysOf(in.Own), t.closing))
}

// Build returns the plan. An error means that the node itself cannot take part; a peer that cannot be
// reached only shows in its Path.
func Build(in Input) (Plan, error) {
	in, err := complete(in)
	if err != nil {
		return Plan{}, err
	}
	if _, _, err := turning(in, func(lease.Key) bool { return true }); err != nil {
		return Plan{}, err
	}
	p := Plan{State: state.New(), Open: openKeys(in)}
	p.State.Routes = make(map[state.RouteKey]state.Route, len(in.Leases))
	backends, devices, err := open(in, p.Open)
	if err != nil {
		return Plan{}, err
	}
	p.Devices = devices
	if !in.Complete { // what the kernel has from before may be needed by peers that are not known yet
		p.Open = in.Open
	}
	r := reacher{in: in, send: sendable(in), s: &p.State, backends: map[lease.Key]backend.Backend{}}
	own, mtu := in.Own, in.Self.Uplink.MTU
	own.Receive = nil
	for _, f := range family.All() {
		if !in.has(f) {
			*own.Subnet.Ref(f), *own.Public.Ref(f) = netip.Prefix{}, netip.Addr{}
		}
	}
	for _, b := range backends {
		r.backends[b.Key()] = b
		own.Receive = append(own.Receive, published(b, in))
		mtu = min(mtu, b.MTU(in.Self))
	}
	for _, b := range backends {
		if err := b.Receive(in.Self, own, &p.State); err != nil {
			return Plan{}, err
		}
	}
	r.send = slices.DeleteFunc(slices.Clone(r.send), func(k lease.Key) bool { return r.backends[k] == nil })
	p.Paths, p.Probes = r.reach(), r.probes
	p.Offer = offered(in, own, p.Paths)
	p.Held = hold(in, &p.State)
	host(in, &p.State)
	loosen(in, backends, &p.State)
	p.Firewall = policy(in)
	p.Firewall.Clamp = in.PodMTU > mtu // pods of before do not know; the route does
	p.Subnet = subnet(in, mtu)
	return p, nil
}

// published returns what to publish for b: what peers know already, and what they do not.
func published(b backend.Backend, in Input) lease.Receiver {
	r := b.Publish(in.Self, in.Own.Receive, in.Host.Devices)
	had, _ := in.Own.Receiver(b.Key())
	for _, f := range family.All() {
		if text := had.Data.Of(f); text != "" && r.Data.Of(f) != "" {
			*r.Data.Ref(f) = text
		}
	}
	return r
}

// offered returns what to publish once the plan is applied.
func offered(in Input, own lease.Lease, paths []Path) Offer {
	t, refused, _ := turning(in, func(k lease.Key) bool {
		return !in.Complete || in.Recent[k] || slices.ContainsFunc(paths, func(p Path) bool { return p.Way != nil && p.Way.Key == k })
	})
	receive, send := t.next()
	o := Offer{Send: send}
	for _, k := range receive {
		if r, ok := own.Receiver(k); ok {
			o.Receive = append(o.Receive, r)
		}
	}
	o.Kept = kept(in, t, o, refused)
	return o.after(in.Own)
}

// hold keeps the own address local when the last device that had it is let go, and returns what has been held from now
// on. No new connection takes it as source; those that have it live on. After a reboot there are none.
func hold(in Input, s *state.State) family.Pair[netip.Addr] {
	held := in.Held
	for _, f := range family.All() {
		if !in.Own.Has(f) {
			continue
		}
		a := in.Own.Subnet.Of(f).Masked().Addr()
		switch {
		case onDevice(s, a):
			*held.Ref(f) = a
		case held.Of(f) == a:
			s.Locals[a] = true
		}
	}
	return held
}

// onDevice says whether a is on one of our devices.
func onDevice(s *state.State, a netip.Addr) bool {
	for have := range s.Addresses {
		if have.Prefix.Addr() == a {
			return true
		}
	}
	return false
}

// loosen lets packets of pods come in directly while we send to their node by another way: strict reverse path
// filtering drops those (RFC 3704 2.4). When that is over, filtering is as it was.
func loosen(in Input, open []backend.Backend, s *state.State) {
	key := UplinkFilter(in.Self.Uplink.Name)
	direct := slices.ContainsFunc(open, func(b backend.Backend) bool { return b.Key() == hostgw.Key })
	// The original does not say whether it was started with DirectRouting.
	original := slices.ContainsFunc(in.Leases, func(l lease.Lease) bool { return l.Original() && !l.SameSubnets(in.Own) })
	switch {
	case !in.has(family.V4):
	case in.Host.FilterBefore != "" && (original || !in.Complete):
		s.Sysctls[key] = "2"
	case direct && len(open) > 1:
		if in.Host.StrictUplink || in.Host.FilterBefore != "" {
			s.Sysctls[key] = "2"
		}
	case in.Host.FilterBefore != "":
		s.Sysctls[key] = in.Host.FilterBefore
	}
}

// UplinkFilter is the tunable that says how reverse paths are filtered on a device.
func UplinkFilter(dev string) string { return "net/ipv4/conf/" + dev + "/rp_filter" }

// printable returns a peer's word such that it does nothing to the terminal that shows it.
func printable(s string) string {
	q := strconv.QuoteToASCII(s[:min(len(s), 32)])
	if q == `"`+s+`"` {
		return s
	}
	return q
}

// host adds what does not depend on peers: forwarding, and the blackhole route.
func host(in Input, s *state.State) {
	if (in.Config.Backend != netconf.Alloc{}) {
		if in.has(family.V4) {
			s.Sysctls["net/ipv4/ip_forward"] = "1"
		}
		if in.has(family.V6) {
			s.Sysctls["net/ipv6/conf/all/forwarding"] = "1"
			if in.Host.UplinkRA == "1" || in.Host.UplinkRA == "2" {
				s.Sysctls["net/ipv6/conf/"+in.Self.Uplink.Name+"/accept_ra"] = "2"
			}
		}
	}
	if !in.Options.BlackholeRoute {
		return
	}
	for _, f := range family.All() {
		if in.has(f) {
			s.Routes[state.RouteKey{Dst: in.Own.Subnet.Of(f), Metric: BlackholeMetric}] =
				state.Route{Type: state.Blackhole, Protocol: state.Protocol}
		}
	}
}

func policy(in Input) firewall.Policy {
	p := firewall.Policy{
		Mode:        firewall.IPTables,
		Masquerade:  in.Options.Masquerade,
		Forward:     in.Options.ForwardRules,
		RandomFully: in.Options.RandomFully,
		Subnet:      in.Own.Subnet,
	}
	if in.Config.NFTables {
		p.Mode = firewall.NFTables
	}
	for _, f := range family.All() {
		if in.has(f) {
			*p.Network.Ref(f) = in.Config.Network.Of(f).Ranges().Prefixes()
		}
	}
	return p
}

func subnet(in Input, mtu int) subnetfile.File {
	f := subnetfile.File{Subnet: in.Own.Subnet, MTU: mtu, IPMasq: in.Options.Masquerade}
	for _, fam := range family.All() {
		if in.has(fam) {
			*f.Network.Ref(fam) = in.Config.Network.Of(fam).Ranges()
		}
	}
	return f
}
