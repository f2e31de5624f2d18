package kernel

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel/rtnl"
	"github.com/weftnet/weft/internal/state"
)

// OnLink says, for each address, the device through which the kernel reaches it without a gateway. An
// address is absent if it is reached through a gateway, over several next hops, not at all, or is this
// host's own. From here on a change of the way to one of them wakes.
func (k *Kernel) OnLink(addrs []netip.Addr) (map[netip.Addr]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	indexes := make(map[netip.Addr]int32, len(addrs))
	var b rtnl.Batch
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !a.IsValid() })
	k.asked = slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
	if n := k.interest.Load(); n != nil { // before looking: what changes from now on is told
		now := *n
		now.asked = k.asked
		k.interest.Store(&now)
	}
	for chunk := range slices.Chunk(addrs, batchSize) {
		b.Reset()
		for _, a := range chunk {
			lookup(&b, a)
		}
		none := func(int, error) {} // no route: absent
		err := k.conn.Exec(&b, none, func(i int, m rtnl.Message) {
			if index := direct(m); index != 0 {
				indexes[chunk[i]] = index
			}
		})
		if err != nil {
			return nil, fmt.Errorf("look up routes: %w", err)
		}
	}
	return k.deviceNames(indexes)
}

// lookup asks for the entry of the routing table that an address matches. RTM_F_FIB_MATCH keeps the kernel
// from choosing one of several next hops for us.
func lookup(b *rtnl.Batch, a netip.Addr) {
	h := make([]byte, unix.SizeofRtMsg)
	h[0], h[1] = familyOf(a), uint8(a.BitLen())
	put32(h[offFlags:], unix.RTM_F_FIB_MATCH)
	b.Begin(unix.RTM_GETROUTE, 0, h)
	b.Addr(unix.RTA_DST, a)
}

// direct returns the index of the device that a route leads to without a gateway, or 0.
func direct(m rtnl.Message) int32 {
	if m.Type != unix.RTM_NEWROUTE || len(m.Body) < unix.SizeofRtMsg {
		return 0
	}
	if state.RouteType(m.Body[offType]) != state.Unicast {
		return 0
	}
	var index int32
	for typ, v := range rtnl.Attrs(m.Body[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_OIF:
			index = int32(rtnl.Uint32(v))
		case unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH, unix.RTA_ENCAP:
			return 0
		}
	}
	return index
}

// deviceNames turns indexes into names, leaving out loopback devices. The devices are listed one by one: a
// host has many, and peers are reached through one or two.
func (k *Kernel) deviceNames(indexes map[netip.Addr]int32) (map[netip.Addr]string, error) {
	names := map[int32]string{}
	for _, index := range indexes {
		names[index] = ""
	}
	var b rtnl.Batch
	for index := range names {
		b.Begin(unix.RTM_GETLINK, 0, linkHeader(index, false))
		b.Uint32(unix.IFLA_EXT_MASK, filterSkipStats)
	}
	err := k.conn.Exec(&b, func(int, error) {}, func(_ int, m rtnl.Message) {
		name, d, _ := parseLink(m)
		if !d.Loopback {
			names[d.Index] = name
		}
	})
	if err != nil {
		return nil, fmt.Errorf("look up devices: %w", err)
	}
	out := make(map[netip.Addr]string, len(indexes))
	for a, index := range indexes {
		if name := names[index]; name != "" {
			out[a] = name
		}
	}
	return out, nil
}
