package options

import (
	"strings"
	"time"

	"github.com/weftnet/weft/internal/secret"
)

// A flagSpec is one flag. Names, defaults and meaning of the original's flags are part of the contract.
type flagSpec struct {
	name, def, usage string
	arg              string // what the usage text calls the value; empty for switches
	set              func(string) error

	bool, repeatable bool
	secret           bool
	noEnv            bool
	alsoEnv          string // a variable without the FLANNELD_ prefix, weaker than the one with it
	ignored          string // why it has no effect
}

// env returns the variables that can stand for the flag, the strongest first.
func (f flagSpec) env() []string {
	if f.noEnv {
		return nil
	}
	names := []string{"FLANNELD_" + strings.ToUpper(strings.ReplaceAll(f.name, "-", "_"))}
	if f.alsoEnv != "" {
		names = append(names, f.alsoEnv)
	}
	return names
}

func (f flagSpec) shown(vs []string) []string {
	if !f.secret {
		return redactURLs(vs)
	}
	return []string{secret.Hidden}
}

// A group is a heading of the usage text and the flags below it.
type group struct {
	title string
	flags []flagSpec
}

func table(o *Options) []group {
	return []group{
		{"Store: etcd", etcdFlags(&o.Etcd, o)},
		{"Store: Kubernetes", kubeFlags(o)},
		{"External interface; at most one way to choose it is needed", uplinkFlags(o)},
		{"Files", fileFlags(o)},
		{"Firewall and routes", firewallFlags(o)},
		{"Process", processFlags(o)},
	}
}

func etcdFlags(e *Etcd, o *Options) []flagSpec {
	return []flagSpec{
		{name: "etcd-endpoints", arg: "URL,...", def: "http://127.0.0.1:4001,http://127.0.0.1:2379", set: endpoints(&e.Endpoints),
			usage: "etcd servers"},
		{name: "etcd-prefix", arg: "KEY", def: "/coreos.com/network", set: keyPrefix(&e.Prefix),
			usage: "key below which the network lives; each network has its own"},
		{name: "etcd-cafile", arg: "FILE", set: text(&e.CAFile), usage: "certificate authority of the servers; the system's if empty"},
		{name: "etcd-certfile", arg: "FILE", set: text(&e.CertFile), usage: "client certificate"},
		{name: "etcd-keyfile", arg: "FILE", set: text(&e.KeyFile), usage: "key of the client certificate"},
		{name: "etcd-username", arg: "NAME", set: text(&e.Username), usage: "user"},
		{name: "etcd-password", arg: "TEXT", set: hidden(&e.Password), secret: true,
			usage: "password; better given in the environment, where ps does not show it"},
		{name: "subnet-lease-renew-margin", arg: "MINUTES", def: "60", set: units(&o.LeaseRenewMargin, time.Minute, 1, 1439),
			usage: "renew the lease when it has this long to live, 1 to 1439"},
	}
}

func kubeFlags(o *Options) []flagSpec {
	k := &o.Kube
	return []flagSpec{
		{name: "kube-subnet-mgr", def: "false", bool: true, set: boolean(&k.Enabled), usage: "take subnets from Kubernetes Node objects instead of etcd"},
		{name: "kube-api-url", arg: "URL", set: apiURL(&k.APIURL), usage: "API server; not needed inside a cluster"},
		{name: "kubeconfig-file", arg: "FILE", set: text(&k.KubeconfigFile), usage: "kubeconfig; not needed inside a cluster"},
		{name: "kube-annotation-prefix", arg: "PREFIX", def: "flannel.alpha.coreos.com", set: annotationPrefix(&k.AnnotationPrefix),
			usage: "begin annotations with this: a domain, or domain/name"},
		{name: "net-config-path", arg: "FILE", def: "/etc/kube-flannel/net-conf.json", set: file(&k.NetConfFile), usage: "network configuration"},
		{name: "set-node-network-unavailable", def: "true", bool: true, set: boolean(&k.SetNetworkReady),
			usage: "set the node's condition NetworkUnavailable to false once ready"},
		{name: "node-name", arg: "NAME", set: text(&o.NodeName), alsoEnv: "NODE_NAME", usage: "name of this node, with any store"},
	}
}

