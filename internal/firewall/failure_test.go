package firewall

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/netnstest"
)

// TestUnhookedBase meets a POSTROUTING that sees no packets, which nobody but an operator can explain.
func TestUnhookedBase(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		sh(t, "nft add table ip nat; nft add chain ip nat POSTROUTING")
		fw := open(t)
		_, err := fw.Apply(context.Background(), dual(IPTables))
		if err == nil || !strings.Contains(err.Error(), "chain ip nat POSTROUTING is there but sees no nat packets") {
			t.Errorf("error %v", err)
		}
		shows(t, "ip6tables-nft -t nat -S | grep ^-A", iptables6) // the other family does not suffer
	})
}

// TestOtherWriters applies policies while iptables-nft writes to the same chains as fast as it can.
func TestOtherWriters(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		fw, p := open(t), dual(IPTables)
		apply(t, fw, p)
		stop := make(chan struct{})
		done := background(t, stop, "sh", "-c", `iptables-nft -A FORWARD -i eth9 -j ACCEPT; iptables-nft -t nat -A POSTROUTING -o eth9 -j ACCEPT
			iptables-nft -D FORWARD -i eth9 -j ACCEPT; iptables-nft -t nat -D POSTROUTING -o eth9 -j ACCEPT
			iptables-nft -D FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD || :`)
		for i := range 50 {
			p.Mode = Mode(i % 3 % 2)
			apply(t, fw, p)
		}
		close(stop)
		<-done
		// iptables gives up when it finds the ruleset changed too often, and leaves what it had put.
		sh(t, "iptables-nft -D FORWARD -i eth9 -j ACCEPT 2>&1 || :; iptables-nft -t nat -D POSTROUTING -o eth9 -j ACCEPT 2>&1 || :")
		p.Mode = IPTables
		apply(t, fw, p)
		settled(t, fw, p)
		shows(t, "iptables-nft -t nat -S | grep ^-A", iptables4)
		shows(t, "iptables-nft -t filter -S | grep ^-A", forward4)
	})
}

// refuser is a kernel that lacks something.
type refuser struct {
	ruleset
	errno unix.Errno
	text  string // refused in rules
}

func (r refuser) commit(f family.Family, generation uint32, tx []request) error {
	for _, q := range tx {
		if strings.Contains(q.what, r.text) {
			return q.failure(f, r.errno)
		}
	}
	return r.ruleset.commit(f, generation, tx)
}

// TestRandomRefused falls back to ordinary masquerading, in one family if only that refuses.
func TestRandomRefused(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		fw, p := open(t), dual(m)
		fw.rules = refuser{fw.rules, unix.EOPNOTSUPP, "random"}
		apply(t, fw, p)
		if changes := apply(t, fw, p); len(changes) != 0 {
			t.Errorf("no rest: %+v", changes)
		}
		s := sh(t, "nft list ruleset; iptables-nft-save; ip6tables-nft-save")
		if strings.Contains(s, "random") || !strings.Contains(strings.ToLower(s), "masquerade") {
			t.Errorf("want masquerading without random ports:\n%s", s)
		}
	})
}

// restless is a kernel whose ruleset somebody changes before every commit.
type restless struct{ ruleset }

func (r restless) commit(f family.Family, generation uint32, tx []request) error {
	if generation != 0 {
		return unix.ERESTART
	}
	return r.ruleset.commit(f, 0, tx)
}

// TestRestlessRuleset goes from one mode to the other in one pass all the same: events of tables that are not ours
// wake nobody, so there is no next one.
func TestRestlessRuleset(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		fw, p := open(t), dual(m)
		apply(t, fw, p)
		kernel := fw.rules
		fw.rules = restless{kernel}
		p.Mode = 1 - m
		apply(t, fw, p)
		fw.rules = kernel
		if changes, err := fw.Plan(p); err != nil || len(changes) != 0 {
			t.Errorf("left to do: %+v, %v", changes, err)
		}
	})
}

// jealous is a kernel whose ruleset somebody changes before every commit, and before the first that does not mind takes
// away our jump.
type jealous struct {
	ruleset
	t     *testing.T
	taken *bool
}

func (j jealous) commit(f family.Family, generation uint32, tx []request) error {
	if generation != 0 {
		return unix.ERESTART
	}
	if !*j.taken {
		*j.taken = true
		sh(j.t, `iptables-nft -D FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD`)
	}
	return j.ruleset.commit(f, 0, tx)
}

// TestWhatIsToGoIsGone moves a jump that somebody deletes in between.
func TestWhatIsToGoIsGone(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		fw, p := open(t), dual(m)
		sh(t, "iptables-nft -P FORWARD DROP") // has FLANNEL-FWD in both modes
		apply(t, fw, p)
		sh(t, "iptables-nft -A FORWARD -i eth9 -j ACCEPT")
		kernel, taken := fw.rules, false
		fw.rules = jealous{kernel, t, &taken}
		apply(t, fw, p)
		fw.rules = kernel
		if !taken {
			t.Error("nothing was to be moved")
		}
		if s := sh(t, "iptables-nft -S FORWARD | tail -1"); !strings.Contains(s, "-j FLANNEL-FWD") {
			t.Errorf("last in FORWARD: %s", s)
		}
		settled(t, fw, p)
	})
}

