// Package netconf turns the network configuration that operators write (net-conf.json, or the value of
// <prefix>/config in etcd) into a Config with defaults filled in and everything checked. Nobody after
// it asks whether a value is sane.
package netconf

import (
	"time"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/secret"
)

// A Config is a checked network configuration.
type Config struct {
	Network  family.Pair[lease.Network] // zero: family off
	NFTables bool                       // EnableNFTables
	NoProbes bool                       // DisableProbes: ways to peers are used without a probe
	Backend  Backend
}

// A Backend is one backend's part of the configuration: one of the types below. All of them are
// comparable.
type Backend interface {
	// Type returns the name under which the configuration and peers know the backend.
	Type() string
}

// VXLAN configures the vxlan backend.
type VXLAN struct {
	VNI           int
	Port          int // UDP port; 0 leaves the choice to the kernel, which takes 8472
	MTU           int // of the underlay; 0: that of the external interface
	GBP           bool
	Learning      bool
	DirectRouting bool
}

// HostGW configures the host-gw backend.
type HostGW struct{}

// Alloc configures the alloc backend: a lease and subnet.env, no packets.
type Alloc struct{}

// UDP configures the udp backend. Beside Port, which the original has too, the zero value is right unless
// a kernel or a network card has a fault; what is disabled costs speed and nothing else.
type UDP struct {
	Port   int
	Queues int // of the device, and sockets per family; 0: as many as CPUs, four at most

	DisableChecksumOffload bool // checksums across the device; without it no TSO and no USO
	DisableTSO             bool // TCP across the device in packets of up to 64 KiB
	DisableUSO             bool // UDP likewise (Linux 6.2)
	DisableUDPSegment      bool // many datagrams in one send
	DisableUDPGRO          bool // many datagrams in one receive
	DisableSourceCheck     bool // take packets from peers whatever their source: needed where peers route for others
}

// WireGuard configures the wireguard backend.
type WireGuard struct {
	ListenPort, ListenPortV6 int
	MTU                      int // of the underlay; 0: that of the external interface
	PSK                      secret.Text
	Keepalive                time.Duration // 0: off
	Mode                     string        // separate, auto, ipv4, ipv6
}

// IPIP configures the ipip backend.
type IPIP struct{ DirectRouting bool }

// IPsec configures the ipsec backend.
type IPsec struct {
	PSK         secret.Text
	UDPEncap    bool
	ESPProposal string
}

// Extension configures the extension backend. An empty command is none.
type Extension struct {
	PreStartupCommand, PostStartupCommand, SubnetAddCommand, SubnetRemoveCommand string
}

// TencentVPC configures the tencent-vpc backend.
type TencentVPC struct{ AccessKeyID, AccessKeySecret secret.Text }

func (VXLAN) Type() string      { return "vxlan" }
func (HostGW) Type() string     { return "host-gw" }
func (Alloc) Type() string      { return "alloc" }
func (UDP) Type() string        { return "udp" }
func (WireGuard) Type() string  { return "wireguard" }
func (IPIP) Type() string       { return "ipip" }
func (IPsec) Type() string      { return "ipsec" }
func (Extension) Type() string  { return "extension" }
func (TencentVPC) Type() string { return "tencent-vpc" }
