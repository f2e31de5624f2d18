package conf

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// A Bridge is the configuration of the bridge plugin, checked.
type Bridge struct {
	Network      string // name of the CNI network
	CNIVersion   string
	Device       string // name of the bridge
	Gateway      bool   // the bridge holds the gateway's address and the host forwards
	DefaultRoute bool   // pods get a default route through it
	ForceAddress bool   // another address on the bridge goes at once, live pods or not
	Masquerade   bool   // SNAT what leaves the pods' subnet
	MTU          int    // 0: the kernel's default
	Hairpin      bool
	Promisc      bool
	AntiSpoof    bool // frames leave a pod with its own MAC only
	DAD          bool // wait for IPv6 duplicate address detection
	Isolated     bool // ports cannot talk to each other
	MAC          net.HardwareAddr
	DNS          types.DNS

	IPAMType string    // empty: layer 2 only
	IPAM     HostLocal // for type host-local

	Raw              []byte // all of it, for an IPAM plugin that is a program
	PrevResult       json.RawMessage
	ValidAttachments []types.GCAttachment
}

// OtherIPAM says whether the addresses come from a plugin that is a program.
func (b Bridge) OtherIPAM() bool { return b.IPAMType != "" && b.IPAMType != "host-local" }

// A rawBridge is what the field writes. Pointers tell unset from zero.
type rawBridge struct {
	Name             string               `json:"name"`
	CNIVersion       string               `json:"cniVersion"`
	BrName           string               `json:"bridge"`
	IsGW             bool                 `json:"isGateway"`
	IsDefaultGW      bool                 `json:"isDefaultGateway"`
	ForceAddress     bool                 `json:"forceAddress"`
	IPMasq           bool                 `json:"ipMasq"`
	IPMasqBackend    *string              `json:"ipMasqBackend"`
	MTU              int                  `json:"mtu"`
	HairpinMode      bool                 `json:"hairpinMode"`
	PromiscMode      bool                 `json:"promiscMode"`
	Vlan             int                  `json:"vlan"`
	VlanTrunk        []json.RawMessage    `json:"vlanTrunk"`
	PreserveDefault  bool                 `json:"preserveDefaultVlan"`
	MacSpoofChk      bool                 `json:"macspoofchk"`
	EnableDad        bool                 `json:"enabledad"`
	DisableInterface bool                 `json:"disableContainerInterface"`
	PortIsolation    bool                 `json:"portIsolation"`
	DNS              types.DNS            `json:"dns"`
	IPAM             json.RawMessage      `json:"ipam"`
	PrevResult       json.RawMessage      `json:"prevResult"`
	ValidAttachments []types.GCAttachment `json:"cni.dev/valid-attachments"`
	RuntimeConfig    struct {
		Mac string `json:"mac"`
	} `json:"runtimeConfig"`
	Args struct {
		Cni struct {
			Mac string `json:"mac"`
		} `json:"cni"`
	} `json:"args"`
}

var bridgeKeys = []string{
	"bridge", "isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend", "mtu", "hairpinMode",
	"promiscMode", "vlan", "vlanTrunk", "preserveDefaultVlan", "macspoofchk", "enabledad",
	"disableContainerInterface", "portIsolation",
}

// commonKeys may stand in any plugin's configuration.
var commonKeys = []string{
	"name", "cniVersion", "type", "capabilities", "args", "dns", "ipam", "runtimeConfig", "prevResult",
}

