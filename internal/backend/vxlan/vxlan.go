// Package vxlan carries pod traffic between nodes in VXLAN (RFC 7348), one static tunnel end per node
// and family.
//
//   - A pod sends to a pod of another node: the subnet's route says "via the peer's VTEP, onlink". The
//     VTEP's address is the first one of the peer's subnet.
//   - The neighbour entry gives the VTEP's MAC, so the kernel never broadcasts for it.
//   - The FDB entry gives the node behind that MAC, so the frame leaves as UDP to that node.
//
// Take any of the three away and traffic to that subnet stops while the other two still look right.
package vxlan

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/weftnet/weft/internal/backend"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/identity"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/ranges"
	"github.com/weftnet/weft/internal/state"
)

// What encapsulation adds to an inner IP packet.
const (
	overhead4 = 14 + 8 + 8 + 20 // inner Ethernet, VXLAN, UDP, IPv4
	overhead6 = 14 + 8 + 8 + 40 // inner Ethernet, VXLAN, UDP, IPv6
)

// DefaultPort is what the kernel takes where the configuration leaves the choice to it
// (drivers/net/vxlan, parameter udp_port).
const DefaultPort = 8472

// VXLAN is the vxlan backend. The outer packets are of the same family as the inner ones.
type VXLAN struct {
	conf netconf.VXLAN
	dev  family.Pair[string]
}

var _ backend.Backend = VXLAN{}

// New returns the backend for a checked configuration, with devices of these names.
func New(conf netconf.VXLAN, dev family.Pair[string]) VXLAN {
	if conf.Port == 0 {
		conf.Port = DefaultPort
	}
	return VXLAN{conf, dev}
}

// Key returns the key of a configuration: vxlan/<VNI>/<port>, and /gbp behind it.
func Key(conf netconf.VXLAN) lease.Key {
	k := fmt.Sprintf("vxlan/%d/%d", conf.VNI, cmp.Or(conf.Port, DefaultPort))
	if conf.GBP {
		k += "/gbp"
	}
	return lease.Key(k)
}

// ParseKey returns the configuration that k stands for.
func ParseKey(k lease.Key) (netconf.VXLAN, bool) {
	var c netconf.VXLAN
	text, gbp := strings.CutSuffix(string(k), "/gbp")
	vni, port, _ := strings.Cut(strings.TrimPrefix(text, "vxlan/"), "/")
	c.VNI, _ = strconv.Atoi(vni)
	c.Port, _ = strconv.Atoi(port)
	c.GBP = gbp
	ok := c.VNI >= 0 && c.VNI < 1<<24 && c.Port > 0 && c.Port < 1<<16 && Key(c) == k
	return c, ok
}

// Key implements backend.Backend.
func (v VXLAN) Key() lease.Key { return Key(v.conf) }

// Type implements backend.Backend.
func (VXLAN) Type() string { return "vxlan" }

// Names returns the names that the original gives the devices of a VNI.
func Names(vni int) family.Pair[string] {
	n := strconv.Itoa(vni)
	return family.Pair[string]{V4: "flannel." + n, V6: "flannel-v6." + n}
}

// underlayMTU returns the MTU to subtract from: the configured one, unless the interface has less.
func (v VXLAN) underlayMTU(self backend.Self) int {
	if v.conf.MTU > 0 && v.conf.MTU < self.Uplink.MTU {
		return v.conf.MTU
	}
	return self.Uplink.MTU
}

// UnderlayMTU returns the MTU of the packets that a device sends out.
func UnderlayMTU(l state.Link) int {
	if l.VXLAN.Local.Is6() {
		return l.MTU + overhead6
	}
	return l.MTU + overhead4
}

// MTU implements backend.Backend. Pods have one MTU for both families, so the larger overhead counts.
func (v VXLAN) MTU(self backend.Self) int {
	if self.Network.V6.Enabled() {
		return v.underlayMTU(self) - overhead6
	}
	return v.underlayMTU(self) - overhead4
}

// data is what a node publishes. The original recovers its own MAC by cutting this text, so the order of
// the members and the absence of white space are part of the format.
type data struct {
	VNI     int    `json:"VNI"`
	VtepMAC string `json:"VtepMAC"`
}

func format(vni int, mac state.MAC) string {
	b, err := json.Marshal(data{VNI: vni, VtepMAC: mac.String()})
	if err != nil {
		panic(err) // an int and a hexadecimal string
	}
	return string(b)
}

// Parse reads the MAC of a VTEP from what its node publishes.
func Parse(text string) (state.MAC, error) {
	if text == "" {
		return state.MAC{}, errors.New("publishes no VTEP MAC")
	}
	var d data
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		return state.MAC{}, fmt.Errorf("backend data: %w", err)
	}
	hw, err := net.ParseMAC(d.VtepMAC)
	if err != nil || len(hw) != len(state.MAC{}) {
		return state.MAC{}, fmt.Errorf("VtepMAC: %q is not a MAC", d.VtepMAC)
	}
	mac := state.MAC(hw)
	if mac == (state.MAC{}) || mac[0]&1 != 0 { // I/G bit, IEEE 802-2014 8.2.2
		return state.MAC{}, fmt.Errorf("VtepMAC: %s is not a unicast address", mac)
	}
	return mac, nil
}

