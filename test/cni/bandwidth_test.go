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
		c, err := net.DialTimeout("tcp", at.String(), 30*time.Second)
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
		var got []float64 // a process that does not get the CPU for a while measures too little or, later, too much
		for i := range 20 {
			at := netip.AddrPortFrom(d.at.Addr(), d.at.Port()+uint16(10*i))
			got = append(got, receive(t, d.server, d.client, at, int64(d.want/8*3))/d.want)
			if got[i] > 0.85 && got[i] < 1.05 { // headers are 5 % of the wire
				break
			}
		}
		if last := got[len(got)-1]; last < 0.85 || last > 1.05 {
			t.Errorf("%s: %.2f of what is allowed", d.name, got)
		}
	}
	n.del(c)
	n.wantClean()
}
