package options

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/weftnet/weft/internal/snapshot"
	"github.com/weftnet/weft/internal/subnetfile"
)

// maxSocketPath is the room for a path in a unix socket address, sun_path, less its closing zero byte.
const maxSocketPath = 108 - 1

// finish reads the rest of the environment, derives defaults from other options, and checks what takes
// more than one option.
func (o *Options) finish(getenv func(string) string) []error {
	var errs []error
	problem := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	o.Kube.PodName, o.Kube.PodNamespace = getenv("POD_NAME"), getenv("POD_NAMESPACE")
	o.NotifySocket = getenv("NOTIFY_SOCKET")
	if v := getenv("CONT_WHEN_CACHE_NOT_READY"); v != "" {
		if on, err := strconv.ParseBool(v); err != nil {
			problem("CONT_WHEN_CACHE_NOT_READY: %q is neither true nor false", v)
		} else if on {
			o.Notes = append(o.Notes, "CONT_WHEN_CACHE_NOT_READY has no effect: nothing waits for a cache")
		}
	}
	if getenv("EVENT_QUEUE_DEPTH") != "" {
		o.Notes = append(o.Notes, "EVENT_QUEUE_DEPTH has no effect: there is no queue of events")
	}

	if a := apiService(getenv("KUBERNETES_PORT")); a.IsValid() && o.Kube.Enabled {
		o.ServiceRanges = append(o.ServiceRanges, netip.PrefixFrom(a, a.BitLen())) // all that a pod knows of the range
	}
	if slices.ContainsFunc(o.Given, func(s Setting) bool { return s.Name == "--iptables-resync" || s.Name == "FLANNELD_IPTABLES_RESYNC" }) {
		o.Resync = min(o.Resync, o.FirewallResync)
	}
	if o.SnapshotFile == "" {
		o.SnapshotFile = snapshot.Path(o.SubnetFile)
	}
	if o.StatusSocket == "" {
		o.StatusSocket = Socket(o.SubnetFile)
	}
	if n := len(o.StatusSocket); n > maxSocketPath {
		problem("--status-socket: %q has %d bytes, a socket path has room for %d; name a shorter one", o.StatusSocket, n, maxSocketPath)
	}
	if o.SnapshotFile == o.SubnetFile {
		problem("--snapshot-file: %q is the --subnet-file; name another one", o.SnapshotFile)
	}
	if o.Etcd.CertFile != "" && o.Etcd.KeyFile == "" {
		errs = append(errs, errors.New("--etcd-certfile: needs --etcd-keyfile, the key of the certificate"))
	}
	if o.Etcd.KeyFile != "" && o.Etcd.CertFile == "" {
		errs = append(errs, errors.New("--etcd-keyfile: needs --etcd-certfile, the certificate of the key"))
	}
	if o.Etcd.Username != "" && o.Etcd.Password.Reveal() == "" && !o.Kube.Enabled {
		errs = append(errs, errors.New("--etcd-username: needs --etcd-password, the password of the user"))
	}
	if o.Etcd.Password.Reveal() != "" && o.Etcd.Username == "" {
		o.Notes = append(o.Notes, "--etcd-password has no effect: there is no --etcd-username")
	}
	return errs
}

// Socket returns where the agent with that subnet file listens for weft status.
func Socket(subnetFile string) string {
	return subnetfile.Socket(subnetFile)
}

// TunnelFile returns where the agent with that subnet file remembers its tunnel for the next process: beside
// the file, so that it is gone after a reboot like the device.
func TunnelFile(subnetFile string) string {
	return strings.TrimSuffix(subnetFile, ".env") + ".tunnel.json"
}

// apiService returns the address that the API server has among the cluster's services, from what the kubelet tells pods:
// tcp://10.96.0.1:443. Operators set KUBERNETES_SERVICE_HOST to a node's address, to do without kube-proxy; nobody has a
// use for doing that to this.
func apiService(port string) netip.Addr {
	u, err := url.Parse(port)
	if err != nil {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return netip.Addr{}
	}
	return a
}
