package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftnet/weft/internal/lease/storehealth"
)

const (
	pageSize = 500              // keys per list request: keeps etcd's replies, and our memory, small
	silence  = 25 * time.Minute // etcd tells the progress of an idle watch every 10 minutes

	// deniedRetry is the pause where a role lacks the right to read a range: someone has to grant it.
	deniedRetry = time.Minute
)

// A feed receives the content of a range of keys. No two calls overlap.
type feed struct {
	list    func() (add func(*mvccpb.KeyValue), done func(revision int64)) // a complete listing begins
	event   func(*mvccpb.Event)                                            // one change after the listing
	synced  func(revision int64)                                           // all changes up to revision were handed over
	stopped func(err error) (tell bool)                                    // list or watch broke and will be tried again
}

// A point is where a watch goes on: a cluster, and the next revision wanted of it. The zero point asks for
// a listing.
type point struct {
	cluster uint64
	next    int64
	mark    mark
	count   int64 // of keys in the range
}

// A mark is the key of the range that was written last before a point, and how. An etcd that starts anew
// has the cluster ID of the one before if it is set up alike, and one set back to a backup always has; both
// may have passed our revision when we come back, but neither has written the key like that. No key means
// that it was deleted since.
type mark struct {
	key      string
	revision int64
	lease    int64 // unique, as it holds the time
}

func markOf(kv *mvccpb.KeyValue) mark { return mark{string(kv.Key), kv.ModRevision, kv.Lease} }

// note moves p's mark and count along with a change.
func (p *point) note(e *mvccpb.Event) {
	switch {
	case e.Type == mvccpb.Event_PUT:
		p.mark = markOf(e.Kv)
		if e.Kv.CreateRevision == e.Kv.ModRevision {
			p.count++
		}
		return
	case p.mark.key == string(e.Kv.Key):
		p.mark = mark{}
	}
	p.count--
}

// follow hands the content of r to f, and its changes, until ctx ends. Whatever may have been missed
// (compacted revisions, another cluster, an etcd set back to a backup) leads to a new listing.
func (s *Store) follow(ctx context.Context, op string, r keyRange, f feed) error {
	p := storehealth.Pause{First: firstRetry, Last: lastRetry}
	var at point
	for {
		var since time.Time
		resumed := at.next != 0
		err := s.followOnce(ctx, r, &at, f, func() { s.health.Worked(op); since = time.Now() })
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if f.stopped(err) {
			s.health.Failed(ctx, op, err)
		}
		if errors.Is(err, errRelist) {
			at = point{}
			if resumed { // etcd answered, so there is nothing to wait for
				continue
			}
		}
		if !since.IsZero() && time.Since(since) > lastRetry {
			p.Reset()
		}
		d := p.Next()
		if errors.Is(err, rpctypes.ErrPermissionDenied) {
			d = max(d, storehealth.Jitter(deniedRetry, 0.25))
		}
		if err := storehealth.Sleep(ctx, d); err != nil {
			return err
		}
	}
}

// errRelist means that a watch cannot go on where it stopped.
var errRelist = errors.New("the watch must begin with a new listing")

// followOnce lists r if at says so, and watches it until something breaks. It calls standing when the
// watch stands.
func (s *Store) followOnce(ctx context.Context, r keyRange, at *point, f feed, standing func()) error {
	if at.next == 0 {
		add, done := f.list()
		var last mark
		var count int64
		header, err := s.list(ctx, r, func(kv *mvccpb.KeyValue) {
			count++
			if kv.ModRevision >= last.revision {
				last = markOf(kv)
			}
			add(kv)
		})
		if err != nil {
			return fmt.Errorf("list: %w", err)
		}
		done(header.Revision)
		*at = point{header.ClusterId, header.Revision + 1, last, count}
	} else if err := s.sameHistory(ctx, r, *at); err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	if err := s.watch(ctx, r, at, f, standing); err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	return nil
}

