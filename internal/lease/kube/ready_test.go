package kube

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// away is an API server that is away until some time, and has then one answer.
type away struct {
	until  time.Time
	answer []byte
}

func (a away) RoundTrip(r *http.Request) (*http.Response, error) {
	if time.Now().Before(a.until) {
		return nil, errors.New("connection refused")
	}
	return &http.Response{StatusCode: 200, Header: http.Header{}, Request: r, Body: io.NopCloser(bytes.NewReader(a.answer))}, nil
}

// TestAfterALongOutage: what a node needs of an API server that comes back does not wait for a minute.
func TestAfterALongOutage(t *testing.T) {
	const soon = 15 * time.Second
	n, pod := peer(1, "5"), corev1.Pod{Spec: corev1.PodSpec{NodeName: "n1"}}
	for name, c := range map[string]struct {
		answer []byte
		f      func(context.Context, *Store)
	}{
		"the node's name": {envelope(t, "Pod", marshal(t, &pod)), func(ctx context.Context, s *Store) { _, _ = s.findNode(ctx) }},
		"the condition": {envelope(t, "Node", marshal(t, &n)), func(ctx context.Context, s *Store) {
			s.own.seeListed(&node{name: "n1", version: "4"})
			s.SetReady()
			go func() { _ = s.keepCondition(ctx) }()
			_, changed, _ := s.own.wait(ctx)
			<-changed // the answer
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				store := testStore(t, "http://127.0.0.1:1")
				store.cfg.NodeName, store.cfg.PodName = "", "p"
				back := time.Now().Add(10 * time.Minute)
				store.client.Store(&http.Client{Transport: away{back, c.answer}})
				c.f(ctx, store)
				if took := time.Since(back); took > soon {
					t.Errorf("%v after the API server came back", took)
				}
			})
		})
	}
}
