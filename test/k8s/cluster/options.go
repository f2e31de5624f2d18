// Package cluster makes a real Kubernetes cluster on one machine: etcd, kube-apiserver, controller manager and
// scheduler, and per node a real containerd, kubelet and kube-proxy. Its nodes are those of a lab.
//
//	cp 172.31.0.10 --+
//	n1 172.31.0.11 --+-- seg0 | router | seg1 --+-- n3 172.31.1.13
//	n2 172.31.0.12 --+
//
// Nothing needs systemd, Docker, a registry or the outside, and nothing outside the nodes' namespaces is
// touched, save for the directory that the lab lies in and one cgroup per cluster.
//
// The control plane runs on the first node, so that the API server reaches pods, as Kubernetes expects.
package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/lab"
)

// Options describe a cluster. The zero value is a cluster of four nodes on two segments.
type Options struct {
	Name     string     `json:"name"`     // default "k8s"
	Segments [][]string `json:"segments"` // node names per L2 segment; the first is the control plane's
	Idle     []string   `json:"idle"`     // of these, machines that are switched on later
	Family   string     `json:"family"`   // lab.IPv4 (default) or lab.Dual
	Proxy    string     `json:"proxy"`    // kube-proxy's mode: nftables (default), iptables or none

	PodCIDRs     []string `json:"podCIDRs"`     // default 10.244.0.0/16, and fd00:10:244::/56
	ServiceCIDRs []string `json:"serviceCIDRs"` // default 10.96.0.0/16, and fd00:10:96::/112

	// ReferencePlugins puts the CNI plugins of containernetworking-plugins on every node. A network whose
	// plugin needs none should be tested without.
	ReferencePlugins bool     `json:"referencePlugins"`
	Images           []string `json:"images"` // archives that every node has from the start

	Cache string `json:"cache"` // where build.sh puts programs; default Cache()
}

// Cache returns where programs and images lie that outlive a cluster.
func Cache() string { return cmp.Or(os.Getenv("WEFT_K8S_CACHE"), "/var/cache/weft-k8s") }

// Base is the directory of all clusters. Memory file systems are too small for images, and the lab's
// nodes see /etc, /opt, /run and /var/lib of their own.
const Base = "/var/cache/weft-k8s/clusters"

// Programs are what Up starts, besides those of this repository and of the distribution.
var Programs = []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl", "coredns"}

// PauseImage is the sandbox image of every node.
const PauseImage = "weft.invalid/pause:1"

func (o Options) withDefaults() (Options, error) {
	o.Name = cmp.Or(o.Name, "k8s")
	o.Family = cmp.Or(o.Family, lab.IPv4)
	o.Proxy = cmp.Or(o.Proxy, "nftables")
	o.Cache = cmp.Or(o.Cache, Cache())
	if len(o.Segments) == 0 {
		o.Segments = [][]string{{"cp", "n1", "n2"}, {"n3"}}
	}
	dual := o.Family == lab.Dual
	if len(o.PodCIDRs) == 0 {
		o.PodCIDRs = both(dual, "10.244.0.0/16", "fd00:10:244::/56")
	}
	if len(o.ServiceCIDRs) == 0 {
		o.ServiceCIDRs = both(dual, "10.96.0.0/16", "fd00:10:96::/112")
	}
	var errs []error
	if !slices.Contains([]string{lab.IPv4, lab.Dual}, o.Family) {
		errs = append(errs, fmt.Errorf("family %q: must be %s or %s", o.Family, lab.IPv4, lab.Dual))
	}
	if !slices.Contains([]string{"nftables", "iptables", "none"}, o.Proxy) {
		errs = append(errs, fmt.Errorf("proxy %q: must be nftables, iptables or none", o.Proxy))
	}
	for _, p := range Programs {
		if _, err := os.Stat(o.program(p)); err != nil {
			errs = append(errs, fmt.Errorf("%w (test/k8s/build/build.sh makes it)", err))
		}
	}
	return o, errors.Join(errs...)
}

func both(dual bool, v4, v6 string) []string {
	if dual {
		return []string{v4, v6}
	}
	return []string{v4}
}

func (o Options) program(name string) string { return filepath.Join(o.Cache, "bin", name) }

// serviceAddr returns the n-th address of the service range; the first is the API server's.
func (o Options) serviceAddr(n byte) string {
	p, err := netip.ParsePrefix(o.ServiceCIDRs[0])
	if err != nil {
		return "" // the API server says what is wrong with it
	}
	raw := p.Masked().Addr().AsSlice()
	raw[len(raw)-1] += n
	a, _ := netip.AddrFromSlice(raw)
	return a.String()
}

// DNS returns the address of the cluster's name server.
func (o Options) DNS() string { return o.serviceAddr(10) }

func (o Options) podCIDR() string     { return strings.Join(o.PodCIDRs, ",") }
func (o Options) serviceCIDR() string { return strings.Join(o.ServiceCIDRs, ",") }
