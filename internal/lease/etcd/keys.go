package etcd

import (
	"net/netip"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
)

// keys names the keys of one network.
type keys struct{ prefix string }

// A keyRange is the keys from first up to, and without, end; an empty end means first alone.
type keyRange struct{ first, end string }

func prefixed(p string) keyRange { return keyRange{p, clientv3.GetPrefixRangeEnd(p)} }

func (k keys) config() string { return k.prefix + "/config" }

func (k keys) alive(a netip.Addr) string { return k.prefix + "/x-weft/alive/" + a.String() }

func (k keys) subnets6() string { return k.prefix + "/x-weft/subnets6/" }

// lease returns the key of the lease of subnets.
func (k keys) lease(subnet family.Pair[netip.Prefix]) string {
	if !subnet.V4.IsValid() {
		return k.subnets6() + lease.Name(subnet)
	}
	return k.prefix + "/subnets/" + lease.Name(subnet)
}

// trees returns the ranges in which leases stand. The first has no closing slash, since the original
// watches that string: what is a lease to its nodes must be one to ours.
func (k keys) trees() [2]keyRange {
	return [2]keyRange{prefixed(k.prefix + "/subnets"), prefixed(k.subnets6())}
}

// parse reads the key of a lease.
func (k keys) parse(key string) (family.Pair[netip.Prefix], bool) {
	if name, ok := strings.CutPrefix(key, k.subnets6()); ok {
		return lease.Parse6(name)
	}
	return lease.Parse(key)
}
