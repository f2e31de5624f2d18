package options

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/secret"
	"github.com/weftnet/weft/internal/uplink"
)

// env makes a getenv of "NAME=value" texts.
func env(vars ...string) func(string) string {
	return func(name string) string {
		for _, v := range vars {
			if value, ok := strings.CutPrefix(v, name+"="); ok {
				return value
			}
		}
		return ""
	}
}

func parse(t *testing.T, args []string, vars ...string) Options {
	t.Helper()
	o, err := Parse(args, env(vars...), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func defaults() Options {
	return Options{
		Etcd: Etcd{Endpoints: []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"}, Prefix: "/coreos.com/network"},
		Kube: Kube{AnnotationPrefix: "flannel.alpha.coreos.com/", NetConfFile: "/etc/kube-flannel/net-conf.json", SetNetworkReady: true},

		SubnetFile: "/run/flannel/subnet.env", SnapshotFile: "/var/lib/flannel/run-flannel-subnet.env.snapshot.json", StatusSocket: "/run/flannel/subnet.sock",
		CNIConfSource:    "/etc/kube-flannel/cni-conf.json",
		LeaseRenewMargin: time.Hour, RandomFully: true, ForwardRules: true, FirewallResync: 5 * time.Second, Resync: 30 * time.Second,
		Healthz: netip.MustParseAddrPort("0.0.0.0:0"), LogFormat: "text",
	}
}

var compare = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}, secret.Text{}), cmpopts.IgnoreFields(Options{}, "Given")}

func TestDefaults(t *testing.T) {
	o := parse(t, nil)
	if diff := cmp.Diff(defaults(), o, compare); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if len(o.Given) != 0 {
		t.Errorf("given: %v", o.Given)
	}
}

func TestEveryFlagOfTheOriginalIsThere(t *testing.T) {
	groups := table(&Options{})
	got := map[string]string{}
	for _, g := range groups {
		for _, f := range g.flags {
			if _, twice := got[f.name]; twice {
				t.Errorf("--%s is there twice", f.name)
			}
			got[f.name] = f.def
		}
	}
	for name, def := range map[string]string{
		"etcd-endpoints": "http://127.0.0.1:4001,http://127.0.0.1:2379", "etcd-prefix": "/coreos.com/network",
		"etcd-keyfile": "", "etcd-certfile": "", "etcd-cafile": "", "etcd-username": "", "etcd-password": "",
		"iface": "", "iface-regex": "", "iface-can-reach": "", "subnet-file": "/run/flannel/subnet.env", "public-ip": "", "public-ipv6": "",
		"subnet-lease-renew-margin": "60", "ip-masq": "false", "ip-masq-fully-random-disable": "false", "kube-subnet-mgr": "false",
		"kube-api-url": "", "kubeconfig-file": "", "kube-annotation-prefix": "flannel.alpha.coreos.com",
		"net-config-path": "/etc/kube-flannel/net-conf.json", "set-node-network-unavailable": "true", "iptables-resync": "5",
		"iptables-forward-rules": "true", "ip-blackhole-route": "false", "healthz-ip": "0.0.0.0", "healthz-port": "0",
		"v": "0", "vmodule": "", "log_backtrace_at": "", "version": "false",
	} {
		if have, ok := got[name]; !ok || have != def {
			t.Errorf("--%s: there %v, default %q, want %q", name, ok, have, def)
		}
	}
}

