// Package firewall keeps the rules that pod traffic needs in netfilter: masquerading towards everything
// that is not a pod, and acceptance where somebody else's FORWARD chain would drop.
//
// There is one policy and two places to put it, and either is written over netlink without any program:
//
//   - IPTables: the chains FLANNEL-POSTRTG, FLANNEL-FWD and FLANNEL-MSS of the tables nat, filter and mangle, with
//     a jump each from POSTROUTING and FORWARD, in the encoding of iptables-nft, which therefore lists them.
//   - NFTables: tables of our own, ip flannel-ipv4 and ip6 flannel-ipv6. An accept in one base chain does
//     not save a packet from another base chain's drop, so FLANNEL-FWD is spliced into a filter table's
//     FORWARD chain in this mode too, where there is one.
//
// A packet that leaves for another host meets, in this order: "kube-proxy marked it, leave it", "pod to
// pod, leave it", "from outside to a pod of this node, leave it, so that the pod sees its client", "from a
// pod to anywhere else, masquerade", "from anywhere else to a pod of another node, masquerade, so that the
// reply comes back the same way".
//
// Clamping the MSS is not the original's, and it removes only what it knows. When it takes over a node without our
// Cleanup, FLANNEL-MSS and its jump stay in iptables mode; in nftables mode the chain mss stays until the original
// deletes the table, on going to iptables mode. Both are harmless: they never do more than the routes demand.
//
// A pass lists only the chains concerned, compares, and writes nothing when nothing differs. Content is
// replaced inside one transaction, and what replaces something else is there before that goes: no packet
// ever meets half a policy.
package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/state"
)

// A Mode is where the rules are put.
type Mode uint8

// The modes.
const (
	IPTables Mode = iota // chains FLANNEL-POSTRTG, FLANNEL-FWD and FLANNEL-MSS in the tables of iptables-nft
	NFTables             // tables ip flannel-ipv4 and ip6 flannel-ipv6
)

func (m Mode) String() string {
	if m == NFTables {
		return "nftables"
	}
	return "iptables"
}

// A Policy is what the rules follow from. The zero Policy wants no rule at all.
type Policy struct {
	Mode        Mode
	Masquerade  bool
	Forward     bool
	RandomFully bool // choose masqueraded ports at random; left out where the kernel refuses it
	Clamp       bool // clamp the MSS of TCP connections that pods open or accept to what the routes allow; left out likewise

	// Network holds the cluster's ranges, usually one per family; none switches the family off.
	Network family.Pair[[]netip.Prefix]
	Subnet  family.Pair[netip.Prefix] // this node's subnet
}

// check returns what makes p impossible to turn into rules.
func (p Policy) check() error {
	var errs []error
	for _, f := range family.All() {
		networks, subnet := p.Network.Of(f), p.Subnet.Of(f)
		if len(networks) == 0 {
			continue
		}
		if p.Masquerade { // nothing else speaks of the subnet
			networks = append(networks[:len(networks):len(networks)], subnet)
		}
		for _, n := range networks {
			if !n.IsValid() || n.Bits() == 0 || family.Of(n.Addr()) != f {
				errs = append(errs, fmt.Errorf("firewall: %q is not an %s range to make rules for", n, f))
			}
		}
	}
	return errors.Join(errs...)
}

// A ruleset is the part of the kernel's nf_tables that a Firewall works on.
type ruleset interface {
	// list reads what there is of family f. Strays are looked for only in spots that are unwanted.
	list(f family.Family, want layout) (listing, error)
	// commit carries out a transaction, all or nothing. Unless generation is 0 it fails with ERESTART if
	// anything has changed in the namespace's ruleset since the listing of that generation.
	commit(f family.Family, generation uint32, tx []request) error
}

// A Firewall keeps the rules of one network namespace. Its methods may be called at the same time.
type Firewall struct {
	log    *slog.Logger
	rules  ruleset
	conn   *conn
	events *netlink.Conn

	mu       sync.Mutex          // guards what follows
	noRandom family.Pair[lack]   // of RandomFully
	noClamp  family.Pair[lack]   // of Clamp
	passed   family.Pair[uint64] // what the FORWARD jump was last moved behind
	blocked  family.Pair[string] // a rule before the FORWARD jump that refuses everything
}

// Open returns the Firewall of the calling thread's network namespace. It changes nothing. Events are
// subscribed to from here on, so that nothing is missed between the first pass and Watch.
func Open(log *slog.Logger) (*Firewall, error) {
	events, err := subscribe()
	if err != nil {
		return nil, fmt.Errorf("firewall: subscribe to nftables events: %w", err)
	}
	c, err := dial()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("firewall: %w", err), events.Close())
	}
	return &Firewall{log: log, rules: c, conn: c, events: events}, nil
}

// Close ends Watch and lets go of the sockets. The rules stay.
func (f *Firewall) Close() error {
	return errors.Join(f.conn.Close(), f.events.Close())
}

