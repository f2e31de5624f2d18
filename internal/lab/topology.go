package lab

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/weftnet/weft/internal/family"
)

// Families of a lab's underlay.
const (
	IPv4 = "ipv4"
	IPv6 = "ipv6"
	Dual = "dual"
)

// Options describe a lab. The zero value with Segments is a working lab whose binaries lie beside the
// running one.
type Options struct {
	Name     string     `json:"name"`     // default "default"
	Base     string     `json:"base"`     // directory of all labs, default DefaultBase
	Segments [][]string `json:"segments"` // node names per L2 segment; a router joins the segments
	Family   string     `json:"family"`   // IPv4 (default), IPv6 or Dual: addresses of the underlay
	MTU      int        `json:"mtu"`      // of the underlay, default 1500

	// Config is the network configuration that goes to etcd. Default: DefaultConfig(Family).
	Config string `json:"config"`

	Weft       string            `json:"weft"`                 // binaries; default: beside the running one
	Flanneld   string            `json:"flanneld"`             //
	Flannel    string            `json:"flannel"`              //
	FlanneldOn map[string]string `json:"flanneldOn,omitempty"` // another agent on some nodes
	AgentArgs  []string          `json:"agentArgs,omitempty"`  // further flags for every agent

	// ReferencePlugins takes bridge, portmap and the like from the machine. Otherwise they are links to
	// Flannel, which does their work when it is called by their names; the original's does not.
	ReferencePlugins bool `json:"referencePlugins,omitempty"`

	// NoEtcd and NoAgents leave out the respective processes; they can be started later.
	NoEtcd   bool `json:"noEtcd,omitempty"`
	NoAgents bool `json:"noAgents,omitempty"`
}

// DefaultBase is the directory that holds labs, one directory each.
const DefaultBase = "/run/weft-lab"

// DefaultConfig is the network configuration of a lab that names none: vxlan with DirectRouting, and
// nftables, which unlike iptables needs no module that a machine may not have loaded.
func DefaultConfig(fam string) string {
	v4 := `"Network":"10.244.0.0/16"`
	v6 := `"EnableIPv6":true,"IPv6Network":"fd24::/48"`
	nets := v4
	switch fam {
	case Dual:
		nets = v4 + "," + v6
	case IPv6:
		nets = `"EnableIPv4":false,` + v6
	}
	return "{" + nets + `,"EnableNFTables":true,"Backend":{"Type":"vxlan","DirectRouting":true}}`
}

// Names of nodes become device names (IFNAMSIZ leaves 15 bytes), host names and directories; those of
// pods and labs directories only.
var (
	nodeForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,13}[A-Za-z0-9])?$`)
	nameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
)

// reserved are the machines that every lab has.
var reserved = []string{routerName, etcdName}

const (
	routerName = "router"
	etcdName   = "etcd"
)

// withDefaults fills in what is unset and reports every problem at once.
func (o Options) withDefaults() (Options, error) {
	o.Name = cmp.Or(o.Name, "default")
	o.Base = cmp.Or(o.Base, DefaultBase)
	o.Family = cmp.Or(o.Family, IPv4)
	o.MTU = cmp.Or(o.MTU, 1500)
	o.Config = cmp.Or(o.Config, DefaultConfig(o.Family))
	var errs []error
	if !slices.Contains([]string{IPv4, IPv6, Dual}, o.Family) {
		errs = append(errs, fmt.Errorf("family %q: must be %s, %s or %s", o.Family, IPv4, IPv6, Dual))
	}
	if o.MTU < 1280 || o.MTU > 65535 {
		errs = append(errs, fmt.Errorf("mtu %d: must be between 1280 and 65535", o.MTU))
	}
	if !json.Valid([]byte(o.Config)) {
		errs = append(errs, errors.New("config: not JSON"))
	}
	errs = append(errs, o.checkNames(), o.findBinaries())
	return o, errors.Join(errs...)
}

func (o Options) checkNames() error {
	var errs []error
	if !nameForm.MatchString(o.Name) {
		errs = append(errs, fmt.Errorf("lab name %q: letters, digits and inner hyphens only, 63 at most", o.Name))
	}
	seen := map[string]bool{}
	for _, n := range o.nodes() {
		switch {
		case !nodeForm.MatchString(n):
			errs = append(errs, fmt.Errorf("node name %q: letters, digits and inner hyphens only, 15 at most", n))
		case slices.Contains(reserved, n):
			errs = append(errs, fmt.Errorf("node name %q is taken by the lab itself", n))
		case seen[n]:
			errs = append(errs, fmt.Errorf("node name %q occurs twice", n))
		}
		seen[n] = true
	}
	if len(seen) == 0 || len(seen) > 200 || len(o.Segments) > 250 {
		errs = append(errs, errors.New("a lab has 1 to 200 nodes on up to 250 segments"))
	}
	for n := range o.FlanneldOn {
		if !seen[n] {
			errs = append(errs, fmt.Errorf("flanneld-on: no node is called %q", n))
		}
	}
	return errors.Join(errs...)
}

// findBinaries makes the paths of binaries absolute, since agents run with another working directory.
func (o *Options) findBinaries() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	o.Weft = cmp.Or(o.Weft, self)
	o.Flanneld = cmp.Or(o.Flanneld, filepath.Join(filepath.Dir(self), "flanneld"))
	o.Flannel = cmp.Or(o.Flannel, filepath.Join(filepath.Dir(self), "flannel"))
	on := map[string]string{}
	var errs []error
	absolute := func(path string) string {
		abs, err := filepath.Abs(path)
		if err == nil {
			_, err = os.Stat(abs)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("binary: %w", err))
		}
		return abs
	}
	o.Weft, o.Flanneld, o.Flannel = absolute(o.Weft), absolute(o.Flanneld), absolute(o.Flannel)
	for n, path := range o.FlanneldOn {
		on[n] = absolute(path)
	}
	o.FlanneldOn = on
	return errors.Join(errs...)
}

func (o Options) nodes() []string { return slices.Concat(o.Segments...) }

// A port is how a machine is plugged in: its addresses and those of the router on the same segment.
type port struct {
	Segment string // name of the router's bridge
	Addr    family.Pair[netip.Prefix]
	Gateway family.Pair[netip.Addr]
}

// ports returns the port of every machine except the router.
func (o Options) ports() map[string]port {
	ports := map[string]port{etcdName: o.port(etcdSegment, 2)}
	host := 10 // unique in the whole lab, so that an address tells the node
	for s, nodes := range o.Segments {
		for _, n := range nodes {
			ports[n] = o.port(s, host)
			host++
		}
	}
	return ports
}

// etcdSegment is the number of the segment that etcd has for itself.
const etcdSegment = 255

// port returns the port of one host: 172.31.SEGMENT.HOST/24 and fd31:0:0:SEGMENT::HOST/64.
func (o Options) port(segment, host int) port {
	v4 := func(h int) netip.Addr { return netip.AddrFrom4([4]byte{172, 31, byte(segment), byte(h)}) }
	v6 := func(h int) netip.Addr {
		return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x31, 7: byte(segment), 15: byte(h)})
	}
	p := port{Segment: fmt.Sprintf("seg%d", segment)}
	if o.Family != IPv6 {
		p.Addr.V4, p.Gateway.V4 = netip.PrefixFrom(v4(host), 24), v4(1)
	}
	if o.Family != IPv4 {
		p.Addr.V6, p.Gateway.V6 = netip.PrefixFrom(v6(host), 64), v6(1)
	}
	return p
}
