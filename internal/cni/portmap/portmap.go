// Package portmap plans the firewall rules that lead ports of the node to a pod.
//
//   - From outside: the destination becomes the pod, the client's address stays, the answer comes back
//     through this node by itself.
//   - From a pod of the same subnet, the pod itself included: the answer would go over the bridge and
//     past this node, so the source becomes the node's too.
//   - From this node by way of 127.0.0.1: such a source must not leave the node, so it is replaced as
//     well. Another address of the node needs nothing. ::1 cannot be mapped: the kernel would not take
//     the answer.
package portmap

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/cni/rules"
	"github.com/weftnet/weft/internal/family"
)

// A Config is the plugin's configuration, checked.
type Config struct {
	Network    string
	CNIVersion string
	SNAT       bool // masquerade what could not find its way back
	MasqAll    bool // masquerade everything
	MarkBit    uint32
	Mappings   []Mapping
	PrevResult json.RawMessage
	Valid      []types.GCAttachment
}

// A Mapping leads one port of the node to one of the pod.
type Mapping struct {
	HostIP        netip.Addr // unspecified: every address of its family; zero: of both families
	HostPort      uint16
	ContainerPort uint16
	Protocol      byte // IPPROTO_TCP, UDP or SCTP
}

type raw struct {
	Network              string               `json:"name"`
	CNIVersion           string               `json:"cniVersion"`
	SNAT                 *bool                `json:"snat"`
	MasqAll              bool                 `json:"masqAll"`
	MarkMasqBit          *int                 `json:"markMasqBit"`
	ExternalSetMarkChain *string              `json:"externalSetMarkChain"`
	Backend              *string              `json:"backend"`
	ConditionsV4         *[]string            `json:"conditionsV4"`
	ConditionsV6         *[]string            `json:"conditionsV6"`
	PrevResult           json.RawMessage      `json:"prevResult"`
	Valid                []types.GCAttachment `json:"cni.dev/valid-attachments"`
	RuntimeConfig        struct {
		PortMappings []struct {
			HostPort      int    `json:"hostPort"`
			ContainerPort int    `json:"containerPort"`
			Protocol      string `json:"protocol"`
			HostIP        string `json:"hostIP"`
		} `json:"portMappings"`
	} `json:"runtimeConfig"`
}

// Parse reads the configuration. All problems at once.
//
// What the reference plugin needs to choose an iptables chain to mark packets in (externalSetMarkChain) and
// a backend makes no difference to packets here, and is accepted.
func Parse(stdin []byte) (Config, error) {
	var r raw
	if err := json.NewDecoder(bytes.NewReader(stdin)).Decode(&r); err != nil {
		return Config{}, types.NewError(types.ErrDecodingFailure, "portmap configuration: "+err.Error(), "")
	}
	c := Config{
		Network: r.Network, CNIVersion: r.CNIVersion, SNAT: r.SNAT == nil || *r.SNAT, MasqAll: r.MasqAll, MarkBit: 1 << 13,
		PrevResult: r.PrevResult, Valid: r.Valid,
	}
	var problems []string
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if r.MarkMasqBit != nil {
		if *r.MarkMasqBit < 0 || *r.MarkMasqBit > 31 {
			problem("markMasqBit: %d is not between 0 and 31", *r.MarkMasqBit)
		} else {
			c.MarkBit = 1 << *r.MarkMasqBit
		}
	}
	for key, conditions := range map[string]*[]string{"conditionsV4": r.ConditionsV4, "conditionsV6": r.ConditionsV6} {
		if conditions != nil && len(*conditions) > 0 {
			problem("%s: not supported", key)
		}
	}
	for i, p := range r.RuntimeConfig.PortMappings {
		m, err := mapping(p.HostPort, p.ContainerPort, p.Protocol, p.HostIP)
		if err != nil {
			problem("runtimeConfig.portMappings[%d]: %v", i, err)
		}
		if p.HostPort != 0 { // no hostPort wanted; the reference plugin skips it too
			c.Mappings = append(c.Mappings, m)
		}
	}
	if len(problems) > 0 {
		slices.Sort(problems)
		return c, types.NewError(types.ErrInvalidNetworkConfig, "portmap: "+strings.Join(problems, "; "), "")
	}
	return c, nil
}

