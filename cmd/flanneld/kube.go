package main

import (
	"cmp"
	"context"
	"io"
	"log/slog"

	"k8s.io/klog/v2"

	"github.com/weftnet/weft/internal/agent"
	"github.com/weftnet/weft/internal/lease/etcd"
	"github.com/weftnet/weft/internal/lease/kube"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/options"
)

// openStore opens the store that the options name and adds to parts what it is asked for. Nothing waits for the
// store itself.
func openStore(opts options.Options, parts *agent.Parts, log *slog.Logger) (io.Closer, error) {
	if opts.Kube.Enabled {
		return openKube(opts, parts, log)
	}
	store, err := etcd.New(etcd.Config{
		Endpoints: opts.Etcd.Endpoints, Prefix: opts.Etcd.Prefix,
		CAFile: opts.Etcd.CAFile, CertFile: opts.Etcd.CertFile, KeyFile: opts.Etcd.KeyFile,
		Username: opts.Etcd.Username, Password: opts.Etcd.Password, RenewMargin: opts.LeaseRenewMargin,
	}, log)
	if err != nil {
		return nil, err
	}
	parts.Store, parts.Reconnect = store, store.Reconnect
	parts.Stats = store.Stats
	return store, nil
}

// openKube opens the Kubernetes store. client-go's credential helpers log through klog.
func openKube(opts options.Options, parts *agent.Parts, log *slog.Logger) (io.Closer, error) {
	klog.SetSlogLogger(log)
	k := opts.Kube
	store, err := kube.New(kube.Config{
		APIURL: k.APIURL, Kubeconfig: k.KubeconfigFile,
		NodeName: opts.NodeName, PodName: k.PodName, PodNamespace: k.PodNamespace,
		Prefix: k.AnnotationPrefix, NetConfFile: k.NetConfFile, Services: opts.ServiceRanges, SetCondition: k.SetNetworkReady,
	}, log)
	if err != nil {
		return nil, err
	}
	parts.Store = store
	parts.Stats = store.Stats
	parts.Hints = store.Hints
	parts.Watch = append(parts.Watch, func(ctx context.Context, wake func(string)) error {
		return store.Run(ctx, func() { wake("node") })
	})
	ready := parts.Ready
	parts.Ready = func() {
		ready()
		store.SetReady()
	}
	return store, nil
}

// withNode fills in what a pod's token says about where it runs, and which store decides on subnets.
func withNode(opts options.Options) (options.Options, netconf.Store) {
	if !opts.Kube.Enabled {
		return opts, netconf.Etcd
	}
	opts.NodeName = cmp.Or(opts.NodeName, kube.TokenNode())
	return opts, netconf.Kubernetes
}
