// Package options reads what the operator says to the daemon on the command line and in the environment
// (interop 14.1). Everything is checked here, all problems are returned at once, and nobody after it asks
// whether a value is sane.
package options

import (
	"log/slog"
	"net/netip"
	"net/url"
	"time"

	"github.com/weftnet/weft/internal/secret"
	"github.com/weftnet/weft/internal/uplink"
)

// Options are the daemon's checked options.
type Options struct {
	Etcd   Etcd
	Kube   Kube
	Uplink uplink.Options // what flags say of it; annotations and pod networks are added by others

	NodeName string // empty: unknown

	SubnetFile   string
	SnapshotFile string // last complete set of leases and configuration
	StatusSocket string // unix socket that `weft status` asks

	CNIConfFile   string // where to install the CNI configuration; empty: nowhere
	CNIConfSource string

	LeaseRenewMargin time.Duration
	IPMasq           bool
	RandomFully      bool // source ports of masqueraded connections
	ForwardRules     bool
	BlackholeRoute   bool
	ServiceRanges    []netip.Prefix // to tell clashes with the pod network; no node of Kubernetes may have such an address

	FirewallResync time.Duration // --iptables-resync; where it was given, Resync is no longer than this
	Resync         time.Duration // between full passes that nothing asked for

	Healthz      netip.AddrPort // port 0: off
	NotifySocket string         // systemd's; empty: none

	LogLevel  slog.Level
	LogFormat string // "text" or "json"

	Version bool // print the version to stderr and exit with status 0

	// Notes are remarks for the log: accepted options that have no effect.
	Notes []string
	// Given are the settings that were made, in the order of the usage text, without secrets.
	Given []Setting
}

// Etcd says how to reach etcd.
type Etcd struct {
	Endpoints                 []string
	Prefix                    string // cleaned as a path
	KeyFile, CertFile, CAFile string
	Username                  string
	Password                  secret.Text
}

// Kube says how to use Kubernetes as the store.
type Kube struct {
	Enabled bool // --kube-subnet-mgr: instead of etcd

	APIURL           *url.URL // nil: from the kubeconfig file or the cluster
	KubeconfigFile   string
	AnnotationPrefix string // as keys begin: "flannel.alpha.coreos.com/"
	NetConfFile      string
	SetNetworkReady  bool // --set-node-network-unavailable: maintain the node condition

	PodName, PodNamespace string // to find out the node name where that is unknown
}

// A Setting is an option that was set.
type Setting struct {
	Name   string // "--public-ip" or "FLANNELD_PUBLIC_IP"
	Values []string
}

// LogValue implements slog.LogValuer with the settings that were made, secrets hidden.
func (o Options) LogValue() slog.Value {
	attrs := make([]slog.Attr, len(o.Given))
	for i, s := range o.Given {
		if len(s.Values) == 1 {
			attrs[i] = slog.String(s.Name, s.Values[0])
		} else {
			attrs[i] = slog.Any(s.Name, s.Values)
		}
	}
	return slog.GroupValue(attrs...)
}