// TestMissingModule names the module, and leaves what is there untouched.
func TestMissingModule(t *testing.T) {
	cases := map[Mode]string{
		IPTables: "does the kernel have nft_compat, xt_comment, xt_MASQUERADE for IPv4?",
		NFTables: "does the kernel have nft_masq for IPv4?",
	}
	modes(t, func(t *testing.T, m Mode) {
		fw := open(t)
		before := generation(t, fw)
		fw.rules = refuser{fw.rules, unix.ENOENT, "ip saddr 10.5.0.0/16 ip daddr != 224"}
		if m == IPTables {
			fw.rules = refuser{fw.rules, unix.ENOENT, "! -d 224"}
		}
		p := dual(m)
		p.Network.V6 = nil
		_, err := fw.Apply(context.Background(), p)
		if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), cases[m]) {
			t.Errorf("error %v", err)
		}
		if generation(t, fw) != before {
			t.Error("wrote something all the same")
		}
	})
}

// TestTransactionError reads the kernel's own refusal: the request that failed, and nothing done.
func TestTransactionError(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		fw := open(t)
		p := place{table: "nat", chain: "A", base: spotNAT.place(family.V4).base}
		q := place{table: "nat", chain: "B"}
		err := fw.conn.commit(family.V4, 0, []request{p.addTable(family.V4), p.addChain(family.V4),
			q.appendRule(family.V4, NFTables, q.chain, rule{action: actionAccept}), q.addChain(family.V4)})
		if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "add rule to ip nat B: accept") {
			t.Errorf("error %v", err)
		}
		g := generation(t, fw)
		if err := fw.conn.commit(family.V4, g+1, []request{p.addTable(family.V4)}); !errors.Is(err, unix.ERESTART) {
			t.Errorf("wrong generation: %v", err)
		}
		if s := sh(t, "nft list ruleset"); s != "" {
			t.Errorf("there is %s", s)
		}
		apply(t, fw, dual(IPTables)) // the socket is still good
	})
}

// TestLostAnswer waits for an answer that does not come. The agent does not stop before the wait has ended.
func TestLostAnswer(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		fw := open(t)
		start := time.Now()
		if err := fw.conn.receive(func(netlink.Message) (bool, error) { return true, nil }); err == nil {
			t.Error("an answer came")
		}
		if took := time.Since(start); answerTimeout > 5*time.Second || took > time.Minute { // a busy machine adds to it
			t.Errorf("waited for %s, of which %s are wanted", took, answerTimeout)
		}
		apply(t, fw, dual(IPTables))
	})
}

// TestAnAnswerThatIsThereCounts has the deadline pass between two answers that are both there, as it does where this
// process gets no CPU.
func TestAnAnswerThatIsThereCounts(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		fw := open(t)
		question := tablesMessage(unix.AF_UNSPEC, unix.NFT_MSG_GETGEN, 0, nil)
		for range 2 {
			if _, err := fw.conn.SendMessages([]netlink.Message{question}); err != nil {
				t.Fatal(err)
			}
		}
		answers := 0
		err := fw.conn.receive(func(netlink.Message) (bool, error) {
			answers++
			return answers == 2, fw.conn.SetReadDeadline(time.Unix(1, 0))
		})
		if err != nil || answers != 2 {
			t.Errorf("%d answers, %v", answers, err)
		}
		apply(t, fw, dual(IPTables))
	})
}

func TestCancelled(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		fw, err := Open(slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		changes, err := fw.Apply(ctx, dual(NFTables))
		if !errors.Is(err, context.Canceled) || len(changes) != 0 {
			t.Errorf("changes %v, error %v", changes, err)
		}
		if err := fw.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestRefusalIsNotForEver asks again for what the kernel has refused, now and then and in silence, and takes it when
// its module has come.
func TestRefusalIsNotForEver(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		var log strings.Builder
		fw, p := open(t), clamping(m)
		fw.log = slog.New(slog.NewTextHandler(&log, nil))
		kernel := fw.rules
		later := func() {
			for _, l := range []*lack{&fw.noRandom.V4, &fw.noRandom.V6, &fw.noClamp.V4, &fw.noClamp.V6} {
				l.asked = l.asked.Add(-2 * askAgain)
			}
		}
		clamps := map[Mode]string{IPTables: "TCPMSS", NFTables: "maxseg"}[m]
		fw.rules = refuser{refuser{kernel, unix.EOPNOTSUPP, "random"}, unix.ENOENT, clamps}
		for range 3 {
			apply(t, fw, p)
			later()
		}
		if s := everything(t); strings.Contains(s, "random") || strings.Contains(s, clamps) {
			t.Fatalf("the kernel did not refuse:\n%s", s)
		}
		fw.rules = kernel
		later()
		apply(t, fw, p)
		if s := everything(t); !strings.Contains(s, "random") || !strings.Contains(s, clamps) {
			t.Errorf("not asked again:\n%s", s)
		}
		settled(t, fw, p)
		if warned, ended := strings.Count(log.String(), "level=WARN"), strings.Count(log.String(), "level=INFO"); warned != 4 || ended != 4 {
			t.Errorf("want one line when each begins and one when it ends, per family:\n%s", &log)
		}
	})
}
