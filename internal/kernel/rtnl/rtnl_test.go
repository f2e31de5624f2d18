package rtnl

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/netnstest"
)

func dial(t *testing.T) *Conn {
	t.Helper()
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func newBridge(b *Batch, name string) {
	b.Begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, make([]byte, unix.SizeofIfInfomsg))
	b.String(unix.IFLA_IFNAME, name)
	b.Nest(unix.IFLA_LINKINFO, func() { b.String(unix.IFLA_INFO_KIND, "bridge") })
}

func getLinks(b *Batch) { b.Begin(unix.RTM_GETLINK, 0, make([]byte, unix.SizeofIfInfomsg)) }

func TestErrorsAreToldApart(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		c := dial(t)
		for range 2 { // the second time all of them exist
			var b Batch
			for _, name := range []string{"a", "a", "a-name-that-is-too-long", "b"} {
				newBridge(&b, name)
			}
			got := map[int]error{}
			if err := c.Exec(&b, func(i int, err error) { got[i] = err }, nil); err != nil {
				t.Fatal(err)
			}
			if !errors.Is(got[1], unix.EEXIST) || got[2] == nil {
				t.Errorf("errors: %v", got)
			}
		}
		netnstest.Command(t, "ip", "link", "show", "a")
		netnstest.Command(t, "ip", "link", "show", "b")
	})
}

func TestErrorHasTheKernelsWords(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		c := dial(t)
		var b Batch
		newBridge(&b, "a-name-that-is-too-long")
		var got error
		if err := c.Exec(&b, func(_ int, err error) { got = err }, nil); err != nil {
			t.Fatal(err)
		}
		var e *Error
		if !errors.As(got, &e) || e.Text == "" {
			t.Errorf("error: %v", got)
		}
	})
}

// TestInterruptedDump makes a link while links are being listed.
func TestInterruptedDump(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		c, other := dial(t), dial(t)
		var b Batch
		for i := range 100 { // more than one read
			newBridge(&b, fmt.Sprint("br", i))
		}
		if err := c.Exec(&b, func(i int, err error) { t.Error(i, err) }, nil); err != nil {
			t.Fatal(err)
		}
		n := 0
		disturb := func(Message) {
			if n++; n > 1 {
				return
			}
			var b Batch
			newBridge(&b, "late")
			if err := other.Exec(&b, func(_ int, err error) { t.Error(err) }, nil); err != nil {
				t.Error(err)
			}
		}
		var list Batch
		getLinks(&list)
		if err := c.Dump(&list, disturb); !errors.Is(err, ErrInterrupted) {
			t.Errorf("dump: %v", err)
		}
		n = 0
		if err := c.Dump(&list, func(Message) { n++ }); err != nil || n != 102 {
			t.Errorf("listed %d links: %v", n, err)
		}
	})
}

// TestDumpWithoutStrictChecks has a request that a strict kernel refuses.
func TestDumpWithoutStrictChecks(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		c := dial(t)
		if !c.strict {
			netnstest.Unavailable(t, "no strict checks in this kernel")
		}
		var b Batch
		h := make([]byte, unix.SizeofRtMsg)
		h[0], h[3] = unix.AF_INET, 7 // a TOS filter, which there is not
		b.Begin(unix.RTM_GETROUTE, 0, h)
		n := 0
		if err := c.Dump(&b, func(Message) { n++ }); err != nil || n == 0 || c.strict {
			t.Errorf("%d routes, strict %v: %v", n, c.strict, err)
		}
	})
}

func TestOverrun(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		l, err := Listen(unix.RTNLGRP_LINK)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		raw, err := l.file.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)
		}); err != nil {
			t.Fatal(err)
		}
		var b Batch
		for i := range 20 {
			newBridge(&b, fmt.Sprint("br", i))
		}
		if err := dial(t).Exec(&b, func(i int, err error) { t.Error(i, err) }, nil); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := l.Receive(ctx, func(Message) {}); !errors.Is(err, ErrOverrun) {
			t.Errorf("receive: %v", err)
		}
		// What comes now is dropped without another error, since the queue is not drained: its end must be told.
		b.Reset()
		newBridge(&b, "dropped")
		if err := dial(t).Exec(&b, func(i int, err error) { t.Error(i, err) }, nil); err != nil {
			t.Fatal(err)
		}
		queued := 0
		if err := l.Receive(ctx, func(Message) { queued++ }); !errors.Is(err, ErrOverrun) || queued == 0 {
			t.Errorf("end of the overrun: %v, after %d messages", err, queued)
		}
		b.Reset()
		newBridge(&b, "heard")
		if err := dial(t).Exec(&b, func(i int, err error) { t.Error(i, err) }, nil); err != nil {
			t.Fatal(err)
		}
		heard := errors.New("heard")
		ctx, stop := context.WithCancelCause(ctx)
		if err := l.Receive(ctx, func(Message) { stop(heard) }); !errors.Is(context.Cause(ctx), heard) {
			t.Errorf("after the overrun: %v", err)
		}
	})
}

// TestLostAnswer waits for an answer that does not come. The agent does not stop before the wait has ended.
func TestLostAnswer(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		c := dial(t)
		var b Batch
		newBridge(&b, "a") // without NLM_F_ACK success has no answer
		if err := c.send(b.buf); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := c.receive(); err == nil {
			t.Error("an answer came")
		}
		if took := time.Since(start); replyTimeout > 5*time.Second || took > time.Minute { // a busy machine adds to it
			t.Errorf("waited for %s, of which %s are wanted", took, replyTimeout)
		}
		b.Reset()
		getLinks(&b)
		if err := c.Dump(&b, func(Message) {}); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

func FuzzMessages(f *testing.F) {
	var b Batch
	newBridge(&b, "a")
	getLinks(&b)
	f.Add(b.buf)
	f.Fuzz(func(t *testing.T, data []byte) {
		n := 0
		for m := range Messages(data) {
			n += headerLen + len(m.Body)
			_ = parseError(m)
			for typ, v := range Attrs(m.Body) {
				_ = typ
				_, _, _, _, _ = Uint8(v), Uint32(v), Uint16BE(v), String(v), Addr(v)
			}
		}
		if n > len(data) {
			t.Errorf("%d bytes out of %d", n, len(data))
		}
	})
}