// Publish implements backend.Backend. An existing device keeps its MAC, since peers rely on it; then comes
// what was published before, be it for another device; then a MAC that follows from the node's identity, so
// that even a node without any memory has the same one after a reboot.
func (v VXLAN) Publish(self backend.Self, prior []lease.Receiver, links map[string]state.Link) lease.Receiver {
	r := lease.Receiver{Key: v.Key(), Type: v.Type()}
	for _, f := range family.All() {
		if !self.Network.Of(f).Enabled() {
			continue
		}
		name := v.dev.Of(f)
		mac := v.published(prior, f)
		if mac == (state.MAC{}) {
			mac = state.MAC(identity.MAC(self.Identity, Names(v.conf.VNI).Of(f)))
		}
		if l, ok := links[name]; ok && l.Kind == "vxlan" && l.VXLAN.VNI == v.conf.VNI && l.MAC != (state.MAC{}) {
			mac = l.MAC
		}
		*r.Data.Ref(f) = format(v.conf.VNI, mac)
	}
	return r
}

// published returns the MAC that peers know, with this key rather than with another.
func (v VXLAN) published(prior []lease.Receiver, f family.Family) (mac state.MAC) {
	for _, r := range prior {
		had, err := Parse(r.Data.Of(f))
		if err == nil && r.Type == v.Type() && (mac == (state.MAC{}) || r.Key == v.Key()) {
			mac = had
		}
	}
	return mac
}

// Receive implements backend.Backend: a device per family that holds the network address of the own
// subnet, which is the source of what the host itself sends to pods.
func (v VXLAN) Receive(self backend.Self, own lease.Lease, s *state.State) error {
	r, ok := own.Receiver(v.Key())
	if !ok {
		return errors.New("own lease has no vxlan receiver")
	}
	for _, f := range family.All() {
		if !own.Has(f) {
			continue
		}
		mac, err := Parse(r.Data.Of(f))
		if err != nil {
			return fmt.Errorf("own lease: %w", err)
		}
		name, overhead, prune := v.dev.Of(f), overhead4, family.Pair[ranges.List]{V4: self.Network.V4.Ranges()}
		if f == family.V6 {
			overhead, prune = overhead6, family.Pair[ranges.List]{V6: ranges.Of(netip.PrefixFrom(netip.IPv6Unspecified(), 0))}
		}
		s.Links[name] = state.Link{
			Kind: "vxlan", MTU: v.underlayMTU(self) - overhead, MAC: mac, Owner: self.Owner, Prune: prune,
			VXLAN: state.VXLAN{
				VNI: v.conf.VNI, Port: v.conf.Port, Parent: self.Uplink.Name, Local: self.Uplink.Addr.Of(f),
				GBP: v.conf.GBP, Learning: v.conf.Learning,
			},
		}
		addr := own.Subnet.Of(f).Masked().Addr()
		s.Addresses[state.Address{Dev: name, Prefix: netip.PrefixFrom(addr, addr.BitLen())}] = true
		s.Sysctls["net/ipv6/conf/"+name+"/accept_ra"] = "0"
		if f == family.V4 {
			// Loose, as a peer may send by the tunnel while we send to it directly; strict filtering would
			// drop what comes in on the way that we do not use ourselves (RFC 3704 2.4).
			s.Sysctls["net/ipv4/conf/"+name+"/rp_filter"] = "2"
		}
	}
	return nil
}

// Admit implements backend.Backend: frames are taken from anybody.
func (VXLAN) Admit(backend.Peer, *state.State) {}

// Speaks implements backend.Backend. The original publishes no port.
func (v VXLAN) Speaks(r lease.Receiver) bool {
	if r.Type != v.Type() {
		return false
	}
	usual := `{"VNI":` + strconv.Itoa(v.conf.VNI) + `,"VtepMAC":"` // there are thousands
	for _, f := range family.All() {
		var d data
		if text := r.Data.Of(f); text != "" && !strings.HasPrefix(text, usual) && json.Unmarshal([]byte(text), &d) == nil && d.VNI != v.conf.VNI {
			return false
		}
	}
	return true
}

// Reach implements backend.Backend.
func (v VXLAN) Reach(p backend.Peer, s *state.State) (backend.Way, state.Route, error) {
	mac, err := Parse(p.Data)
	if err != nil {
		return backend.Way{}, state.Route{}, err
	}
	dev := v.dev.Of(p.Family)
	if own, ok := s.Links[dev]; ok && own.MAC == mac {
		return backend.Way{}, state.Route{}, fmt.Errorf("publishes our own VTEP MAC %s", mac)
	}
	fdb := state.FDBKey{Dev: dev, MAC: mac}
	if other, ok := s.FDB[fdb]; ok && other != p.Public {
		return backend.Way{}, state.Route{}, fmt.Errorf("publishes VTEP MAC %s, which %s has already", mac, other)
	}
	vtep := p.Subnet.Masked().Addr()
	s.Neighbours[state.NeighbourKey{Dev: dev, Addr: vtep}] = mac
	s.FDB[fdb] = p.Public
	route := state.Route{Type: state.Unicast, Via: vtep, Dev: dev, OnLink: true, Protocol: state.Protocol}
	return backend.Way{Key: v.Key(), Name: v.Type(), Dev: dev, Via: p.Public}, route, nil
}
