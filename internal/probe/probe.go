// Package probe tells which ways to peers carry packets.
//
// A probe is an ICMP echo that the peer's kernel answers: it works while the peer's agent is down, and with
// peers that run the original. As the packets see it:
//
//   - A request goes from the network address of our subnet to that of the peer's, over one particular
//     device, with whichever route the main table has to the peer over that device, however bad its metric.
//   - The peer's kernel answers over the way that the peer uses towards us at the moment. An echo therefore
//     proves our direction of the way under probe, and the peer's direction of the way in use.
//   - So when both ends sit on a way that is dead, neither can prove another one. That is what Health.Try is
//     for: it names a way to use on trial until one is good.
//   - While a peer has a way on trial, requests to it are calls, known by their identifier. If the peer's agent calls
//     us too, it answers, over all of its ways: so a way that works is found also where neither end leaves the way
//     in use. That goes on until the peer's kernel answers. Who calls nobody hears no calls.
//
// The decisions are pure: way.go (one target), group.go (the targets of a peer), schedule.go (pace). They
// open nothing and read no clock.
package probe

import (
	"net/netip"
	"time"

	"github.com/weftnet/weft/internal/lease"
)

// An ID names a way to a peer.
type ID struct {
	Subnet netip.Prefix // the peer's
	Key    lease.Key    // what the peer receives on
}

// A Target is a way to probe.
type Target struct {
	ID
	Dev string     // over which the way leaves
	Src netip.Addr // local to this node: the network address of our subnet
	Dst netip.Addr // local to the peer: the network address of its subnet
	// Size is the largest IP packet, in bytes, that the way must carry. Until an echo of this size has come
	// back the way is not good; later probes are small.
	Size int
}

// A Verdict says what the probes of a way have shown.
type Verdict int

const (
	Unknown Verdict = iota
	Good
	Dead
)

func (v Verdict) String() string {
	switch v {
	case Good:
		return "good"
	case Dead:
		return "dead"
	}
	return "unknown"
}

// Health is what is known of a way.
type Health struct {
	Verdict Verdict
	Called  bool          // it is good, and so far only the peer's agent has answered
	Since   time.Time     // of the verdict
	RTT     time.Duration // smoothed; 0: no answer since the way was last dead
	// Try says: of this peer's ways none is good, and this is the one to use on trial. Of the ways of one
	// subnet at most one has it, and none while one of them is good.
	Try bool
	Err string // what is wrong, for people to read; empty if nothing is
}

// Stats counts probes and what came of them.
type Stats struct {
	Sent     uint64 // with success
	Answered uint64
	Lost     uint64 // no answer in time, or not sent
	Ignored  uint64 // received, and not an answer to a probe: late, twice, or forged
}
