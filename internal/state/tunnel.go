package state

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/internal/family"
)

// A Tunnel is a data plane in this process: a TUN device on one side, UDP sockets on the other, and bare IP
// packets in the datagrams (interop section 7). It is comparable.
type Tunnel struct {
	Port   int                     `json:"port"`   // of the sockets and of every peer's
	Local  family.Pair[netip.Addr] `json:"local"`  // underlay addresses to bind to; zero: family off
	Addr   family.Pair[netip.Addr] `json:"addr"`   // the device's own, from which ICMP errors come
	Queues int                     `json:"queues"` // of the device, and sockets per family; 0: as many as CPUs, four at most
	Off    TunnelOff               `json:"off"`
}

// TunnelOff says what a tunnel does without.
type TunnelOff struct {
	Checksum    bool `json:"checksum,omitempty"`    // the device takes and gives unfinished checksums; without it no TSO and USO
	TSO         bool `json:"tso,omitempty"`         // TCP crosses the device in packets of up to 64 KiB
	USO         bool `json:"uso,omitempty"`         // so does UDP (Linux 6.2)
	Segment     bool `json:"segment,omitempty"`     // UDP_SEGMENT: many datagrams in one send
	GRO         bool `json:"gro,omitempty"`         // UDP_GRO: many datagrams in one receive
	SourceCheck bool `json:"sourceCheck,omitempty"` // a peer may send only from its own subnets
}

// A TunnelKey identifies what a tunnel carries to one peer.
type TunnelKey struct {
	Dev    string
	Subnet netip.Prefix
}

// Compare orders by device, then subnet.
func (a TunnelKey) Compare(b TunnelKey) int {
	return cmp.Or(strings.Compare(a.Dev, b.Dev), a.Subnet.Compare(b.Subnet))
}

func (a TunnelKey) String() string { return a.Subnet.String() + " dev " + a.Dev }

func (t Tunnel) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "port %d", t.Port)
	for _, f := range family.All() {
		if a := t.Local.Of(f); a.IsValid() {
			fmt.Fprintf(&b, " local %s", a)
		}
	}
	if t.Queues > 0 {
		fmt.Fprintf(&b, " queues %d", t.Queues)
	}
	for _, o := range []struct {
		name string
		off  bool
	}{
		{"checksum", t.Off.Checksum}, {"tso", t.Off.TSO}, {"uso", t.Off.USO}, {"segment", t.Off.Segment},
		{"gro", t.Off.GRO}, {"source-check", t.Off.SourceCheck},
	} {
		if o.off {
			b.WriteString(" no-" + o.name)
		}
	}
	return b.String()
}