func TestEveryFlagIsRead(t *testing.T) {
	o := parse(t, []string{
		"-etcd-endpoints=https://10.0.0.1:2379, 10.0.0.2:2379,", "--etcd-prefix", "/net//blue/", "--etcd-cafile=ca", "--etcd-certfile=crt",
		"--etcd-keyfile=key", "--etcd-username=u", "--etcd-password=p", "--iface=eth1", "--iface", "10.0.0.1", "--iface-regex=^eth",
		"--iface-can-reach=fd00::1", "--public-ip=192.0.2.1", "--public-ipv6=2001:db8::1", "--subnet-lease-renew-margin=1439", "-ip-masq",
		"--ip-masq-fully-random-disable", "--kube-subnet-mgr=true", "--kube-api-url=https://k:6443", "--kubeconfig-file=kc",
		"--kube-annotation-prefix=example.net/blue", "--net-config-path=nc", "--set-node-network-unavailable=false", "--iptables-resync=0x10",
		"--iptables-forward-rules=false", "--ip-blackhole-route", "--healthz-ip=::1", "--healthz-port=8471", "-v", "10", "--log-format=json",
		"--resync=1m", "--node-name=n1", "--subnet-file=/run/blue/subnet.env", "--snapshot-file=/var/lib/weft/snap", "--status-socket=/run/s",
		"--cni-conf-file=/etc/cni/net.d/x", "--cni-conf-source=/etc/x",
	})
	want := Options{
		Etcd: Etcd{Endpoints: []string{"https://10.0.0.1:2379", "10.0.0.2:2379"}, Prefix: "/net/blue", CAFile: "ca", CertFile: "crt",
			KeyFile: "key", Username: "u", Password: secret.New("p")},
		Kube: Kube{Enabled: true, APIURL: o.Kube.APIURL, KubeconfigFile: "kc", AnnotationPrefix: "example.net/blue-", NetConfFile: "nc"},
		Uplink: uplink.Options{Iface: []string{"eth1", "10.0.0.1"}, IfaceRegex: o.Uplink.IfaceRegex, CanReach: netip.MustParseAddr("fd00::1"),
			Public: family.Pair[netip.Addr]{V4: netip.MustParseAddr("192.0.2.1"), V6: netip.MustParseAddr("2001:db8::1")}},
		NodeName: "n1", SubnetFile: "/run/blue/subnet.env", SnapshotFile: "/var/lib/weft/snap", StatusSocket: "/run/s",
		CNIConfFile: "/etc/cni/net.d/x", CNIConfSource: "/etc/x", LeaseRenewMargin: 1439 * time.Minute, IPMasq: true, BlackholeRoute: true, FirewallResync: 16 * time.Second, Resync: 16 * time.Second,
		Healthz: netip.MustParseAddrPort("[::1]:8471"), LogLevel: slog.LevelDebug, LogFormat: "json",
	}
	if diff := cmp.Diff(want, o, compare, cmpopts.IgnoreFields(uplink.Options{}, "IfaceRegex")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if o.Kube.APIURL.String() != "https://k:6443" || len(o.Uplink.IfaceRegex) != 1 || o.Uplink.IfaceRegex[0].String() != "^eth" {
		t.Errorf("API %v, expressions %v", o.Kube.APIURL, o.Uplink.IfaceRegex)
	}
}

func TestEnvironment(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		vars []string
		want func(*Options)
	}{
		{"a variable stands for a flag", nil, []string{"FLANNELD_ETCD_PREFIX=/blue"}, func(o *Options) { o.Etcd.Prefix = "/blue" }},
		{"the command line wins", []string{"--etcd-prefix=/red"}, []string{"FLANNELD_ETCD_PREFIX=/blue"}, func(o *Options) { o.Etcd.Prefix = "/red" }},
		{"even over a bad value", []string{"--healthz-port=1"}, []string{"FLANNELD_HEALTHZ_PORT=x"},
			func(o *Options) { o.Healthz = netip.MustParseAddrPort("0.0.0.0:1") }},
		{"an empty variable is unset", nil, []string{"FLANNELD_ETCD_PREFIX=", "FLANNELD_IP_MASQ="}, func(*Options) {}},
		{"a switch", nil, []string{"FLANNELD_IP_MASQ=1"}, func(o *Options) { o.IPMasq = true }},
		{"a repeatable flag takes one value", nil, []string{"FLANNELD_IFACE=eth0,eth1"}, func(o *Options) { o.Uplink.Iface = []string{"eth0,eth1"} }},
		{"a repeatable flag on the command line replaces it", []string{"--iface=a", "--iface=b"}, []string{"FLANNELD_IFACE=c"},
			func(o *Options) { o.Uplink.Iface = []string{"a", "b"} }},
		{"an empty --iface is none", []string{"--iface="}, nil, func(*Options) {}},
		{"an empty address is none", []string{"--public-ip=", "--iface-can-reach="}, nil, func(*Options) {}},
		{"the last value wins", []string{"--etcd-prefix=/a", "--etcd-prefix=/b"}, nil, func(o *Options) { o.Etcd.Prefix = "/b" }},
		{"underscores in a name", nil, []string{"FLANNELD_LOG_BACKTRACE_AT=x.go:1"},
			func(o *Options) {
				o.Notes = []string{"FLANNELD_LOG_BACKTRACE_AT has no effect: backtraces at a line are klog's"}
			}},
		{"FLANNELD_VERSION is somebody else's", nil, []string{"FLANNELD_VERSION=v0.28.9"}, func(*Options) {}},
		{"the node name of Kubernetes", nil, []string{"NODE_NAME=n1"}, func(o *Options) { o.NodeName = "n1" }},
		{"our variable is stronger", nil, []string{"NODE_NAME=n1", "FLANNELD_NODE_NAME=n2"}, func(o *Options) { o.NodeName = "n2" }},
		{"the others", nil, []string{"POD_NAME=p", "POD_NAMESPACE=ns", "CONT_WHEN_CACHE_NOT_READY=true", "NOTIFY_SOCKET=@s", "EVENT_QUEUE_DEPTH=5"},
			func(o *Options) {
				o.Kube.PodName, o.Kube.PodNamespace, o.NotifySocket = "p", "ns", "@s"
				o.Notes = []string{"CONT_WHEN_CACHE_NOT_READY has no effect: nothing waits for a cache",
					"EVENT_QUEUE_DEPTH has no effect: there is no queue of events"}
			}},
		{"the first service of the cluster", []string{"--kube-subnet-mgr", "--service-range=fd96::/108"}, []string{"KUBERNETES_SERVICE_HOST=192.0.2.1", "KUBERNETES_PORT=tcp://10.96.0.1:443"},
			func(o *Options) {
				o.Kube.Enabled = true
				o.ServiceRanges = []netip.Prefix{netip.MustParsePrefix("fd96::/108"), netip.MustParsePrefix("10.96.0.1/32")}
			}},
		{"a service that is no concern of etcd's", nil, []string{"KUBERNETES_PORT=tcp://10.96.0.1:443"}, func(*Options) {}},
		{"every address for health checks", []string{"--healthz-ip="}, nil, func(o *Options) { o.Healthz = netip.MustParseAddrPort("[::]:0") }},
		{"as in the original's manifest", nil, []string{"CONT_WHEN_CACHE_NOT_READY=false"}, func(*Options) {}},
		{"a password without a user", []string{"--etcd-password=p"}, nil, func(o *Options) {
			o.Etcd.Password = secret.New("p")
			o.Notes = []string{"--etcd-password has no effect: there is no --etcd-username"}
		}},
		{"a subnet file of another name", []string{"--subnet-file=/run/x"}, nil, func(o *Options) {
			o.SubnetFile, o.SnapshotFile, o.StatusSocket = "/run/x", "/var/lib/flannel/run-x.snapshot.json", "/run/x.sock"
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := defaults()
			c.want(&want)
			if diff := cmp.Diff(want, parse(t, c.args, c.vars...), compare); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestBadValuesNameTheirFlagOrVariable(t *testing.T) {
	for _, c := range []struct{ arg, want string }{
		{"--iface-regex=(", `--iface-regex: "(" is not a regular expression: `},
		{"FLANNELD_IFACE_REGEX=(", `FLANNELD_IFACE_REGEX: "("`},
		{"--iface-can-reach=x", `--iface-can-reach: "x" is not an IP address`},
		{"--public-ip=10.0.0", `--public-ip: "10.0.0" is not an IPv4 address`},
		{"--public-ip=fd00::1", `is not an IPv4 address`},
		{"--public-ip=0.0.0.0", `--public-ip: 0.0.0.0 is not an address that peers can send to`},
		{"--public-ipv6=10.0.0.1", `--public-ipv6: "10.0.0.1" is not an IPv6 address`},
		{"--public-ipv6=::ffff:10.0.0.1", `is not an IPv6 address`},
		{"--public-ipv6=fe80::1%eth0", `is not an IPv6 address`},
		{"--subnet-lease-renew-margin=0", `--subnet-lease-renew-margin: "0" is not a number from 1 to 1439`},
		{"--subnet-lease-renew-margin=1440", `1 to 1439`},
		{"--healthz-port=65536", `--healthz-port: "65536" is not a number from 0 to 65535`},
		{"--healthz-ip=localhost", `--healthz-ip: "localhost" is not an IP address`},
		{"--service-range=10.96.0.0", `--service-range: "10.96.0.0" is not a range such as 10.96.0.0/12`},
		{"--iptables-resync=0", `--iptables-resync: "0" is not a number from 1`},
		{"--iptables-resync=99999999999999", `is not a number from 1`},
		{"--resync=30", `--resync: "30" is not a duration of at least 1s`},
		{"--resync=1ms", `at least 1s`},
		{"--log-format=xml", `--log-format: "xml" is not one of text, json`},
		{"--v=x", `--v: "x" is not a number from 0`},
		{"FLANNELD_IP_MASQ=perhaps", `FLANNELD_IP_MASQ: "perhaps" is neither true nor false`},
		{"CONT_WHEN_CACHE_NOT_READY=perhaps", `CONT_WHEN_CACHE_NOT_READY: "perhaps"`},
		{"--etcd-endpoints=,", `--etcd-endpoints: names no endpoint`},
		{"--etcd-endpoints=ftp://x", `--etcd-endpoints: "ftp://x" is not an etcd endpoint`},
		{"--etcd-endpoints=localhost", `is not an etcd endpoint`},
		{"--etcd-prefix=", `--etcd-prefix: must not be empty`},
		{"--etcd-certfile=x", `--etcd-certfile: needs --etcd-keyfile`},
		{"--etcd-keyfile=x", `--etcd-keyfile: needs --etcd-certfile`},
		{"--etcd-username=u", `--etcd-username: needs --etcd-password`},
		{"--kube-api-url=10.0.0.1:6443", `--kube-api-url: "10.0.0.1:6443" is not a URL`},
		{"--kube-annotation-prefix=example", `--kube-annotation-prefix: "example" is not a lower-case domain`},
		{"--subnet-file=", `--subnet-file: must name a file`},
		{"--snapshot-file=/run/flannel/subnet.env", `--snapshot-file: "/run/flannel/subnet.env" is the --subnet-file`},
		{"--status-socket=/" + strings.Repeat("x", 107), `--status-socket: `},
	} {
		args, vars := []string{c.arg}, []string(nil)
		if !strings.HasPrefix(c.arg, "--") {
			args, vars = nil, args
		}
		_, err := Parse(args, env(vars...), io.Discard)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.arg, err, c.want)
		}
		if _, usage := errors.AsType[*UsageError](err); usage {
			t.Errorf("%s: is a usage error", c.arg)
		}
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	_, err := Parse([]string{"--healthz-port=x", "--public-ip=y", "--iface-regex=(", "--iface-regex=[", "--foo"}, env("FLANNELD_RESYNC=z"), io.Discard)
	for _, part := range []string{"--healthz-port", "--public-ip", `"("`, `"["`, "FLANNELD_RESYNC", "unknown flag --foo"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error lacks %q: %v", part, err)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--foo=1"}, "unknown flag --foo"},
		{[]string{"-ip-mask"}, "unknown flag --ip-mask"},
		{[]string{"--iface"}, "flag needs an argument: -iface"},
		{[]string{"---iface=x"}, "bad flag syntax"},
		{[]string{"--ip-masq", "true", "--kube-subnet-mgr"}, `"true" is not a flag: switches are written --flag=true`},
		{[]string{"start"}, `"start" is not a flag`},
		{[]string{"--version", "--foo"}, "unknown flag --foo"},
	} {
		_, err := Parse(c.args, env(), io.Discard)
		usage, ok := errors.AsType[*UsageError](err)
		if !ok || !strings.Contains(usage.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.args, err, c.want)
		}
	}
}

