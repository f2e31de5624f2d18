package kernel_test

import (
	"context"
	"log/slog"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel"
	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/state"
)

const benchPeers = 5000

// benchHost is a namespace of its own with a large underlay.
func benchHost(b *testing.B) *kernel.Kernel {
	b.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		netnstest.Unavailable(b, "new network namespace (root is needed): %v", err)
	}
	sh(b, "ip link set lo up")
	uplink(b)
	sh(b, "ip addr del 10.77.0.1/24 dev eth0")
	sh(b, "ip addr add 10.77.0.1/16 dev eth0")
	k, err := kernel.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = k.Close() })
	return k
}

// benchNode has n peers in IPv4.
func benchNode(n int) state.State {
	s := node()
	delete(s.Links, "flannel-v6.1")
	delete(s.Addresses, state.Address{Dev: "flannel-v6.1", Prefix: netip.MustParsePrefix("fd24::/128")})
	delete(s.Sysctls, "net/ipv6/conf/flannel-v6.1/accept_ra")
	for i := 2; i < n+2; i++ {
		dst := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 5), byte(i << 3)}), 29)
		s.Neighbours[state.NeighbourKey{Dev: "flannel.1", Addr: dst.Addr()}] = mac(i)
		s.FDB[state.FDBKey{Dev: "flannel.1", MAC: mac(i)}] = peerAddr(i)
		s.Routes[state.RouteKey{Dst: dst}] = state.Route{
			Type: state.Unicast, Via: dst.Addr(), Dev: "flannel.1", OnLink: true, Protocol: state.Protocol}
	}
	return s
}

func BenchmarkApplyAll(b *testing.B) {
	k := benchHost(b)
	want := benchNode(benchPeers)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		if _, err := k.Cleanup(context.Background(), scope, false); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if r := apply(b, k, want); r.Writes[kernel.Write{Kind: "fdb", Op: state.Add}] != benchPeers {
			b.Fatalf("wrote %v", r.Writes)
		}
	}
}

func BenchmarkApplyUnchanged(b *testing.B) {
	k := benchHost(b)
	want := benchNode(benchPeers)
	apply(b, k, want)
	b.ReportAllocs()
	for b.Loop() {
		if r := apply(b, k, want); len(r.Writes) > 0 {
			b.Fatalf("wrote %v", r.Writes)
		}
	}
}

// BenchmarkOnePeer is a peer that joins a large cluster.
func BenchmarkOnePeer(b *testing.B) {
	k := benchHost(b)
	want, less := benchNode(benchPeers), benchNode(benchPeers-1)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		apply(b, k, less)
		b.StartTimer()
		if r := apply(b, k, want); len(r.Changes()) != 3 {
			b.Fatalf("wrote %v", r.Writes)
		}
	}
}

func BenchmarkOnLink(b *testing.B) {
	k := benchHost(b)
	var addrs []netip.Addr
	for i := range benchPeers {
		addrs = append(addrs, peerAddr(i+2))
	}
	b.ReportAllocs()
	for b.Loop() {
		m, err := k.OnLink(addrs)
		if err != nil || len(m) != len(addrs) {
			b.Fatal(len(m), err)
		}
	}
}
