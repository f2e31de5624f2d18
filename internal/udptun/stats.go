package udptun

import (
	"net/netip"
	"sync/atomic"
)

// A drop is a reason for which a packet is not carried.
type drop int

// The reasons. out is from pods to the wire, in is from the wire to pods.
const (
	outNoPeer    drop = iota // no peer holds the destination; answered with ICMP
	outTTL                   // TTL or hop limit is used up
	outMulticast             // multicast or broadcast, which a network without segments does not carry
	outMalformed             // what the kernel gave is no IP packet, or none that this version can segment
	outTooBig                // larger than the path takes; answered with ICMP where the sender asked for it
	outRefused               // the kernel refused to send it
	inUnknown                // the sender is no peer
	inSpoofed                // the source is not in a subnet of the peer that sent it
	inShort                  // fewer bytes than an IP header has
	inMalformed              // no IP packet of the family that it came in, or cut off
	inTTL                    // TTL or hop limit is used up
	inMulticast              // the destination is multicast or broadcast
	inRefused                // the kernel refused to take it
	drops                    // how many reasons there are
)

func (d drop) String() string {
	return [drops]string{
		"out_no_peer", "out_ttl", "out_multicast", "out_malformed", "out_too_big", "out_refused",
		"in_unknown_sender", "in_spoofed", "in_short", "in_malformed", "in_ttl", "in_multicast", "in_refused",
	}[d]
}

// counters belong to an engine and outlive its workers.
type counters struct {
	drops                          [drops]atomic.Uint64
	reads, sends, receives, writes atomic.Uint64
	icmp                           atomic.Uint64
}

func (c *counters) drop(d drop) { c.drops[d].Add(1) }

func (c *counters) dropN(d drop, n int) { c.drops[d].Add(uint64(n)) }

// Stats are counts since the process started.
type Stats struct {
	Dev   string            `json:"dev"`
	Use   []string          `json:"use"` // the offloads in use
	Drops map[string]uint64 `json:"drops"`

	// How many system calls moved packets: each moves many when traffic is heavy.
	Reads    uint64 `json:"reads"`    // from the device
	Sends    uint64 `json:"sends"`    // to the wire
	Receives uint64 `json:"receives"` // from the wire
	Writes   uint64 `json:"writes"`   // to the device
	ICMP     uint64 `json:"icmp"`     // errors sent to pods

	Peers []PeerStats `json:"peers"` // in order of addresses
}

// PeerStats are the packets to and from one peer, as they are on the wire. Bytes are those of inner packets.
type PeerStats struct {
	Addr      netip.Addr `json:"addr"`
	TxPackets uint64     `json:"txPackets"`
	TxBytes   uint64     `json:"txBytes"`
	RxPackets uint64     `json:"rxPackets"`
	RxBytes   uint64     `json:"rxBytes"`
	Spoofed   uint64     `json:"spoofed"`
	MaxPacket int        `json:"maxPacket,omitempty"` // what the path takes, where that is less than the device's MTU
}