// sameHistory returns an error that is errRelist unless etcd still has the history that at is a point of.
func (s *Store) sameHistory(ctx context.Context, r keyRange, at point) error {
	if at.mark.lease == 0 { // without an etcd lease nothing about it is unique
		return fmt.Errorf("%w: there is nothing to tell etcd's history by", errRelist)
	}
	rev := clientv3.WithRev(at.next - 1)
	get := []clientv3.Op{clientv3.OpGet(at.mark.key, rev)}
	if r.end != "" {
		get = append(get, clientv3.OpGet(r.first, clientv3.WithRange(r.end), clientv3.WithCountOnly(), rev))
	}
	var resp *clientv3.TxnResponse
	err := s.request(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		resp, err = c.Txn(ctx).Then(get...).Commit()
		return err
	})
	switch {
	case errors.Is(err, rpctypes.ErrFutureRev) || errors.Is(err, rpctypes.ErrCompacted):
		return fmt.Errorf("%w: revision %d: %w", errRelist, at.next-1, err)
	case err != nil:
		return err
	}
	marked := resp.Responses[0].GetResponseRange().Kvs
	if len(marked) != 1 || markOf(marked[0]) != at.mark || r.end != "" && resp.Responses[1].GetResponseRange().Count != at.count {
		return fmt.Errorf("%w: etcd was set up anew or set back", errRelist)
	}
	return nil
}

// list calls add for every key of r, in order, all as of one revision, which is in the header returned.
func (s *Store) list(ctx context.Context, r keyRange, add func(*mvccpb.KeyValue), how ...clientv3.OpOption) (*pb.ResponseHeader, error) {
	var header *pb.ResponseHeader
	for from, more := r.first, true; more; {
		opts := append(slices.Clip(how), clientv3.WithLimit(pageSize))
		if r.end != "" {
			opts = append(opts, clientv3.WithRange(r.end))
		}
		if header != nil {
			opts = append(opts, clientv3.WithRev(header.Revision))
		}
		var page *clientv3.GetResponse
		err := s.request(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
			page, err = c.Get(ctx, from, opts...)
			return err
		})
		if err != nil {
			return nil, err
		}
		if header == nil {
			header = page.Header
		}
		for _, kv := range page.Kvs {
			add(kv)
		}
		if more = page.More && len(page.Kvs) > 0; more {
			from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
		}
	}
	return header, nil
}

// watch hands over the changes of r from at on, and moves at along. It returns only with an error.
func (s *Store) watch(ctx context.Context, r keyRange, at *point, f feed, standing func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(s.cfg.RequestTimeout, func() { cancel(errSilent) })
	defer idle.Stop()

	c, err := s.connection(ctx)
	if err != nil {
		return err
	}
	stream, err := watchStream(ctx, c)
	if err != nil {
		return rpctypes.Error(err)
	}
	create := &pb.WatchCreateRequest{Key: []byte(r.first), RangeEnd: []byte(r.end), StartRevision: at.next, ProgressNotify: true}
	if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil {
		return rpctypes.Error(err)
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return rpctypes.Error(err)
		}
		if err := checkResponse(resp, *at); err != nil {
			return err
		}
		idle.Reset(silence)
		if resp.Created {
			standing()
			f.synced(at.next - 1)
			continue
		}
		for _, e := range resp.Events {
			at.note(e)
			f.event(e)
		}
		at.next = max(at.next, nextRevision(resp))
		f.synced(at.next - 1)
	}
}

// checkResponse returns why the watch cannot go on, if so.
func checkResponse(resp *pb.WatchResponse, at point) error {
	switch h := resp.Header; {
	case resp.CompactRevision != 0:
		return fmt.Errorf("%w: revision %d is compacted", errRelist, at.next)
	case h != nil && h.ClusterId != 0 && h.ClusterId != at.cluster: // etcd's own proxy leaves it 0
		return fmt.Errorf("%w: etcd is another cluster", errRelist)
	case resp.Canceled:
		_, reason, _ := strings.Cut(resp.CancelReason, "desc = ") // it is the text of a gRPC error
		return fmt.Errorf("cancelled by etcd: %w", rpctypes.Error(errors.New(cmp.Or(reason, resp.CancelReason))))
	case resp.Created && h != nil && h.Revision != 0 && h.Revision < at.next-1:
		// The member lags behind, or etcd was set back; a listing goes through the leader and tells.
		return fmt.Errorf("%w: etcd is at revision %d, before %d", errRelist, h.Revision, at.next-1)
	}
	return nil
}

// nextRevision returns the revision to go on with after resp: behind its last event, or behind the
// revision that it reports as reached.
func nextRevision(resp *pb.WatchResponse) int64 {
	if n := len(resp.Events); n > 0 {
		return resp.Events[n-1].Kv.ModRevision + 1
	}
	return resp.GetHeader().GetRevision() + 1
}
