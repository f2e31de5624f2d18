package etcdserver_test

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/etcdserver"
)

var loopback = []string{"http://127.0.0.1:0"}

func TestServesAndKeepsDataOverARestart(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	o := etcdserver.Options{DataDir: filepath.Join(t.TempDir(), "etcd"), ListenClient: loopback, ListenPeer: loopback, Volatile: true}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	for i, want := range []string{"", "kept"} {
		s, err := etcdserver.Start(ctx, o, log)
		if err != nil {
			t.Fatal(err)
		}
		c, err := clientv3.New(clientv3.Config{Endpoints: s.Endpoints(), Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Get(ctx, "k")
		if err != nil {
			t.Fatal(err)
		}
		if have := len(got.Kvs) == 1 && string(got.Kvs[0].Value) == want; have != (want != "") {
			t.Errorf("start %d: got %v, want %q", i, got.Kvs, want)
		}
		if _, err := c.Put(ctx, "k", "kept"); err != nil {
			t.Fatal(err)
		}
		c.Close()
		s.Close()
	}
	busy := func(line string) bool { // on a busy machine it has something to complain of
		return slices.ContainsFunc([]string{"too long", "overloaded", "read index", "timed out"}, func(s string) bool { return strings.Contains(line, s) })
	}
	for line := range strings.Lines(out.String()) {
		if !busy(line) {
			t.Errorf("etcd is to be quiet: %s", line)
		}
	}
}

func TestNamesEveryProblem(t *testing.T) {
	_, err := etcdserver.Start(t.Context(), etcdserver.Options{ListenClient: []string{"127.0.0.1:2379"}, AdvertisePeer: []string{"ftp://x"}}, slog.Default())
	for _, want := range []string{"data-dir", "listen-client", "advertise-peer"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error does not name %s: %v", want, err)
		}
	}
}
