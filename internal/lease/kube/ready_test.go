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

// answers is an API server that has these status codes for its next requests, and 201 for all after them.
type answers struct {
	t     *testing.T
	codes []int
	asked int
}

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	code := http.StatusCreated
	if a.asked < len(a.codes) {
		code = a.codes[a.asked]
	}
	a.asked++
	body := envelope(a.t, "Event", marshal(a.t, &corev1.Event{}))
	return &http.Response{StatusCode: code, Header: http.Header{}, Request: r, Body: io.NopCloser(bytes.NewReader(body))}, nil
}

// TestEventThatFailed: one that the server could not take is made with the next attempt, one that it forbids never.
func TestEventThatFailed(t *testing.T) {
	for name, c := range map[string]struct {
		codes []int
		want  int // requests
	}{
		"taken":           {nil, 1},
		"a busy server":   {[]int{503, 500}, 3},
		"without a right": {[]int{403}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s, server := testStore(t, "http://127.0.0.1:1"), &answers{t: t, codes: c.codes}
			s.client.Store(&http.Client{Transport: server})
			for range 5 {
				s.warn(t.Context(), &node{name: "n1"}, errors.New("no podCIDR"))
			}
			if server.asked != c.want {
				t.Errorf("asked %d times, want %d", server.asked, c.want)
			}
		})
	}
}
