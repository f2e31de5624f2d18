package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/internal/agent"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/firewall"
	"github.com/weftnet/weft/internal/identity"
	"github.com/weftnet/weft/internal/kernel"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/options"
	"github.com/weftnet/weft/internal/plan"
	"github.com/weftnet/weft/internal/probe"
	"github.com/weftnet/weft/internal/sdnotify"
	"github.com/weftnet/weft/internal/udptun"
	"github.com/weftnet/weft/internal/uplink"
)

// A node is the agent with all that it works with.
type node struct {
	agent   *agent.Agent
	servers []server
	closers []io.Closer
	notify  sdnotify.Notifier
}

// closer makes an io.Closer of a function that cannot fail.
type closer func()

func (c closer) Close() error {
	c()
	return nil
}

// A server answers HTTP on a listener that is open already.
type server struct {
	listener net.Listener
	handler  http.Handler
}

func (s server) run(ctx context.Context) error { return agent.Serve(ctx, s.listener, s.handler) }

// newNode opens everything. Nothing in it waits for the store.
func newNode(opts options.Options, log *slog.Logger) (*node, error) {
	n := &node{notify: sdnotify.Notifier(opts.NotifySocket)}
	if err := n.open(opts, log); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *node) open(opts options.Options, log *slog.Logger) error {
	socket, err := agent.ListenSocket(opts.StatusSocket)
	if err != nil {
		return fmt.Errorf("--status-socket: %w", err)
	}
	n.closers = append(n.closers, socket)
	parts, err := n.host(opts, log)
	if err != nil {
		return err
	}
	parts.Ready = n.ready
	opts, kind := withNode(opts)
	store, err := openStore(opts, &parts, log)
	if err != nil {
		return err
	}
	n.closers = append(n.closers, store)
	set, err := agentOptions(opts, kind)
	if err != nil {
		return err
	}
	n.agent = agent.New(set, parts, log)
	n.servers = append(n.servers, server{socket, n.agent.SocketHandler()})
	if opts.Healthz.Port() == 0 {
		return nil
	}
	l, err := net.Listen("tcp", opts.Healthz.String())
	if err != nil {
		return fmt.Errorf("--healthz-port: %w", err)
	}
	n.closers = append(n.closers, l)
	n.servers = append(n.servers, server{l, n.agent.HealthHandler()})
	return nil
}

// host opens what the agent looks at and changes on this host.
func (n *node) host(opts options.Options, log *slog.Logger) (agent.Parts, error) {
	// First of all: while there is no tunnel, pods of the udp backend have no network.
	tunnel := udptun.New(options.TunnelFile(opts.SubnetFile), log)
	n.closers = append(n.closers, tunnel)
	if err := tunnel.Resume(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("what the tunnel did before cannot be taken up; it starts when peers are known", "err", err)
	}
	k, err := kernel.Open(log)
	if err != nil {
		return agent.Parts{}, err
	}
	n.closers = append(n.closers, k)
	f, err := firewall.Open(log)
	if err != nil {
		return agent.Parts{}, err
	}
	n.closers = append(n.closers, f)
	u, err := uplink.Open()
	if err != nil {
		return agent.Parts{}, err
	}
	n.closers = append(n.closers, closer(u.Close))
	var reach []netip.Addr
	if a := opts.Uplink.CanReach; a.IsValid() {
		reach = append(reach, a)
	}
	w, err := k.NewWatcher()
	if err != nil {
		return agent.Parts{}, err
	}
	rules := func(ctx context.Context, wake func(string)) error {
		return f.Watch(ctx, func() { wake(agent.ChangedFirewall) })
	}
	return agent.Parts{
		Prober: prober(log), Rename: kernel.RenamesLive(), Warnings: warnings(opts.ServiceRanges, log), Kernel: k, Firewall: f, Tunnel: tunnel, Watch: []agent.Watch{w.Run, rules},
		Uplink: func() (uplink.Host, error) { return u.List(reach...) },
	}, nil
}

// prober returns what probes ways to peers, nil if this process may not.
func prober(log *slog.Logger) agent.Prober {
	if err := probe.Possible(); err != nil {
		log.Warn("ways to peers are used without a probe: give flanneld CAP_NET_RAW, or set \"DisableProbes\": true", "err", err)
		return nil
	}
	return agent.Probing(probe.Open(log))
}

func agentOptions(opts options.Options, store netconf.Store) (agent.Options, error) {
	hostname, _ := os.Hostname() // one of several sources
	id, err := identity.Of(identity.Source{
		NodeName: opts.NodeName, Hostname: hostname, Root: "/", Dir: filepath.Dir(opts.SnapshotFile),
	})
	if err != nil {
		return agent.Options{}, err
	}
	return agent.Options{
		Identity: id, Node: cmp.Or(opts.NodeName, hostname), Uplink: opts.Uplink, Store: store,
		Plan: plan.Options{
			Masquerade: opts.IPMasq, RandomFully: opts.RandomFully, ForwardRules: opts.ForwardRules,
			BlackholeRoute: opts.BlackholeRoute,
		},
		SubnetFile: opts.SubnetFile, SnapshotFile: opts.SnapshotFile, Resync: opts.Resync,
	}, nil
}

// ready and stopping tell systemd. A failure concerns nobody but systemd, which will notice.
func (n *node) ready()    { _ = n.notify.Ready() }
func (n *node) stopping() { _ = n.notify.Stopping() }

func (n *node) close() {
	for i := len(n.closers) - 1; i >= 0; i-- {
		_ = n.closers[i].Close()
	}
}

// warnings looks for what on this host is in the way of a configuration.
func warnings(services []netip.Prefix, log *slog.Logger) func(netconf.Config, family.Pair[netip.Prefix]) []string {
	return func(c netconf.Config, own family.Pair[netip.Prefix]) []string {
		h, err := netlink.NewHandle()
		if err != nil {
			log.Warn("clashes with this host are not looked for", "err", err)
			return nil
		}
		defer h.Close()
		var host []netconf.HostPrefix
		if err = h.SetSocketTimeout(time.Second); err == nil { // without one a lost answer would keep us from stopping
			host, err = netconf.HostPrefixes(h, c, own)
		}
		if err != nil {
			log.Warn("clashes with this host are not looked for", "err", err)
			return nil
		}
		var found []string
		for _, p := range services {
			host = append(host, netconf.HostPrefix{Prefix: p, What: netconf.ServiceRange})
		}
		for _, clash := range netconf.Clashes(c, host) {
			found = append(found, clash.String())
		}
		return append(found, bridged(c)...)
	}
}

// bridged says for which families iptables does not see what crosses the pods' bridge. kube-proxy needs it
// to: without it a pod cannot reach a service whose endpoint is on its own node.
func bridged(c netconf.Config) []string {
	var found []string
	for _, f := range family.All() {
		if !c.Network.Of(f).Enabled() {
			continue
		}
		if on, present := firewall.BridgeNetfilter(f); !present {
			found = append(found, f.String()+" rules do not apply to bridged packets: services may not answer pods of the same node; modprobe br_netfilter")
		} else if !on {
			found = append(found, f.String()+" rules do not apply to bridged packets: services may not answer pods of the same node; set the sysctls net.bridge.bridge-nf-call-*")
		}
	}
	return found
}
