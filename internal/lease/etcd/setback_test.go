package etcd_test

import (
	"context"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftnet/weft/internal/etcdserver"
	"github.com/weftnet/weft/internal/lease/etcd"
)

// The configuration hangs on no etcd lease, and whoever sets etcd up writes it first.
func TestConfigOfANewEtcd(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	put(t, client, etcd.DefaultPrefix+"/config", `{"Network":"10.5.0.0/16"}`)
	p := newProxy(t, server.Endpoints()[0])
	s := open(t, config(p.endpoint()), nil)
	var last atomic.Pointer[string]
	run(t, func(ctx context.Context) error {
		return s.WatchConfig(ctx, func(raw []byte) { text := string(raw); last.Store(&text) })
	})
	eventually(t, "configuration", func() bool { return last.Load() != nil })
	p.set(refuse)
	server.Close()
	server, client = start(t, etcdserver.Options{})
	put(t, client, etcd.DefaultPrefix+"/config", `{"Network":"10.6.0.0/16"}`)
	p.retarget(server)
	eventually(t, "the new etcd's configuration", func() bool { return *last.Load() == `{"Network":"10.6.0.0/16"}` })
}

// etcd is set back to a backup that has the mark, and passes our revision before we come back.
func TestBackupThatHasTheMark(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	p := newProxy(t, server.Endpoints()[0])
	s := open(t, config(p.endpoint()), nil)
	fill(t, client, 3, 0)
	for range 10 { // others use this etcd too
		put(t, client, "/other", "x")
	}
	last, _ := watch(t, s) // lists at a revision far behind that of the last lease
	eventually(t, "three leases", hasLeases(last, 3))
	leases, err := client.Get(t.Context(), subnetsKey, clientv3.WithPrefix())
	must(t, err)
	p.set(refuse)
	server.Close()

	// The backup has the same leases, with the same revisions and IDs.
	server, client = start(t, etcdserver.Options{})
	id := leases.Kvs[0].Lease
	_, err = clientv3.RetryLeaseClient(client).LeaseGrant(t.Context(), &pb.LeaseGrantRequest{TTL: 86400, ID: id})
	must(t, err)
	var ops []clientv3.Op
	for _, kv := range leases.Kvs {
		ops = append(ops, clientv3.OpPut(string(kv.Key), string(kv.Value), clientv3.WithLease(clientv3.LeaseID(id))))
	}
	_, err = client.Txn(t.Context()).Then(ops...).Commit()
	must(t, err)
	fill(t, client, 1, 10) // a node joins after the restore
	for range 20 {
		put(t, client, "/other", "x")
	}
	p.retarget(server)
	eventually(t, "the lease written after the restore", hasLeases(last, 4))
}
