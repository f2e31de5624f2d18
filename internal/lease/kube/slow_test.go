package kube

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weftnet/weft/internal/lease"
)

// farAway is an API server that does not stream lists, behind a line on which a page takes long.
type farAway struct {
	t    *testing.T
	long time.Duration
}

func (s farAway) RoundTrip(r *http.Request) (*http.Response, error) {
	resp := &http.Response{StatusCode: 200, Header: http.Header{}, Request: r, Body: &quiet{r.Context(), time.NewTimer(time.Hour)}}
	switch q := r.URL.Query(); {
	case q.Get("sendInitialEvents") != "":
		resp.StatusCode, resp.Body = http.StatusUnprocessableEntity, io.NopCloser(&bytes.Reader{})
	case q.Get("limit") != "":
		list := corev1.NodeList{ListMeta: metav1.ListMeta{ResourceVersion: "7"}, Items: []corev1.Node{peer(1, "5")}}
		line := &quiet{r.Context(), time.NewTimer(s.long)}
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(line, bytes.NewReader(envelope(s.t, "NodeList", marshal(s.t, &list)))), line}
	}
	return resp, nil
}

func TestPageOverASlowLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := testStore(t, "http://127.0.0.1:1")
		store.client.Store(&http.Client{Transport: farAway{t, 8 * store.cfg.RequestTimeout}})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		peers := ""
		_ = store.Watch(ctx, func(ls []lease.Lease) { peers = peersOf(ls); cancel() })
		if peers != "1" {
			t.Errorf("peers %q, %+v", peers, store.Stats())
		}
	})
}
