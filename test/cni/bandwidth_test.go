package cni

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// receive measures what one side of a TCP connection gets, in bits per second.
func receive(t *testing.T, server, client func(func() error) error, at netip.AddrPort, bytes int64) float64 {
	t.Helper()
	must(t, server(func() error {
		l, err := (&net.ListenConfig{Control: reuse}).Listen(context.Background(), "tcp", at.String())
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = io.Copy(c, io.LimitReader(zeros{}, bytes))
		}()
		return nil
	}))
	var rate float64
	must(t, client(func() error {
		c, err := net.DialTimeout("tcp", at.String(), 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := io.CopyN(io.Discard, c, bytes/3); err != nil { // the bucket's burst, and TCP finding its pace
			return err
		}
		start := time.Now()
		n, err := io.Copy(io.Discard, c)
		rate = float64(n) * 8 / time.Since(start).Seconds()
		return err
	}))
	return rate
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestBandwidth(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, v4Env)
	a := newPod(t, "a")
	const rate, burst = 20_000_000, 256_000
	c := call{pod: a, list: modern, caps: map[string]any{"bandwidth": map[string]any{
		"ingressRate": rate, "ingressBurst": burst, "egressRate": rate / 2, "egressBurst": burst,
	}}}
	r := n.add(c)
	must(t, n.check(c))
	for _, d := range []struct {
		name           string
		server, client func(func() error) error
		at             netip.AddrPort
		want           float64
	}{
		{"to the pod", here, a.do, netip.MustParseAddrPort("10.244.3.1:7001"), rate},
		{"from the pod", a.do, here, netip.AddrPortFrom(address(t, r, 4), 7002), rate / 2},
	} {
		got := receive(t, d.server, d.client, d.at, int64(d.want/8*3))
		if got < 0.85*d.want || got > 1.05*d.want { // headers are 5 % of the wire
			t.Errorf("%s: %.1f Mbit/s, not %.1f", d.name, got/1e6, d.want/1e6)
		}
	}
	n.del(c)
	n.wantClean()
}
