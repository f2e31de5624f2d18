package kube

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weftnet/weft/internal/lease"
)

// A setBack is an API server whose etcd was set back from version 700 to a backup, while nobody was connected: as
// kube-apiserver does (cacheWatcher.process), it says nothing to a watch from a version that it has not reached.
type setBack struct {
	t      *testing.T
	passes bool // it stops in the first watch, and has reached version 700 again before the second one ends

	mu           sync.Mutex // guards what follows
	lists, asked int
}

func (s *setBack) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &http.Response{StatusCode: 200, Header: http.Header{}, Request: r}
	q := r.URL.Query()
	if q.Get("limit") == "1" {
		s.asked++
		list := corev1.NodeList{ListMeta: metav1.ListMeta{ResourceVersion: "320"}, Items: []corev1.Node{peer(1, "200")}}
		resp.Body = io.NopCloser(bytes.NewReader(envelope(s.t, "NodeList", marshal(s.t, &list))))
		return resp, nil
	}
	limit, err := strconv.Atoi(q.Get("timeoutSeconds"))
	if err != nil {
		return nil, err
	}
	end := time.Duration(limit) * time.Second
	var frames [][]byte
	switch {
	case q.Get("sendInitialEvents") == "" && s.passes:
		frames = [][]byte{bookmark("900")(s.t)}
	case q.Get("sendInitialEvents") == "":
	case s.lists > 0:
		s.lists++
		frames = [][]byte{added(1, "200")(s.t), added(2, "310")(s.t), complete("320")(s.t)}
	default:
		s.lists++
		frames = [][]byte{added(1, "500")(s.t), complete("700")(s.t)}
		if s.passes {
			end = 10 * time.Second // the server stops
		}
	}
	rest := &quiet{r.Context(), time.NewTimer(end)}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(slices.Concat(frames...)), rest), rest}
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
	for name, passes := range map[string]bool{"it stays behind": false, "it passes our version": true} {
		t.Run(name, func(t *testing.T) { setBackWhileAway(t, passes) })
	}
}

func setBackWhileAway(t *testing.T, passes bool) {
	synctest.Test(t, func(t *testing.T) {
		server := &setBack{t: t, passes: passes}
		store := testStore(t, "http://127.0.0.1:1")
		store.client.Store(&http.Client{Transport: server})
		ctx, cancel := context.WithCancel(t.Context())
		var last []lease.Lease
		ended := make(chan struct{})
		go func() { defer close(ended); _ = store.Watch(ctx, func(ls []lease.Lease) { last = ls }) }()
		time.Sleep(25 * time.Minute)
		synctest.Wait()
		if len(last) != 2 || server.lists < 2 {
			t.Errorf("later: peers %s, %d listings, %+v", peersOf(last), server.lists, store.Stats())
		}
		if !passes && server.asked > 0 {
			t.Errorf("a watch that ended when it should was followed by %d questions", server.asked)
		}
		cancel()
		<-ended
	})
}
