package conf

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/internal/family"
)

// Where host-local keeps its networks.
const defaultIPAMDir = "/var/lib/cni/networks"

// A HostLocal is the configuration of the host-local IPAM plugin.
type HostLocal struct {
	Network    string // name of the CNI network
	CNIVersion string
	Dir        string // the network's directory
	Sets       [][]Range
	Routes     []*types.Route
	ResolvConf string       // file to read DNS settings from; empty: none
	Requested  []netip.Addr // addresses that the runtime asks for
	Valid      []types.GCAttachment
}

// A Range is a part of a subnet to allocate from. First, Last and Gateway are always set.
type Range struct {
	Subnet      netip.Prefix // masked
	First, Last netip.Addr   // both included
	Gateway     netip.Addr
}

type rawRange struct {
	Subnet  string `json:"subnet"`
	Start   string `json:"rangeStart"`
	End     string `json:"rangeEnd"`
	Gateway string `json:"gateway"`
}

type rawHostLocal struct {
	rawRange   // the form of one range that CNI 0.2 knew
	Type       string
	Routes     []*types.Route `json:"routes"`
	DataDir    string         `json:"dataDir"`
	ResolvConf string         `json:"resolvConf"`
	Ranges     [][]rawRange   `json:"ranges"`
}

var hostLocalKeys = []string{
	"type", "routes", "dataDir", "resolvConf", "ranges", "subnet", "rangeStart", "rangeEnd", "gateway",
}

// ReadHostLocal reads the ipam object of a plugin's configuration. args is CNI_ARGS. Only what does not
// parse is an error, and if Dir is set all the same, there is enough for DEL; Check says whether it makes
// sense.
func ReadHostLocal(stdin []byte, args string) (HostLocal, error) {
	var raw struct {
		Name          string               `json:"name"`
		CNIVersion    string               `json:"cniVersion"`
		IPAM          *rawHostLocal        `json:"ipam"`
		Valid         []types.GCAttachment `json:"cni.dev/valid-attachments"`
		RuntimeConfig struct {
			IPRanges [][]rawRange `json:"ipRanges"`
			IPs      []string     `json:"ips"`
		} `json:"runtimeConfig"`
		Args struct {
			Cni struct {
				IPs []string `json:"ips"`
			} `json:"cni"`
		} `json:"args"`
	}
	if err := json.Unmarshal(stdin, &raw); err != nil {
		return HostLocal{}, types.NewError(types.ErrDecodingFailure, "ipam: "+err.Error(), "")
	}
	if raw.IPAM == nil {
		return HostLocal{}, invalid("network %q: no ipam object", raw.Name)
	}
	dir := raw.IPAM.DataDir
	if dir == "" {
		dir = defaultIPAMDir
	}
	h := HostLocal{
		Network: raw.Name, CNIVersion: raw.CNIVersion, Dir: filepath.Join(dir, raw.Name), Routes: raw.IPAM.Routes,
		ResolvConf: raw.IPAM.ResolvConf, Valid: raw.Valid,
	}
	sets := raw.IPAM.Ranges
	if raw.IPAM.Subnet != "" {
		sets = append([][]rawRange{{raw.IPAM.rawRange}}, sets...)
	}
	sets = append(sets, raw.RuntimeConfig.IPRanges...)
	for _, set := range sets {
		var ranges []Range
		for _, r := range set {
			p, err := r.parse()
			if err != nil {
				return h, err
			}
			ranges = append(ranges, p)
		}
		h.Sets = append(h.Sets, ranges)
	}
	wanted := append(raw.RuntimeConfig.IPs, raw.Args.Cni.IPs...)
	if ip := argument(args, "IP"); ip != "" {
		wanted = append(wanted, strings.Split(ip, ",")...)
	}
	for _, w := range wanted {
		addr, _, _ := strings.Cut(strings.TrimSpace(w), "/") // runtimes may add a length
		a, err := netip.ParseAddr(addr)
		if err != nil {
			return h, invalid("ips: %q is not an address", w)
		}
		h.Requested = append(h.Requested, a.Unmap())
	}
	return h, nil
}

func (r rawRange) parse() (Range, error) {
	subnet, err := netip.ParsePrefix(r.Subnet)
	if err != nil {
		return Range{}, invalid("ipam.ranges: subnet %q is not a prefix", r.Subnet)
	}
	if subnet != subnet.Masked() {
		return Range{}, invalid("ipam.ranges: subnet %s has host bits set, %s is meant", subnet, subnet.Masked())
	}
	p := Range{Subnet: subnet, First: subnet.Addr().Next(), Last: last(subnet), Gateway: subnet.Addr().Next()}
	if subnet.Bits() > subnet.Addr().BitLen()-2 {
		return p, invalid("ipam.ranges: subnet %s is too small to allocate from", subnet)
	}
	for _, f := range []struct {
		key, value string
		to         *netip.Addr
		inside     bool
	}{{"rangeStart", r.Start, &p.First, true}, {"rangeEnd", r.End, &p.Last, true}, {"gateway", r.Gateway, &p.Gateway, false}} {
		if f.value == "" {
			continue
		}
		a, err := netip.ParseAddr(f.value)
		if err != nil || f.inside && !subnet.Contains(a) {
			return p, invalid("ipam.ranges: %s %q is not an address of %s", f.key, f.value, subnet)
		}
		*f.to = a
	}
	if p.Last.Less(p.First) {
		return p, invalid("ipam.ranges: rangeStart %s is after rangeEnd %s", p.First, p.Last)
	}
	return p, nil
}

// last returns the highest address to allocate: IPv4 keeps the one above it for broadcast.
func last(subnet netip.Prefix) netip.Addr {
	raw := subnet.Addr().AsSlice()
	for bit := subnet.Bits(); bit < len(raw)*8; bit++ {
		raw[bit/8] |= 1 << (7 - bit%8)
	}
	a, _ := netip.AddrFromSlice(raw)
	if family.Of(a) == family.V4 {
		return a.Prev()
	}
	return a
}

// Check says why no address can be allocated with h.
func (h HostLocal) Check() error {
	if len(h.Sets) == 0 {
		return invalid("network %q: ipam.ranges: there is none to allocate from", h.Network)
	}
	var flat []Range
	for i, set := range h.Sets {
		if len(set) == 0 {
			return invalid("ipam.ranges: set %d is empty", i)
		}
		for _, r := range set {
			if family.Of(r.Subnet.Addr()) != family.Of(set[0].Subnet.Addr()) {
				return invalid("ipam.ranges: set %d mixes IPv4 and IPv6", i)
			}
			for _, other := range flat {
				if !other.Last.Less(r.First) && !r.Last.Less(other.First) {
					return invalid("ipam.ranges: %s-%s overlaps %s-%s", r.First, r.Last, other.First, other.Last)
				}
			}
			flat = append(flat, r)
		}
	}
	return nil
}

// Contains returns the range of the set that a lies in.
func Contains(set []Range, a netip.Addr) (Range, bool) {
	for _, r := range set {
		if r.Subnet.Contains(a) && !a.Less(r.First) && !r.Last.Less(a) {
			return r, true
		}
	}
	return Range{}, false
}

// ParseResolvConf reads resolv.conf(5): what the result's dns object holds.
func ParseResolvConf(raw []byte) types.DNS {
	var dns types.DNS
	for line := range bytes.Lines(raw) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") || strings.HasPrefix(fields[0], ";") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, fields[1])
		case "domain":
			dns.Domain = fields[1]
		case "search":
			dns.Search = append(dns.Search, fields[1:]...)
		case "options":
			dns.Options = append(dns.Options, fields[1:]...)
		}
	}
	return dns
}
