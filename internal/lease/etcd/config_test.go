package etcd_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lease/etcd"
	"github.com/weftnet/weft/internal/secret"
)

func TestConfigNamesEveryProblem(t *testing.T) {
	good := []string{"http://127.0.0.1:2379"}
	for _, c := range []struct {
		name string
		cfg  etcd.Config
		want []string
	}{
		{"nothing", etcd.Config{}, []string{"endpoints: none"}},
		{"everything", etcd.Config{
			Endpoints: []string{"ftp://x", "http://", ""}, CertFile: "x", Username: "x",
			RequestTimeout: -1, RenewMargin: 24 * time.Hour, LivenessTTL: time.Millisecond,
		}, []string{`"ftp://x"`, `"http://"`, `""`, "certificate and key", "user name", "request timeout", "renew margin", "liveness"}},
		{"mixed", etcd.Config{Endpoints: []string{"http://a:1", "https://b:1"}}, []string{"mixed"}},
		{"no CA file", etcd.Config{Endpoints: good, CAFile: "/nowhere"}, []string{"CA file", "/nowhere"}},
		{"no PEM", etcd.Config{Endpoints: good, CAFile: "config_test.go"}, []string{"CA file", "no PEM"}},
		{"no certificate", etcd.Config{Endpoints: good, CertFile: "/nowhere", KeyFile: "/nowhere"}, []string{"client certificate"}},
	} {
		_, err := etcd.New(c.cfg, slog.New(slog.DiscardHandler))
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q is not named: %v", c.name, want, err)
			}
		}
	}
}

func TestAPasswordWithoutAUserIsNone(t *testing.T) {
	store, err := etcd.New(etcd.Config{Endpoints: []string{"http://127.0.0.1:1"}, Password: secret.New("p")}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
}

func TestPasswordIsNeverShown(t *testing.T) {
	cfg := etcd.Config{Username: "u", Password: secret.New("hunter2")}
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	out := &logs{}
	out.logger().Info("config", "config", cfg, "password", cfg.Password)
	for _, s := range []string{string(text), out.String(), fmt.Sprintf("%v %+v %#v %s %q", cfg, cfg, cfg, cfg.Password, cfg.Password)} {
		if strings.Contains(s, "hunter2") {
			t.Errorf("shown: %s", s)
		}
	}
}
