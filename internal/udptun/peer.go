package udptun

import (
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/gaissmai/bart"
)

// A peer is one underlay address of another node. It outlives the tables that lead to it, so its counters
// go on.
type peer struct {
	addr netip.Addr
	sa   sockaddr

	// limit is the largest packet that goes through in one datagram, as far as the path is known; noLimit
	// until the kernel says otherwise.
	limit atomic.Int32

	_      [64]byte // what follows is written by several CPUs
	tx, rx traffic
	spoof  atomic.Uint64 // packets from it that were not from its subnets
}

type traffic struct {
	packets, bytes atomic.Uint64
	_              [48]byte
}

func (t *traffic) add(packets, bytes int) {
	t.packets.Add(uint64(packets))
	t.bytes.Add(uint64(bytes))
}

const noLimit = 1 << 16

func newPeer(a netip.Addr, port int) *peer {
	p := &peer{addr: a, sa: newSockaddr(a, port)}
	p.limit.Store(noLimit)
	return p
}

// A table says who is where. It is never changed, only replaced.
type table struct {
	subnets bart.Table[*peer]
	peers   map[netip.Addr]*peer
	want    map[netip.Prefix]netip.Addr // what it was made from
}

// newTable returns the table for subnets and the nodes that hold them. Peers that old knows are taken from
// it.
func newTable(want map[netip.Prefix]netip.Addr, port int, old *table) *table {
	t := &table{peers: make(map[netip.Addr]*peer, len(want)), want: maps.Clone(want)}
	for subnet, a := range want {
		p, ok := t.peers[a]
		if !ok {
			if p = old.peer(a); p == nil || p.sa != newSockaddr(a, port) {
				p = newPeer(a, port)
			}
			t.peers[a] = p
		}
		t.subnets.Insert(subnet, p)
	}
	return t
}

func (t *table) peer(a netip.Addr) *peer {
	if t == nil {
		return nil
	}
	return t.peers[a]
}

// to returns the peer that holds a.
func (t *table) to(a netip.Addr) *peer {
	p, _ := t.subnets.Lookup(a)
	return p
}

func (t *table) same(want map[netip.Prefix]netip.Addr) bool {
	return t != nil && maps.Equal(t.want, want)
}

// sorted lists the peers in order of their addresses.
func (t *table) sorted() []*peer {
	return slices.SortedFunc(maps.Values(t.peers), func(a, b *peer) int { return a.addr.Compare(b.addr) })
}
