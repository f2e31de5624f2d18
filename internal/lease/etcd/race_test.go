package etcd

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/weftnet/weft/internal/etcdserver"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/leasetest"
)

// A renewal is overtaken by an Acquire that publishes something else. What it wrote before or failed to write must not
// count as ours, or Hold would put it over what the node publishes now.
func TestRenewalThatIsOvertaken(t *testing.T) {
	t.Run("on its way to etcd", func(t *testing.T) { overtake(t, true, lease.ErrTaken) })
	t.Run("on its way back", func(t *testing.T) { overtake(t, false, nil) })
}

// overtake stops a renewal before or after etcd has it, and expects its error.
func overtake(t *testing.T, before bool, want error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	loopback := []string{"http://127.0.0.1:0"}
	log := slog.New(slog.DiscardHandler)
	server, err := etcdserver.Start(ctx, etcdserver.Options{DataDir: t.TempDir(), ListenClient: loopback, ListenPeer: loopback, Volatile: true}, log)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	s, err := New(Config{Endpoints: server.Endpoints(), RequestTimeout: time.Minute}, log) // a write is kept waiting
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	arrived, pass := make(chan struct{}), make(chan struct{})
	type held struct{}
	s.options.DialOptions = append(s.options.DialOptions, grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			stop := ctx.Value(held{}) != nil && method == "/etcdserverpb.KV/Txn"
			if stop && before {
				close(arrived)
				<-pass
			}
			err := invoke(ctx, method, req, reply, cc, opts...)
			if stop && !before {
				close(arrived)
				<-pass
			}
			return err
		}))

	self := leasetest.Self(1, family.V4)
	first, err := s.Acquire(ctx, self)
	if err != nil {
		t.Fatal(err)
	}
	renewal, err := s.newWrite(self, first.Subnet)
	if err != nil {
		t.Fatal(err)
	}
	renewal.revision = s.mine.revision
	renewed := make(chan error)
	go func() {
		_, err := s.write(context.WithValue(ctx, held{}, true), renewal)
		renewed <- err
	}()
	<-arrived
	self.Receive = leasetest.Self(2, family.V4).Receive
	now, err := s.Acquire(ctx, self)
	if err != nil || now.Receive[0] != self.Receive[0] {
		t.Errorf("acquired %v, %v", now, err)
	}
	close(pass)
	if err := <-renewed; !errors.Is(err, want) {
		t.Errorf("the renewal: %v", err)
	}
	if l, ok := s.published(renewal.key); !ok || l.Receive[0] != self.Receive[0] {
		t.Errorf("after the renewal %v counts as ours, but %v is what etcd has", l.Receive, self.Receive)
	}
}