func uplinkFlags(o *Options) []flagSpec {
	u := &o.Uplink
	return []flagSpec{
		{name: "iface", arg: "NAME|ADDRESS", repeatable: true, set: appendTo(&u.Iface),
			usage: "device, or an address on it; may be repeated, the first that fits is used"},
		{name: "iface-regex", arg: "REGEXP", repeatable: true, set: expressions(&u.IfaceRegex),
			usage: "device with an address that matches, or else a name that does; tried after --iface; may be repeated"},
		{name: "iface-can-reach", arg: "ADDRESS", set: anyAddress(&u.CanReach), usage: "device through which the route to this address leaves; tried last"},
		{name: "public-ip", arg: "ADDRESS", set: address4(&u.Public.V4),
			usage: "IPv4 address that peers send to; without an --iface flag it also chooses the device"},
		{name: "public-ipv6", arg: "ADDRESS", set: address6(&u.Public.V6), usage: "IPv6 address that peers send to"},
	}
}

func fileFlags(o *Options) []flagSpec {
	return []flagSpec{
		{name: "subnet-file", arg: "FILE", def: "/run/flannel/subnet.env", set: file(&o.SubnetFile), usage: "the node's subnet, written for the CNI plugin"},
		{name: "snapshot-file", arg: "FILE", set: text(&o.SnapshotFile),
			usage: "last known network, to start from while the store is down; default: in /var/lib/flannel, named after --subnet-file"},
		{name: "status-socket", arg: "FILE", set: text(&o.StatusSocket), usage: "unix socket for weft status; default: beside --subnet-file, ending in .sock"},
		{name: "cni-conf-file", arg: "FILE", set: text(&o.CNIConfFile),
			usage: "install the CNI configuration here once pods can have a network; empty: leave that to others"},
		{name: "cni-conf-source", arg: "FILE", def: "/etc/kube-flannel/cni-conf.json", set: file(&o.CNIConfSource),
			usage: "CNI configuration to install"},
	}
}

func firewallFlags(o *Options) []flagSpec {
	return []flagSpec{
		{name: "ip-masq", def: "false", bool: true, set: boolean(&o.IPMasq), usage: "masquerade what leaves the network"},
		{name: "ip-masq-fully-random-disable", def: "false", bool: true, set: negated(&o.RandomFully), usage: "do not choose masqueraded ports at random"},
		{name: "iptables-forward-rules", def: "true", bool: true, set: boolean(&o.ForwardRules), usage: "accept forwarded packets of the network, in both firewall modes"},
		{name: "iptables-resync", arg: "SECONDS", def: "5", set: units(&o.FirewallResync, time.Second, 1, maxSeconds),
			usage: "if given, make a full pass at least this often; what others change is seen at once anyway"},
		{name: "ip-blackhole-route", def: "false", bool: true, set: boolean(&o.BlackholeRoute), usage: "drop what is sent to addresses of our subnet that no pod has"},
		{name: "service-range", arg: "CIDR", repeatable: true, set: prefixes(&o.ServiceRanges),
			usage: "range of the cluster's services: a pod network that overlaps it is told at start, and with --kube-subnet-mgr a node that announces an address of it is refused; may be repeated"},
		{name: "resync", arg: "DURATION", def: "30s", set: atLeast(&o.Resync, time.Second), usage: "make a full pass at least this often"},
	}
}

func processFlags(o *Options) []flagSpec {
	p := &processValues{o: o}
	return []flagSpec{
		{name: "healthz-ip", arg: "ADDRESS", def: "0.0.0.0", set: p.healthzIP, usage: "serve /healthz, /readyz and /metrics on this address"},
		{name: "healthz-port", arg: "PORT", def: "0", set: p.healthzPort, usage: "and this port; 0: not at all"},
		{name: "log-format", arg: "text|json", def: "text", set: oneOf(&o.LogFormat, "text", "json"), usage: "form of log lines, which go to stderr"},
		{name: "v", arg: "LEVEL", def: "0", set: p.verbosity, usage: "0: normal log, 1 and more: debug"},
		{name: "vmodule", arg: "PATTERN=LEVEL,...", set: discard, ignored: "levels per source file are klog's", usage: "accepted, no effect"},
		{name: "log_backtrace_at", arg: "FILE:LINE", set: discard, ignored: "backtraces at a line are klog's", usage: "accepted, no effect"},
		// FLANNELD_VERSION is what images and scripts call the version itself.
		{name: "version", def: "false", bool: true, noEnv: true, set: boolean(&o.Version), usage: "print the version to stderr and exit"},
	}
}
