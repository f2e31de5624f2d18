// Package conf turns what a runtime hands to the plugin, together with subnet.env, into checked values.
// It opens nothing: everything in it is a function of its arguments.
package conf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/subnetfile"
)

// Where the original keeps what it needs for DEL.
const defaultDataDir = "/var/lib/cni/flannel"

// A Flannel is the configuration of the plugin itself.
type Flannel struct {
	CNIVersion       string               `json:"cniVersion"`
	Name             string               `json:"name"`
	Type             string               `json:"type"`
	SubnetFile       string               `json:"subnetFile"`
	DataDir          string               `json:"dataDir"`
	Delegate         map[string]any       `json:"delegate"`
	IPAM             map[string]any       `json:"ipam"`
	RuntimeConfig    map[string]any       `json:"runtimeConfig"`
	PrevResult       json.RawMessage      `json:"prevResult"`
	ValidAttachments []types.GCAttachment `json:"cni.dev/valid-attachments"`
}

// ParseFlannel reads the plugin's configuration and fills in the defaults.
func ParseFlannel(stdin []byte) (Flannel, error) {
	f := Flannel{}
	if err := decode(stdin, &f); err != nil {
		return f, types.NewError(types.ErrDecodingFailure, "network configuration: "+err.Error(), "")
	}
	if f.SubnetFile == "" {
		f.SubnetFile = subnetfile.DefaultPath
	}
	if f.DataDir == "" {
		f.DataDir = defaultDataDir
	}
	return f, nil
}

// decode reads one JSON value and keeps numbers as they are written, since they are passed on.
func decode(raw []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

// CheckEnv says what subnet.env lacks for a pod to be attached. All problems at once.
func CheckEnv(env subnetfile.Lists) error {
	var errs []error
	if len(env.Network.V4)+len(env.Network.V6) == 0 {
		errs = append(errs, errors.New("no FLANNEL_NETWORK and no FLANNEL_IPV6_NETWORK"))
	}
	if len(env.Subnet.V4)+len(env.Subnet.V6) == 0 {
		errs = append(errs, errors.New("no FLANNEL_SUBNET and no FLANNEL_IPV6_SUBNET"))
	}
	for _, f := range family.All() {
		if n := len(env.Subnet.Of(f)); n > 1 {
			errs = append(errs, fmt.Errorf("%d %s subnets where one is needed", n, f))
		}
	}
	if env.MTU == 0 {
		errs = append(errs, errors.New("no FLANNEL_MTU"))
	}
	if !env.HasIPMasq {
		errs = append(errs, errors.New("no FLANNEL_IPMASQ"))
	}
	return errors.Join(errs...)
}

// DelegateType returns the type of plugin that does the work.
func (f Flannel) DelegateType() (string, error) {
	switch t := f.Delegate["type"].(type) {
	case nil:
		return "bridge", nil
	case string:
		return t, nil
	default:
		return "", invalid("delegate.type: %v is not a string", t)
	}
}

// DelegateConfig returns the configuration of the plugin that does the work, byte for byte as the
// original hands it over and stores it: one JSON object with sorted keys.
func (f Flannel) DelegateConfig(env subnetfile.Lists) ([]byte, error) {
	kind, err := f.DelegateType()
	if err != nil {
		return nil, err
	}
	for _, key := range []string{"name", "ipam"} {
		if _, ok := f.Delegate[key]; ok {
			return nil, invalid("delegate.%s: remove it, it is filled in here", key)
		}
	}
	if err := CheckEnv(env); err != nil {
		return nil, fmt.Errorf("%s: %w", f.SubnetFile, err)
	}
	d := map[string]any{"ipMasq": !env.IPMasq, "mtu": env.MTU, "type": kind}
	if kind == "bridge" {
		d["isGateway"] = true
	}
	for k, v := range f.Delegate {
		d[k] = v
	}
	d["name"] = f.Name
	if f.CNIVersion != "" {
		d["cniVersion"] = f.CNIVersion
	}
	if f.RuntimeConfig != nil {
		d["runtimeConfig"] = f.RuntimeConfig
	}
	if d["ipam"], err = f.ipam(env); err != nil {
		return nil, err
	}
	return json.Marshal(d)
}

// Bare returns the configuration of a delegate of type bridge as far as it is known without subnet.env:
// enough to find what was made with it.
func (f Flannel) Bare() ([]byte, error) {
	ipam := map[string]any{"type": "host-local"}
	for k, v := range f.IPAM {
		ipam[k] = v
	}
	delete(ipam, "ranges")
	delete(ipam, "routes")
	d := map[string]any{"type": "bridge"}
	for k, v := range f.Delegate {
		d[k] = v
	}
	d["name"], d["ipam"], d["cniVersion"] = f.Name, ipam, f.CNIVersion
	d["ipMasq"] = true // nobody knows: there may be rules
	return json.Marshal(d)
}

func (f Flannel) ipam(env subnetfile.Lists) (map[string]any, error) {
	m := map[string]any{"type": "host-local"}
	for k, v := range f.IPAM {
		m[k] = v
	}
	var routes []any
	switch own := f.IPAM["routes"].(type) {
	case nil:
	case []any:
		routes = append(routes, own...)
	default:
		return nil, invalid("ipam.routes: not a list")
	}
	var ranges [][]map[string]string
	for _, fam := range family.All() {
		for _, s := range env.Subnet.Of(fam) {
			ranges = append(ranges, []map[string]string{{"subnet": s.String()}})
		}
		for _, n := range env.Network.Of(fam) {
			routes = append(routes, map[string]string{"dst": n.String()})
		}
	}
	m["ranges"], m["routes"] = ranges, routes
	return m, nil
}

func invalid(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}
