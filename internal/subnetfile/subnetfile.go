// Package subnetfile reads and writes subnet.env, through which the agent tells the CNI plugin and Docker
// what this node got. The plugin links this package: it stays free of everything but values.
package subnetfile

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"
	"strings"

	"github.com/weftnet/weft/internal/atomicfile"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/ranges"
)

// DefaultPath is where subnet.env lies unless --subnet-file or the plugin's subnetFile says otherwise.
const DefaultPath = "/run/flannel/subnet.env"

// Socket returns where the agent with that subnet file answers, unless --status-socket says otherwise:
// beside the file.
func Socket(path string) string { return strings.TrimSuffix(path, ".env") + ".sock" }

// maxSize is far beyond any file that a person or an agent wrote on purpose.
const maxSize = 1 << 20

// A File is the content of subnet.env as the agent means it.
type File struct {
	Network family.Pair[ranges.List]  // empty: family off
	Subnet  family.Pair[netip.Prefix] // masked; zero: family off
	MTU     int                       // of pods
	IPMasq  bool
}

// Lists is the content of subnet.env as the CNI plugin needs it: older agents wrote several subnets, and the
// plugin must tell a missing key from a zero.
type Lists struct {
	Network   family.Pair[[]netip.Prefix] // masked, in file order, without duplicates
	Subnet    family.Pair[[]netip.Prefix]
	MTU       int // 0: missing
	IPMasq    bool
	HasIPMasq bool
}

// Gateway returns the first usable address of a subnet, with the subnet's length: the bridge's address,
// and what the file holds in place of the subnet. A subnet of one address is its own gateway.
func Gateway(subnet netip.Prefix) netip.Prefix {
	if subnet.IsSingleIP() {
		return subnet
	}
	return netip.PrefixFrom(subnet.Masked().Addr().Next(), subnet.Bits())
}

// The keys that hold prefixes.
func networkKey(f family.Family) string {
	if f == family.V4 {
		return "FLANNEL_NETWORK"
	}
	return "FLANNEL_IPV6_NETWORK"
}

func subnetKey(f family.Family) string {
	if f == family.V4 {
		return "FLANNEL_SUBNET"
	}
	return "FLANNEL_IPV6_SUBNET"
}

// Render returns the file byte for byte as the original writes it.
func (f File) Render() []byte {
	var b strings.Builder
	for _, fam := range family.All() {
		if n, s := f.Network.Of(fam), f.Subnet.Of(fam); !n.Empty() && s.IsValid() {
			fmt.Fprintf(&b, "%s=%s\n%s=%s\n", networkKey(fam), n, subnetKey(fam), Gateway(s))
		}
	}
	fmt.Fprintf(&b, "FLANNEL_MTU=%d\nFLANNEL_IPMASQ=%t\n", f.MTU, f.IPMasq)
	return []byte(b.String())
}

// Write writes f to path if the content differs and returns whether it did. Readers never see half of it.
func Write(path string, f File) (changed bool, err error) {
	return atomicfile.Write(path, f.Render(), 0o644)
}

// Read reads path as the agent does at start: what is missing or does not parse is zero. A file that does
// not exist reads as the zero File.
func Read(path string) (File, error) {
	raw, err := atomicfile.Read(path, maxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return File{}, nil
	}
	if err != nil {
		return File{}, err
	}
	return Parse(raw), nil
}

// ReadLists reads path as the CNI plugin does. A file that does not exist is an fs.ErrNotExist.
func ReadLists(path string) (Lists, error) {
	raw, err := atomicfile.Read(path, maxSize)
	if err != nil {
		return Lists{}, err
	}
	l, err := ParseLists(raw)
	if err != nil {
		return Lists{}, fmt.Errorf("%s: %w", path, err)
	}
	return l, nil
}

// Parse never fails: a key that is missing or does not parse is zero, and so is a subnet that is not one alone.
func Parse(raw []byte) File {
	l, _ := ParseLists(raw) // a key with an error is left zero
	f := File{MTU: l.MTU, IPMasq: l.IPMasq}
	for _, fam := range family.All() {
		*f.Network.Ref(fam) = ranges.Of(l.Network.Of(fam)...)
		*f.Subnet.Ref(fam) = only(l.Subnet.Of(fam))
	}
	return f
}

func only(list []netip.Prefix) netip.Prefix {
	if len(list) != 1 {
		return netip.Prefix{}
	}
	return list[0]
}

// ParseLists returns what parses and one joined error that names every line that does not. Unknown keys
// are ignored; the last of several equal keys counts.
func ParseLists(raw []byte) (Lists, error) {
	values := Variables(raw)
	var l Lists
	var errs []error
	take := func(key string, fam family.Family, list *[]netip.Prefix) {
		value, ok := values[key]
		if !ok {
			return
		}
		var err error
		if *list, err = prefixes(value, fam); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	for _, fam := range family.All() {
		take(networkKey(fam), fam, l.Network.Ref(fam))
		take(subnetKey(fam), fam, l.Subnet.Ref(fam))
	}
	if value, ok := values["FLANNEL_MTU"]; ok {
		if mtu, err := strconv.ParseUint(value, 10, 31); err == nil {
			l.MTU = int(mtu)
		} else {
			errs = append(errs, fmt.Errorf("FLANNEL_MTU: %q is not a number", value))
		}
	}
	value, ok := values["FLANNEL_IPMASQ"]
	l.HasIPMasq, l.IPMasq = ok, value == "true"
	return l, errors.Join(errs...)
}

// Variables returns every assignment in the file as text; of several to one name the last.
func Variables(raw []byte) map[string]string {
	values := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		if key, value, ok := assignment(line); ok {
			values[key] = value
		}
	}
	return values
}

// assignment splits KEY=value. The file is also sourced by shells, so what people add to it by hand may
// say export and carry quotes.
func assignment(line string) (key, value string, ok bool) {
	line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
	key, value, ok = strings.Cut(line, "=")
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	for _, quote := range []string{`"`, `'`} {
		if len(value) >= 2 && strings.HasPrefix(value, quote) && strings.HasSuffix(value, quote) {
			value = value[1 : len(value)-1]
		}
	}
	return key, value, ok && !strings.HasPrefix(key, "#")
}

func prefixes(value string, f family.Family) ([]netip.Prefix, error) {
	var list []netip.Prefix
	seen := map[netip.Prefix]bool{}
	for text := range strings.SplitSeq(value, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil || family.Of(p.Addr()) != f || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%q is not an %s prefix", text, f)
		}
		if p = p.Masked(); !seen[p] {
			seen[p] = true
			list = append(list, p)
		}
	}
	return list, nil
}