func TestVersionComesFirst(t *testing.T) {
	o := parse(t, []string{"--healthz-port=x", "-version"}, "FLANNELD_RESYNC=z")
	if !o.Version {
		t.Error("not set")
	}
}

func TestHelpListsEveryFlag(t *testing.T) {
	for _, arg := range []string{"--help", "-h"} {
		var out bytes.Buffer
		if _, err := Parse([]string{"--healthz-port=x", arg}, env(), &out); !errors.Is(err, flag.ErrHelp) {
			t.Errorf("%s: %v", arg, err)
		}
		for _, g := range table(&Options{}) {
			for _, f := range g.flags {
				if !strings.Contains(out.String(), "\n  --"+f.name) {
					t.Errorf("%s does not list --%s", arg, f.name)
				}
			}
		}
	}
}

func TestAnnotationPrefixes(t *testing.T) {
	for in, want := range map[string]string{
		"flannel.alpha.coreos.com": "flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/": "flannel.alpha.coreos.com/",
		"example.net/blue": "example.net/blue-", "example.net/blue-": "example.net/blue-", "example.net/b_1": "example.net/b_1-",
		"example": "", "Example.net": "", "example.net/Blue": "", "a.b/c/d": "", "": "", "/blue": "", "example.net/a.b": "", "a..b": "", "-a.b": "",
	} {
		var got string
		if err := annotationPrefix(&got)(in); (err == nil) != (want != "") || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	const password = "s3cr3t"
	o := parse(t, []string{"--etcd-username=u", "--etcd-password=" + password, "--etcd-endpoints=https://u:" + password + "@h:1,http://i:1"})
	if o.Etcd.Password.Reveal() != password {
		t.Error("the password got lost")
	}
	var logged bytes.Buffer
	slog.New(slog.NewTextHandler(&logged, nil)).Info("options", "options", o, "password", o.Etcd.Password)
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("options", "options", o, "password", o.Etcd.Password)
	encoded, err := json.Marshal(o.Etcd.Password)
	if err != nil {
		t.Fatal(err)
	}
	shown := logged.String() + string(encoded)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		shown += fmt.Sprintf(verb, o.Etcd.Password) + fmt.Sprintf(verb, struct{ S secret.Text }{o.Etcd.Password}) + fmt.Sprintf(verb, o.Given)
	}
	if strings.Contains(shown, password) || strings.Contains(shown, fmt.Sprintf("%x", password)) {
		t.Errorf("shown: %s", shown)
	}
	if !strings.Contains(logged.String(), "options.--etcd-username=u") || !strings.Contains(logged.String(), "https://(hidden)@h:1,http://i:1") {
		t.Errorf("settings are not logged: %s", &logged)
	}
}

