package firewall

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/netnstest"
)

// BenchmarkRepair mends our chains among ten thousand foreign rules in the same base chains and tables.
func BenchmarkRepair(b *testing.B) {
	for _, m := range []Mode{IPTables, NFTables} {
		b.Run(m.String(), func(b *testing.B) {
			fw, p, flush := crowded(b, m)
			b.ResetTimer()
			for range b.N {
				if err := fw.conn.commit(family.V4, 0, flush); err != nil {
					b.Fatal(err)
				}
				if len(apply(b, fw, p)) == 0 {
					b.Fatal("nothing to mend")
				}
			}
		})
	}
}

// BenchmarkRest is a pass that finds nothing to do, among the same rules.
func BenchmarkRest(b *testing.B) {
	for _, m := range []Mode{IPTables, NFTables} {
		b.Run(m.String(), func(b *testing.B) {
			fw, p, _ := crowded(b, m)
			b.ResetTimer()
			for range b.N {
				if len(apply(b, fw, p)) != 0 {
					b.Fatal("something to mend")
				}
			}
		})
	}
}

// crowded returns a Firewall in a namespace with ten thousand foreign rules, and what damages its rules.
func crowded(b *testing.B, m Mode) (*Firewall, Policy, []request) {
	need(b)
	runtime.LockOSThread() // not unlocked: the thread goes with the benchmark's goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		netnstest.Unavailable(b, "new network namespace: %v", err)
	}
	sh(b, `iptables-nft -P FORWARD DROP; iptables-nft -t nat -F POSTROUTING; iptables-nft -t nat -N KUBE-SERVICES
		( echo '*filter'; seq -f '-A FORWARD -p tcp -m comment --comment "rule of somebody" --dport %.0f -j ACCEPT' 4000; echo COMMIT
		echo '*nat'; seq -f '-A POSTROUTING -p tcp -m comment --comment "rule of somebody" --dport %.0f -j ACCEPT' 1000
		seq -f '-A KUBE-SERVICES -p tcp -m comment --comment "rule of somebody" --dport %.0f -j ACCEPT' 5000
		echo COMMIT ) | iptables-nft-restore --noflush`)
	fw, p := open(b), dual(m)
	apply(b, fw, p)
	at := spotFilter.place(family.V4)
	flush := []request{at.flush(family.V4)}
	if m == NFTables {
		flush = append(flush, spotOwnNAT.place(family.V4).flush(family.V4))
	} else {
		flush = append(flush, spotNAT.place(family.V4).flush(family.V4))
	}
	return fw, p, flush
}
