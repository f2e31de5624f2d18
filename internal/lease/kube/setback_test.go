package kube

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/lease"
)

// A setBack is an API server whose etcd was set back from version 700 to a backup, while nobody was connected: as
// kube-apiserver does (cacheWatcher.process), it says nothing to a watch from a version that it has not reached.
type setBack struct {
	t     *testing.T
	mu    sync.Mutex
	lists int
}

func (s *setBack) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &http.Response{StatusCode: 200, Header: http.Header{}, Request: r}
	if r.URL.Query().Get("sendInitialEvents") == "" {
		resp.Body = &quiet{r.Context(), time.NewTimer(7 * time.Minute)}
		return resp, nil
	}
	s.lists++
	frames := [][]byte{added(1, "500")(s.t), complete("700")(s.t)}
	if s.lists > 1 {
		frames = [][]byte{added(1, "200")(s.t), added(2, "310")(s.t), complete("320")(s.t)}
	}
	resp.Body = io.NopCloser(bytes.NewReader(slices.Concat(frames...)))
	return resp, nil
}

// A quiet body ends without a word.
type quiet struct {
	ctx context.Context
	end *time.Timer
}

func (q *quiet) Read([]byte) (int, error) {
	select {
	case <-q.end.C:
		return 0, io.EOF
	case <-q.ctx.Done():
		return 0, q.ctx.Err()
	}
}

func (q *quiet) Close() error { q.end.Stop(); return nil }

func TestServerIsSetBackWhileAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &setBack{t: t}
		store := testStore(t, "http://127.0.0.1:1")
		store.client.Store(&http.Client{Transport: server})
		ctx, cancel := context.WithCancel(t.Context())
		var last []lease.Lease
		ended := make(chan struct{})
		go func() { defer close(ended); _ = store.Watch(ctx, func(ls []lease.Lease) { last = ls }) }()
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if len(last) != 2 || server.lists < 2 {
			t.Errorf("a day later: peers %s, %d listings, %+v", peersOf(last), server.lists, store.Stats())
		}
		cancel()
		<-ended
	})
}
