package firewall

import (
	"context"
	"log/slog"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/state"
)

// dual is the policy that most tests apply.
func dual(m Mode) Policy {
	return Policy{
		Mode: m, Masquerade: true, Forward: true, RandomFully: true,
		Network: family.Pair[[]netip.Prefix]{V4: prefixes("10.5.0.0/16"), V6: prefixes("fd00:5::/48")},
		Subnet: family.Pair[netip.Prefix]{
			V4: netip.MustParsePrefix("10.5.7.0/24"), V6: netip.MustParsePrefix("fd00:5:0:7::/64"),
		},
	}
}

func prefixes(ss ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// modes runs f in a fresh namespace once per mode.
func modes(t *testing.T, f func(t *testing.T, m Mode)) {
	t.Helper()
	need(t)
	for _, m := range []Mode{IPTables, NFTables} {
		t.Run(m.String(), func(t *testing.T) {
			netnstest.Run(t, func(t *testing.T) { f(t, m) })
		})
	}
}

func need(t testing.TB) {
	t.Helper()
	netnstest.Need(t, "nft", "nftables")
	netnstest.Need(t, "iptables-nft", "iptables")
}

func open(t testing.TB) *Firewall {
	t.Helper()
	fw, err := Open(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fw.Close() })
	return fw
}

func apply(t testing.TB, fw *Firewall, p Policy) []state.Change {
	t.Helper()
	changes, err := fw.Apply(context.Background(), p)
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	return changes
}

// settled makes sure that a further pass finds nothing to do and writes nothing, whoever makes it.
func settled(t testing.TB, fw *Firewall, p Policy) {
	t.Helper()
	for _, fw := range []*Firewall{fw, open(t)} {
		before := generation(t, fw)
		changes := apply(t, fw, p)
		if after := generation(t, fw); len(changes) != 0 || after != before {
			t.Errorf("another pass wrote: generation %d -> %d, changes %+v", before, after, changes)
		}
	}
}

func generation(t testing.TB, fw *Firewall) uint32 {
	t.Helper()
	g, err := fw.conn.generation()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// sh runs a shell script of ip, nft and iptables commands in the namespace.
func sh(t testing.TB, script string) string {
	t.Helper()
	return netnstest.Command(t, "sh", "-ec", script)
}

// shows compares what a command prints with text, blank lines, indentation and trailing space aside.
func shows(t testing.TB, command, want string) {
	t.Helper()
	if diff := cmp.Diff(lines(want), lines(sh(t, command))); diff != "" {
		t.Errorf("%s (-want +got):\n%s", command, diff)
	}
}

func lines(s string) []string {
	var ls []string
	for l := range strings.Lines(s) {
		if l = strings.TrimSpace(l); l != "" {
			ls = append(ls, l)
		}
	}
	return ls
}

// background runs a command over and over in the namespace until stop is closed, and closes the channel that
// it returns when the last run is over.
func background(t testing.TB, stop chan struct{}, name string, args ...string) chan struct{} {
	t.Helper()
	started, done := make(chan struct{}), make(chan struct{})
	ns := namespace(t)
	go func() {
		defer close(done)
		runtime.LockOSThread() // not unlocked: the thread has changed
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			t.Errorf("enter namespace: %v", err)
			close(started)
			return
		}
		for first := true; ; first = false {
			exec.Command(name, args...).Run()
			if first {
				close(started)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	<-started
	return done
}

// namespace returns the calling thread's network namespace as a file descriptor.
func namespace(t testing.TB) int {
	t.Helper()
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}
