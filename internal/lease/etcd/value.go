package etcd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
)

// A value is a lease value as it stands in etcd: the original's members in the original's order. What
// else a node receives on stands in a member of our own, which the original ignores; a node with one
// backend writes exactly what the original would.
type value struct {
	PublicIP      string
	PublicIPv6    *string
	BackendType   string          `json:",omitempty"`
	BackendData   json.RawMessage `json:",omitempty"`
	BackendV6Data json.RawMessage `json:",omitempty"`
	Further       *lease.Further  `json:"x-weft,omitempty"`
}

// encode returns the value of l. An error means that l holds backend data that is no JSON.
func encode(l lease.Lease) ([]byte, error) {
	v := value{PublicIP: "0.0.0.0"}
	if a := l.Public.V4; a.IsValid() {
		v.PublicIP = a.String()
	}
	if a := l.Public.V6; a.IsValid() {
		s := a.String()
		v.PublicIPv6 = &s
	}
	if len(l.Receive) > 0 {
		first := l.Receive[0]
		v.BackendType, v.BackendData, v.BackendV6Data = first.Type, json.RawMessage(first.Data.V4), json.RawMessage(first.Data.V6)
	}
	v.Further = l.Further()
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode lease value: %w", err)
	}
	return b, nil
}

// maxValue bounds what one node makes all others keep. A lease with everything has less than 1 KiB.
const maxValue = 16 << 10

// decode reads the value of the lease of subnets. It takes what the original's nodes take: unknown members,
// any order and any case of names.
func decode(subnets family.Pair[netip.Prefix], b []byte) (lease.Lease, error) {
	if len(b) > maxValue {
		return lease.Lease{}, fmt.Errorf("%d bytes: a lease has at most %d", len(b), maxValue)
	}
	var v *value
	if err := json.Unmarshal(b, &v); err != nil {
		return lease.Lease{}, err
	}
	if v == nil {
		return lease.Lease{}, errors.New("null is no lease value")
	}
	l := lease.Lease{Subnet: subnets}
	var err error
	if l.Public.V4, err = publicAddr("PublicIP", v.PublicIP, family.V4); err != nil {
		return lease.Lease{}, err
	}
	if v.PublicIPv6 != nil {
		if l.Public.V6, err = publicAddr("PublicIPv6", *v.PublicIPv6, family.V6); err != nil {
			return lease.Lease{}, err
		}
	}
	l.Receive = []lease.Receiver{{Type: v.BackendType, Data: family.Pair[string]{V4: text(v.BackendData), V6: text(v.BackendV6Data)}}}
	return l, l.AddFurther(v.Further)
}

// publicIn reads the public addresses in a value, and none in a value that is no lease's.
func publicIn(b []byte) family.Pair[netip.Addr] {
	var v struct {
		PublicIP   string
		PublicIPv6 *string
	}
	if json.Unmarshal(b, &v) != nil {
		return family.Pair[netip.Addr]{}
	}
	var p family.Pair[netip.Addr]
	p.V4, _ = publicAddr("PublicIP", v.PublicIP, family.V4)
	if v.PublicIPv6 != nil {
		p.V6, _ = publicAddr("PublicIPv6", *v.PublicIPv6, family.V6)
	}
	return p
}

// text returns raw as it stands, and nothing for null.
func text(raw json.RawMessage) string {
	if string(raw) == "null" {
		return ""
	}
	return string(raw)
}

// publicAddr reads an address of family f that peers may send to; absent and unspecified mean none.
func publicAddr(member, s string, f family.Family) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%s: %w", member, err)
	}
	if f == family.V4 {
		a = a.Unmap()
	}
	switch {
	case family.Of(a) != f || a.Is4In6() || a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%s: %s is no plain %s address", member, a, f)
	case a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return netip.Addr{}, fmt.Errorf("%s: %s is no address of a node", member, a)
	case a.IsUnspecified():
		return netip.Addr{}, nil
	}
	return a, nil
}