func mapping(hostPort, containerPort int, protocol, hostIP string) (Mapping, error) {
	m := Mapping{HostPort: uint16(hostPort), ContainerPort: uint16(containerPort)}
	if hostPort < 0 || hostPort > 65535 || containerPort < 1 || containerPort > 65535 {
		return m, fmt.Errorf("hostPort %d, containerPort %d: not a port", hostPort, containerPort)
	}
	switch strings.ToLower(protocol) {
	case "", "tcp":
		m.Protocol = unix.IPPROTO_TCP
	case "udp":
		m.Protocol = unix.IPPROTO_UDP
	case "sctp":
		m.Protocol = unix.IPPROTO_SCTP
	default:
		return m, fmt.Errorf("protocol %q is not tcp, udp or sctp", protocol)
	}
	if hostIP != "" {
		a, err := netip.ParseAddr(hostIP)
		if err != nil {
			return m, fmt.Errorf("hostIP %q is not an address", hostIP)
		}
		m.HostIP = a.Unmap()
	}
	return m, nil
}

// takes says whether the mapping is for family f.
func (m Mapping) takes(f family.Family) bool {
	return !m.HostIP.IsValid() || family.Of(m.HostIP) == f
}

// Pods returns the pod's first address of each family, with the length of its subnet.
func Pods(r *types100.Result) family.Pair[netip.Prefix] {
	var pods family.Pair[netip.Prefix]
	for _, ip := range r.IPs {
		// An address of an interface without sandbox is the host's.
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) && r.Interfaces[*i].Sandbox == "" {
			continue
		}
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		ones, _ := ip.Address.Mask.Size()
		p := netip.PrefixFrom(a.Unmap(), ones)
		if ok && p.IsValid() {
			if at := pods.Ref(family.Of(p.Addr())); !at.IsValid() {
				*at = p
			}
		}
	}
	return pods
}

// Rules plans the rules of a pod.
func Rules(c Config, pods family.Pair[netip.Prefix]) []rules.Rule {
	var all []rules.Rule
	for _, f := range family.All() {
		pod := pods.Of(f)
		if !pod.IsValid() {
			continue
		}
		n := len(all)
		for _, m := range c.Mappings {
			if m.takes(f) {
				all = append(all, c.rules(m, f, pod)...)
			}
		}
		if len(all) > n && (c.SNAT || c.MasqAll) {
			here := netip.PrefixFrom(pod.Addr(), pod.Addr().BitLen())
			all = append(all, rules.Rule{
				Table: rules.Of(f), Chain: rules.PostRouting,
				Exprs: rules.Join(rules.To(here), rules.Marked(c.MarkBit), rules.Masquerade()),
			})
		}
	}
	return all
}

// rules plans one mapping. Later rules are looked at first, so the marks come after the DNAT here.
func (c Config) rules(m Mapping, f family.Family, pod netip.Prefix) []rules.Rule {
	match := rules.ToPort(m.Protocol, m.HostPort)
	if m.HostIP.IsValid() && !m.HostIP.IsUnspecified() {
		match = rules.Join(rules.To(netip.PrefixFrom(m.HostIP, m.HostIP.BitLen())), match)
	}
	add := func(parts ...[]expr.Any) rules.Rule {
		return rules.Rule{Table: rules.Of(f), Chain: rules.HostPorts, Exprs: rules.Join(parts...)}
	}
	all := []rules.Rule{add(match, rules.DNAT(netip.AddrPortFrom(pod.Addr(), m.ContainerPort)))}
	switch {
	case c.MasqAll:
		all = append(all, add(match, rules.SetMark(c.MarkBit)))
	case c.SNAT:
		all = append(all, add(rules.From(pod.Masked()), match, rules.SetMark(c.MarkBit)))
		if f == family.V4 {
			all = append(all, add(rules.From(rules.Loopback4), match, rules.SetMark(c.MarkBit)))
		}
	}
	return all
}