// Plan returns what Apply would change. It writes nothing.
func (f *Firewall) Plan(p Policy) ([]state.Change, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var changes []state.Change
	var errs []error
	for _, fam := range family.All() {
		_, d, err := f.compare(fam, p)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		changes = append(changes, changesOf(d.set)...)
		changes = append(changes, changesOf(d.del)...)
	}
	return changes, errors.Join(errs...)
}

// Apply brings the rules in line with p and returns what it changed. One family's failure does not hold up
// the other; calling Apply again is always safe.
func (f *Firewall) Apply(ctx context.Context, p Policy) ([]state.Change, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var changes []state.Change
	var errs []error
	for _, fam := range family.All() {
		c, err := f.applyFamily(ctx, fam, p)
		changes = append(changes, c...)
		if err != nil {
			errs = append(errs, err)
		}
	}
	return changes, errors.Join(errs...)
}

// A lack is a feature that the kernel refuses. It may take it later, when a module has been installed.
type lack struct {
	asked time.Time // zero: the kernel has not refused, or is to be asked again
	mode  Mode      // each mode needs modules of its own
	told  bool
}

// askAgain is how long the kernel is left alone with what it has refused.
const askAgain = 10 * time.Minute

func (l *lack) expire(m Mode) {
	if l.mode != m || time.Since(l.asked) > askAgain {
		l.asked = time.Time{}
	}
}

func (l *lack) refused(m Mode, log *slog.Logger, what string, fam family.Family, err error) {
	if !l.told {
		log.Warn(what, "family", fam, "err", err)
	}
	*l = lack{asked: time.Now(), mode: m, told: true}
}

func (l *lack) taken(log *slog.Logger, what string, fam family.Family) {
	if l.told && l.asked.IsZero() {
		log.Info(what, "family", fam)
		l.told = false
	}
}

// attempts bounds how often one pass looks again because another program wrote between listing and commit.
// After that it does not insist: the worst that can follow is a jump too many, which the next pass takes
// away. Only where what it means to delete is gone does it look again, as often once more.
const attempts = 8

func (f *Firewall) applyFamily(ctx context.Context, fam family.Family, p Policy) ([]state.Change, error) {
	var changes []state.Change
	noRandom, noClamp := f.noRandom.Ref(fam), f.noClamp.Ref(fam)
	if p.RandomFully {
		noRandom.expire(p.Mode)
	}
	if p.Clamp {
		noClamp.expire(p.Mode)
	}
	for i := 1; ; i++ {
		if err := ctx.Err(); err != nil {
			return changes, err
		}
		have, d, err := f.compare(fam, p)
		if err != nil || len(d.set)+len(d.del) == 0 {
			return changes, err
		}
		// New before old, in transactions of their own: a packet that is between two base chains while one
		// transaction moves the masquerading from the later to the earlier would meet it in neither.
		todo := d.set
		if len(todo) == 0 {
			todo = d.del
		}
		generation := have.generation
		if i >= attempts {
			generation = 0
			todo = slices.DeleteFunc(todo, func(s step) bool { return s.guarded })
		}
		err = f.rules.commit(fam, generation, requestsOf(todo))
		switch {
		case err == nil:
			changes = append(changes, changesOf(todo)...)
			noRandom.taken(f.log, "kernel takes random-fully now", fam)
			noClamp.taken(f.log, "kernel clamps the MSS now", fam)
			if d.passes != 0 {
				*f.passed.Ref(fam) = d.passes
			}
			if len(d.set) == 0 || len(d.del) == 0 || i >= 2*attempts {
				return changes, nil
			}
		case errors.Is(err, unix.ERESTART) && i < attempts:
		case generation == 0 && i < 2*attempts && gone(err) && !errors.Is(err, errNoClamp):
		case errors.Is(err, errNoClamp) && noClamp.asked.IsZero():
			noClamp.refused(p.Mode, f.log, "kernel clamps no MSS, pods with a larger MTU rely on path MTU discovery", fam, err)
		case p.RandomFully && noRandom.asked.IsZero() && refused(err):
			noRandom.refused(p.Mode, f.log, "kernel refuses random-fully, masquerading without it", fam, err)
		default:
			return changes, err
		}
	}
}

// compare lists family fam and returns what there is and what to do about it.
func (f *Firewall) compare(fam family.Family, p Policy) (listing, difference, error) {
	p.RandomFully = p.RandomFully && f.noRandom.Of(fam).asked.IsZero()
	p.Clamp = p.Clamp && f.noClamp.Of(fam).asked.IsZero()
	want := p.layout(fam)
	have, err := f.rules.list(fam, want)
	if err != nil {
		return have, difference{}, fmt.Errorf("list %s firewall rules: %w", fam, err)
	}
	*f.blocked.Ref(fam) = have.spots[spotFilter].blocked
	d, err := diff(fam, want, have, f.passed.Of(fam))
	return have, d, err
}

// gone tells a transaction that named what somebody has taken away, or come to use, since the listing.
func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EBUSY) }

// refused tells a transaction that the kernel does not understand from one that failed for another reason.
func refused(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
}