// FuzzParse looks for values that crash the parser, errors that do not name their flag, and accepted
// values that break what Options promises.
func FuzzParse(f *testing.F) {
	for _, g := range table(&Options{}) {
		for _, s := range g.flags {
			f.Add(s.name, s.def, true)
			f.Add(s.name, "10.0.0.1", false)
		}
	}
	f.Add("kube-annotation-prefix", "example.net/blue", false)
	f.Fuzz(func(t *testing.T, name, value string, fromEnv bool) {
		args, vars := []string{"--" + name + "=" + value}, []string(nil)
		if fromEnv {
			args, vars = nil, []string{"FLANNELD_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_")) + "=" + value}
		}
		o, err := Parse(args, env(vars...), io.Discard)
		if err != nil {
			return
		}
		if o.Version {
			return
		}
		prefix := o.Kube.AnnotationPrefix
		switch {
		case o.LeaseRenewMargin < time.Minute || o.LeaseRenewMargin >= 24*time.Hour, o.FirewallResync < time.Second, o.Resync < time.Second:
			t.Errorf("durations %v %v %v", o.LeaseRenewMargin, o.FirewallResync, o.Resync)
		case len(o.Etcd.Endpoints) == 0 || o.Etcd.Prefix == "" || o.SubnetFile == "" || o.SnapshotFile == "" || o.StatusSocket == "":
			t.Errorf("empty: %+v", o)
		case !o.Healthz.Addr().IsValid() || o.LogFormat != "text" && o.LogFormat != "json":
			t.Errorf("health %v, log format %q", o.Healthz, o.LogFormat)
		case !strings.HasSuffix(prefix, "/") && !strings.HasSuffix(prefix, "-") || strings.Count(prefix, "/") != 1:
			t.Errorf("annotation prefix %q", prefix)
		case o.Uplink.Public.V4.IsValid() && !o.Uplink.Public.V4.Is4() || o.Uplink.Public.V6.IsValid() && !o.Uplink.Public.V6.Is6():
			t.Errorf("public %v", o.Uplink.Public)
		}
	})
}
