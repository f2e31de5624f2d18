package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
)

// Names of annotations, after the prefix.
const (
	manager     = "kube-subnet-manager"
	backendType = "backend-type"
	further     = lease.FurtherName
)

// Annotations that exist once per family.
var (
	backendData = family.Pair[string]{V4: "backend-data", V6: "backend-v6-data"}
	publicIP    = family.Pair[string]{V4: "public-ip", V6: "public-ipv6"}
	overwrite   = family.Pair[string]{V4: "public-ip-overwrite", V6: "public-ipv6-overwrite"}
	nodePublic  = family.Pair[string]{V4: "node-public-ip", V6: "node-public-ipv6"}
)

// maxAnnotation bounds what is read of an annotation; backend data has some dozens of bytes.
const maxAnnotation = 4096

// keys knows annotation keys.
type keys struct{ prefix string }

// name returns the name of an annotation of ours. It does not allocate: Nodes have many of others.
func (k keys) name(key []byte) (string, bool) {
	if len(key) <= len(k.prefix) || string(key[:len(k.prefix)]) != k.prefix {
		return "", false
	}
	rest := key[len(k.prefix):]
	for _, n := range [...]string{
		manager, backendType, further, backendData.V4, backendData.V6, publicIP.V4, publicIP.V6,
		overwrite.V4, overwrite.V6, nodePublic.V4, nodePublic.V6,
	} {
		if string(rest) == n {
			return n, true
		}
	}
	return "", false
}

// encode returns the annotations of lease l by name; nil stands for one that must not be there. It writes for
// each backend exactly what the original writes.
func encode(l lease.Lease) (map[string]*string, error) {
	var first lease.Receiver
	if len(l.Receive) > 0 {
		first = l.Receive[0]
	}
	yes := "true"
	m := map[string]*string{manager: &yes, backendType: &first.Type, further: nil}
	for _, f := range family.All() {
		m[backendData.Of(f)], m[publicIP.Of(f)] = nil, nil
		if !shown(first, l, f) {
			continue
		}
		data, public := dataText(first, f), "0.0.0.0"
		if a := l.Public.Of(f); a.IsValid() {
			public = a.String()
		}
		m[backendData.Of(f)], m[publicIP.Of(f)] = &data, &public
	}
	if w := l.Further(); w != nil {
		b, err := json.Marshal(w)
		if err != nil {
			return nil, fmt.Errorf("encode annotation %s: %w", further, err)
		}
		text := string(b)
		m[further] = &text
	}
	return m, nil
}

// shown says whether the annotations of family f are written: a backend with a tunnel end per family shows
// those that it has, any other shows IPv4 always and IPv6 where the node has it.
func shown(r lease.Receiver, l lease.Lease, f family.Family) bool {
	switch {
	case r.Type == "vxlan" || r.Type == "wireguard":
		return r.Data.Of(f) != ""
	case f == family.V4:
		return true
	}
	return l.Public.Of(f).IsValid()
}

// dataText returns the backend data as it is written.
func dataText(r lease.Receiver, f family.Family) string {
	if d := r.Data.Of(f); d != "" || r.Type == "extension" {
		return d
	}
	return "null"
}

// differ returns the annotations to write so that have becomes want, nil for one to remove.
func differ(want map[string]*string, have map[string]string) map[string]*string {
	d := maps.Clone(want)
	maps.DeleteFunc(d, func(name string, w *string) bool {
		h, ok := have[name]
		return w == nil && !ok || w != nil && ok && *w == h
	})
	return d
}

// patch returns the strategic merge patch that writes annotations.
func (k keys) patch(annotations map[string]*string) []byte {
	full := make(map[string]*string, len(annotations))
	for name, v := range annotations {
		full[k.prefix+name] = v
	}
	type meta struct {
		Annotations map[string]*string `json:"annotations"`
	}
	b, err := json.Marshal(struct {
		Metadata meta `json:"metadata"`
	}{meta{full}})
	if err != nil {
		panic(err) // strings
	}
	return b
}

