package etcd

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
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

// startStore returns a store on an etcd of its own.
func startStore(ctx context.Context, t *testing.T) *Store {
	t.Helper()
	loopback := []string{"http://127.0.0.1:0"}
	log := slog.New(slog.DiscardHandler)
	server, err := etcdserver.Start(ctx, etcdserver.Options{DataDir: t.TempDir(), ListenClient: loopback, ListenPeer: loopback, Volatile: true}, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	s, err := New(Config{Endpoints: server.Endpoints(), RequestTimeout: time.Minute}, log) // a write may be kept waiting
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// What Recall has listed serves one Acquire.
func TestAcquireListsNotAgainWhatRecallHas(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := startStore(ctx, t)
	lists := 0
	s.options.DialOptions = append(s.options.DialOptions, grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if r, ok := req.(*pb.RangeRequest); ok && len(r.RangeEnd) > 0 && !r.KeysOnly {
				lists++
			}
			return invoke(ctx, method, req, reply, cc, opts...)
		}))
	self := leasetest.Self(1, family.V4)
	if _, _, err := s.Recall(ctx, self); err != nil {
		t.Fatal(err)
	}
	recalled := lists
	for _, want := range []int{0, recalled} {
		lists = 0
		s.mu.Lock()
		if s.recalled != nil {
			s.recalled.made = time.Now() // however long this machine took
		}
		s.mu.Unlock()
		if _, err := s.Acquire(ctx, self); err != nil {
			t.Fatal(err)
		}
		if lists != want || recalled == 0 {
			t.Errorf("%d lists, want %d; Recall made %d", lists, want, recalled)
		}
	}
}

// overtake stops a renewal before or after etcd has it, and expects its error.
func overtake(t *testing.T, before bool, want error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := startStore(ctx, t)
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
