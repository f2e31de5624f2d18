package kube

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
)

// Kinds of addresses in a Node's status.
const (
	internalIP = "InternalIP"
	externalIP = "ExternalIP"
)

// judge returns the leases of all nodes that take part, those marked Refused that claim what is another's:
// annotations can be written by whoever holds the account that all agents share. A subnet or an address
// belongs to the node created first; an address above all to the node that has it in its status, and of several to
// the one created last: a machine that has the address of one that is no more, or another name than before, joins while
// the former Node is still there. The answer is the same on every node. services is what is known
// of the ranges of the cluster's services.
func judge(nodes map[string]*record, services []netip.Prefix) []lease.Lease {
	j := judgement{services: services, status: map[netip.Addr]string{}, public: map[netip.Addr]string{}}
	all := make([]claimant, 0, len(nodes))
	for name, r := range nodes {
		all = append(all, claimant{name, r})
	}
	slices.SortFunc(all, func(a, b claimant) int {
		return cmp.Or(cmp.Compare(a.created, b.created), cmp.Compare(a.name, b.name))
	})
	for _, c := range all {
		for _, a := range c.addrs {
			if _, taken := j.status[a]; !taken {
				j.status[a] = c.name
			}
		}
	}
	all = slices.DeleteFunc(all, func(c claimant) bool { return !c.takesPart() })
	for _, c := range all {
		for _, f := range family.All() {
			if c.confirmed() && c.lease.Has(f) {
				j.public[c.lease.Public.Of(f)] = c.name
			}
		}
	}
	leases := make([]lease.Lease, 0, len(all))
	// Those whose addresses their own status confirms come first, so that no other can take these.
	for _, confirmed := range []bool{true, false} {
		for _, c := range all {
			if c.confirmed() != confirmed {
				continue
			}
			l := c.lease
			if err := j.claim(c.record); err != nil {
				l.Refused = err.Error()
			}
			leases = append(leases, l)
		}
	}
	return leases
}

// A claimant is a node with what is known of it.
type claimant struct {
	name string
	*record
}

// confirmed says whether all public addresses of the node are in its status.
func (r *record) confirmed() bool {
	for _, f := range family.All() {
		if a := r.lease.Public.Of(f); a.IsValid() && !slices.Contains(r.addrs, a) {
			return false
		}
	}
	return true
}

// A judgement is what has been claimed so far.
type judgement struct {
	services       []netip.Prefix
	status, public map[netip.Addr]string // to the node that has the address
	subnets        bart.Table[string]
}

// claim says whether the node may have what it claims, and notes it then.
func (j *judgement) claim(r *record) error {
	l := r.lease
	for _, f := range family.All() {
		if !l.Has(f) {
			continue
		}
		subnet, public := l.Subnet.Of(f), l.Public.Of(f)
		for _, p := range j.services {
			if subnet.Overlaps(p) {
				return fmt.Errorf("subnet %s overlaps the services of the cluster, %s", subnet, p)
			}
			if p.Contains(public) {
				return fmt.Errorf("public address %s is in %s, which is for services", public, p)
			}
		}
		switch holder := j.status[public]; {
		case j.subnets.OverlapsPrefix(subnet):
			return fmt.Errorf("subnet %s overlaps that of node %s", subnet, j.subnetHolder(subnet))
		case holder != "" && !slices.Contains(r.addrs, public):
			return fmt.Errorf("public address %s is an address of node %s", public, holder)
		}
		if other, taken := j.public[public]; taken && other != l.Node {
			return fmt.Errorf("public address %s is announced by node %s too", public, other)
		}
	}
	for _, f := range family.All() {
		if l.Has(f) {
			j.subnets.Insert(l.Subnet.Of(f), l.Node)
			j.public[l.Public.Of(f)] = l.Node
		}
	}
	return nil
}

// subnetHolder names a node whose subnet overlaps p.
func (j *judgement) subnetHolder(p netip.Prefix) string {
	if name, ok := j.subnets.LookupPrefix(p); ok {
		return name
	}
	for _, name := range j.subnets.Subnets(p) {
		return name
	}
	return "unknown"
}