// receivers reads into l what the node receives and sends on.
func (n *node) receivers(l *lease.Lease) error {
	first := lease.Receiver{Type: n.annotations[backendType]}
	for _, f := range family.All() {
		*first.Data.Ref(f) = null(n.annotations[backendData.Of(f)])
	}
	l.Receive = []lease.Receiver{first}
	text, ok := n.annotations[further]
	if !ok {
		return nil
	}
	var w *lease.Further
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		return fmt.Errorf("annotation %s: %w", further, err)
	}
	return l.AddFurther(w)
}

// null returns text, and nothing for JSON's null.
func null(text string) string {
	if text == "null" {
		return ""
	}
	return text
}

// address reads the annotation name as an address of family f; absent, empty and unspecified mean none.
func (n *node) address(name string, f family.Family) (netip.Addr, error) {
	text := strings.TrimSpace(n.annotations[name])
	if text == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(text)
	if f == family.V4 {
		a = a.Unmap()
	}
	switch {
	case err != nil || family.Of(a) != f || a.Is4In6() || a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("annotation %s: %q is no %s address", name, cut(text, 60), f)
	case a.IsUnspecified():
		return netip.Addr{}, nil
	}
	return a, nil
}

func cut(s string, n int) string { return s[:min(len(s), n)] }

// subnets reads the subnets that the cluster gave the node.
func (n *node) subnets() (family.Pair[netip.Prefix], error) {
	var s family.Pair[netip.Prefix]
	cidrs := n.podCIDRs
	if len(cidrs) == 0 && n.podCIDR != "" {
		cidrs = []string{n.podCIDR}
	}
	if len(cidrs) > 2 {
		return s, fmt.Errorf("spec.podCIDRs has %d entries, at most one per family is understood", len(cidrs))
	}
	for _, c := range cidrs {
		p, err := netip.ParsePrefix(c)
		if err != nil || p.Addr().Is4In6() {
			return family.Pair[netip.Prefix]{}, fmt.Errorf("spec.podCIDRs: %q is no prefix", cut(c, 60))
		}
		at := s.Ref(family.Of(p.Addr()))
		if at.IsValid() {
			return family.Pair[netip.Prefix]{}, fmt.Errorf("spec.podCIDRs: %s and %s are of one family", at, p)
		}
		*at = p.Masked()
	}
	return s, nil
}

// isMember says whether the node takes part in the network.
func (n *node) isMember() bool { return n.annotations[manager] == "true" }

// lease reads the lease that the node's annotations describe, in the families that the node has. The error
// says what is wrong with them; what is right counts all the same.
func (n *node) lease() (lease.Lease, error) {
	l := lease.Lease{Node: n.name}
	for name, v := range n.annotations {
		if len(v) > maxAnnotation {
			return l, fmt.Errorf("annotation %s is longer than %d bytes", name, maxAnnotation)
		}
	}
	subnets, err := n.subnets()
	if err != nil {
		return l, err
	}
	var errs []error
	if err := n.receivers(&l); err != nil {
		errs = append(errs, err)
	}
	for _, f := range family.All() {
		public, err := n.address(publicIP.Of(f), f)
		if err != nil {
			errs = append(errs, err)
		}
		if public.IsValid() && subnets.Of(f).IsValid() {
			*l.Public.Ref(f), *l.Subnet.Ref(f) = public, subnets.Of(f)
		}
	}
	dropUnusedData(&l)
	return l, errors.Join(errs...)
}

// dropUnusedData removes backend data of families that the lease does not have.
func dropUnusedData(l *lease.Lease) {
	for i := range l.Receive {
		for _, f := range family.All() {
			if !l.Has(f) {
				*l.Receive[i].Data.Ref(f) = ""
			}
		}
	}
}
