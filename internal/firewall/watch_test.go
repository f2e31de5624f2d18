package firewall

import (
	"context"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/netnstest"
)

// watch starts Watch and returns the channel of its wake-ups.
func watch(t *testing.T, fw *Firewall) <-chan struct{} {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	woken, ended := make(chan struct{}, 1000), make(chan error)
	go func() { ended <- fw.Watch(ctx, func() { woken <- struct{}{} }) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("watch: %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("watch does not end")
		}
	})
	return woken
}

// TestWatch wakes for what others do to the chains that matter, and for nothing else.
func TestWatch(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		fw, p := open(t), dual(m)
		woken := watch(t, fw)
		sh(t, "iptables-nft -P FORWARD ACCEPT")
		<-woken
		apply(t, fw, p)
		damages := []string{"nft flush ruleset", "iptables-nft -A FORWARD -j ACCEPT", "iptables-nft -F FLANNEL-FWD"}
		if m == NFTables {
			damages = append(damages, "nft flush chain ip6 flannel-ipv6 postrtg", "nft delete table ip flannel-ipv4")
		}
		for _, damage := range damages {
			for len(woken) > 0 {
				<-woken
			}
			sh(t, damage)
			select {
			case <-woken:
			case <-time.After(time.Minute):
				t.Errorf("%s: asleep", damage)
			}
			apply(t, fw, p)
			sh(t, "iptables-nft -P FORWARD ACCEPT")
			apply(t, fw, p)
		}
	})
}

// TestWatchIgnores counts wake-ups over our own transactions and other people's tables. Events come in order:
// once the one that matters has come, no other is on its way.
func TestWatchIgnores(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		fw := open(t)
		for _, m := range []Mode{IPTables, NFTables, IPTables} {
			apply(t, fw, dual(m))
		}
		sh(t, `nft 'table inet theirs { chain FORWARD { type filter hook forward priority 5; drop; }; }'
			nft add table ip theirs
			nft add chain ip nat KUBE-SERVICES
			nft add rule ip nat KUBE-SERVICES accept
			nft add set ip nat s '{ type ipv4_addr; }'
			nft add element ip nat s '{ 10.0.0.1 }'
			nft delete table inet theirs
			nft add rule ip filter FLANNEL-FWD accept`)
		woken := watch(t, fw)
		<-woken
		sh(t, "nft add chain ip nat KUBE-NODEPORTS; nft add rule ip nat POSTROUTING accept")
		<-woken
		if n := len(woken); n != 0 {
			t.Errorf("%d wake-ups too many", n)
		}
	})
}

// TestWatchOverflow wakes when events were lost.
func TestWatchOverflow(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		fw := open(t)
		if err := fw.events.SetReadBuffer(1); err != nil { // the kernel makes it the least it allows
			t.Fatal(err)
		}
		sh(t, `nft add table inet theirs; nft add chain inet theirs c
			seq -f 'add rule inet theirs c tcp dport %.0f accept' 5000 | nft -f -`)
		// What comes now is dropped without another error, since the queue is not drained: its end must be told.
		sh(t, "iptables-nft -P FORWARD ACCEPT")
		woken := watch(t, fw)
		for _, when := range []string{"events are lost", "no more are"} {
			select {
			case <-woken:
			case <-time.After(time.Minute):
				t.Fatalf("asleep when %s", when)
			}
		}
		sh(t, "iptables-nft -P FORWARD DROP")
		select {
		case <-woken:
		case <-time.After(time.Minute):
			t.Error("asleep afterwards")
		}
	})
}

// TestRepair mends a flushed ruleset as the agent would, woken by the event.
func TestRepair(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		fw, p := open(t), dual(m)
		apply(t, fw, p)
		woken := watch(t, fw)
		sh(t, "nft flush ruleset")
		start := time.Now()
		<-woken
		apply(t, fw, p)
		t.Logf("mended after %v", time.Since(start))
		settled(t, fw, p)
	})
}
