//go:build !node

package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/etcdserver"
)

// newEtcdCommand returns the command that runs the real etcd in this process.
func newEtcdCommand() *cobra.Command {
	var o etcdserver.Options
	c := &cobra.Command{
		Use:   "etcd",
		Short: "Run etcd, embedded",
		Long: `Run the real etcd inside this process: for one machine, or for a first try.

One member on loopback:

  weft etcd --data-dir /var/lib/weft/etcd

One member for the hosts of a network:

  weft etcd --data-dir /var/lib/weft/etcd --listen-client http://10.0.0.1:2379

Three members, here the first of them:

  weft etcd --data-dir /var/lib/weft/etcd --name a \
    --listen-client http://10.0.0.1:2379 --listen-peer http://10.0.0.1:2380 \
    --initial-cluster a=http://10.0.0.1:2380,b=http://10.0.0.2:2380,c=http://10.0.0.3:2380

Its data directory and its protocol are etcd's own: etcdctl works with it, and a stock etcd of the same
version can take the directory over.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx := c.Context()
			log := slog.New(slog.NewTextHandler(c.ErrOrStderr(), nil))
			s, err := etcdserver.Start(ctx, o, log)
			if err != nil {
				return err
			}
			defer s.Close()
			log.Info("etcd serves", "endpoints", fmt.Sprint(s.Endpoints()), "data_dir", o.DataDir)
			return s.Wait(ctx)
		},
	}
	f := c.Flags()
	f.StringVar(&o.DataDir, "data-dir", "/var/lib/weft/etcd", "directory for the data")
	f.StringVar(&o.Name, "name", etcdserver.DefaultName, "name of this member")
	f.StringSliceVar(&o.ListenClient, "listen-client", []string{"http://127.0.0.1:2379"}, "`URLs` to serve clients on")
	f.StringSliceVar(&o.ListenPeer, "listen-peer", []string{"http://127.0.0.1:2380"}, "`URLs` to serve other members on")
	f.StringSliceVar(&o.AdvertiseClient, "advertise-client", nil, "`URLs` that clients reach this member at (default: --listen-client)")
	f.StringSliceVar(&o.AdvertisePeer, "advertise-peer", nil, "`URLs` that members reach this one at (default: --listen-peer)")
	f.StringVar(&o.InitialCluster, "initial-cluster", "", "all members of a new cluster, as `name=URL,...` (default: this member alone)")
	f.BoolVar(&o.Join, "join", false, "join a cluster that exists and knows of this member")
	f.StringVar(&o.Client.CertFile, "cert-file", "", "server certificate for clients, PEM")
	f.StringVar(&o.Client.KeyFile, "key-file", "", "its key, PEM")
	f.StringVar(&o.Client.CAFile, "client-ca-file", "", "authority that clients need a certificate of, PEM")
	f.StringVar(&o.Peer.CertFile, "peer-cert-file", "", "certificate towards other members, PEM")
	f.StringVar(&o.Peer.KeyFile, "peer-key-file", "", "its key, PEM")
	f.StringVar(&o.Peer.CAFile, "peer-ca-file", "", "authority that other members need a certificate of, PEM")
	return c
}