// ParseBridge reads the configuration of type bridge for ADD and CHECK. args is CNI_ARGS. A key that is
// not supported is an error that names it.
func ParseBridge(stdin []byte, args string) (Bridge, error) {
	b, raw, err := readBridge(stdin, args)
	if err != nil {
		return b, err
	}
	var problems []string
	problem := func(bad bool, format string, args ...any) {
		if bad {
			problems = append(problems, fmt.Sprintf(format, args...))
		}
	}
	if unknown, err := unknownKeys(stdin, commonKeys, bridgeKeys); err != nil {
		return b, err
	} else if len(unknown) > 0 {
		problem(true, "%s: not supported by this bridge", strings.Join(unknown, ", "))
	}
	problem(raw.Vlan != 0, "vlan: not supported, remove it or name another delegate.type")
	problem(len(raw.VlanTrunk) > 0, "vlanTrunk: not supported, remove it or name another delegate.type")
	problem(raw.DisableInterface, "disableContainerInterface: not supported")
	problem(raw.HairpinMode && raw.PromiscMode, "hairpinMode and promiscMode: only one of them works at a time")
	problem(raw.MTU < 0 || raw.MTU > 65535, "mtu: %d is not an MTU", raw.MTU)
	problem(!validDevice(b.Device), "bridge: %q is not a device name", b.Device)
	if raw.IPMasqBackend != nil {
		known := []string{"", "nftables", "iptables"} // iptables is rendered in nftables: the packets see no difference
		problem(!slices.Contains(known, *raw.IPMasqBackend), "ipMasqBackend: %q is not known", *raw.IPMasqBackend)
	}
	if len(problems) > 0 {
		return b, invalid("network %q: %s", b.Network, strings.Join(problems, "; "))
	}
	if b.IPAMType == "host-local" {
		if unknown, err := unknownKeys(raw.IPAM, hostLocalKeys); err != nil || len(unknown) > 0 {
			return b, invalid("network %q: ipam: %s: not supported by this host-local", b.Network, strings.Join(unknown, ", "))
		}
		return b, b.IPAM.Check()
	}
	return b, nil
}

// ReadBridge reads the configuration for DEL and GC: it takes what it understands, because whatever was
// once added must be removable, and so must what could not be.
func ReadBridge(stdin []byte) (Bridge, error) {
	b, _, err := readBridge(stdin, "")
	if b.Raw != nil && (b.IPAMType != "host-local" || b.IPAM.Dir != "") {
		err = nil
	}
	return b, err
}

func readBridge(stdin []byte, args string) (Bridge, rawBridge, error) {
	raw := rawBridge{BrName: "cni0"}
	if err := decode(stdin, &raw); err != nil {
		return Bridge{}, raw, types.NewError(types.ErrDecodingFailure, "bridge configuration: "+err.Error(), "")
	}
	b := Bridge{
		Network: raw.Name, CNIVersion: raw.CNIVersion, Device: raw.BrName,
		Gateway: raw.IsGW || raw.IsDefaultGW, DefaultRoute: raw.IsDefaultGW, ForceAddress: raw.ForceAddress,
		Masquerade: raw.IPMasq, MTU: raw.MTU, Hairpin: raw.HairpinMode, Promisc: raw.PromiscMode,
		AntiSpoof: raw.MacSpoofChk, DAD: raw.EnableDad, Isolated: raw.PortIsolation,
		DNS: raw.DNS, Raw: stdin, PrevResult: raw.PrevResult, ValidAttachments: raw.ValidAttachments,
	}
	mac := raw.RuntimeConfig.Mac
	if mac == "" {
		mac = raw.Args.Cni.Mac
	}
	if mac == "" {
		mac = argument(args, "MAC")
	}
	var macErr error
	if mac != "" {
		if b.MAC, macErr = net.ParseMAC(mac); macErr != nil || len(b.MAC) != 6 {
			macErr = invalid("mac: %q is not an Ethernet address", mac)
		}
	}
	var ipam struct {
		Type string `json:"type"`
	}
	if len(raw.IPAM) > 0 {
		if err := decode(raw.IPAM, &ipam); err != nil {
			return Bridge{}, raw, types.NewError(types.ErrDecodingFailure, "ipam: "+err.Error(), "")
		}
	}
	b.IPAMType = ipam.Type
	var err error
	if b.IPAMType == "host-local" {
		b.IPAM, err = ReadHostLocal(stdin, args)
	}
	if macErr != nil {
		err = macErr
	}
	return b, raw, err
}

// argument returns a value of CNI_ARGS, which reads KEY=value;KEY=value.
func argument(args, key string) string {
	for pair := range strings.SplitSeq(args, ";") {
		if k, v, ok := strings.Cut(pair, "="); ok && k == key {
			return v
		}
	}
	return ""
}

// unknownKeys returns the keys of a JSON object that are in none of the lists, in order. Keys that
// another specification owns ("cni.dev/...") are nobody's business here.
func unknownKeys(object []byte, known ...[]string) ([]string, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(object, &m); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	var unknown []string
	for key := range m {
		if !slices.Contains(slices.Concat(known...), key) && !strings.Contains(key, "/") {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	return unknown, nil
}

// validDevice follows dev_valid_name of the kernel.
func validDevice(name string) bool {
	return name != "" && len(name) <= 15 && name != "." && name != ".." && !strings.ContainsAny(name, "/: \t\n\v\f\r\x00")
}
