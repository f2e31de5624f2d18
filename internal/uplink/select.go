package uplink

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/ranges"
)

// Options are what the operator and the cluster say about the choice. All of them are optional.
type Options struct {
	Iface      []string // --iface: addresses or names, in order
	IfaceRegex []*regexp.Regexp
	CanReach   netip.Addr // --iface-can-reach

	Public     family.Pair[netip.Addr] // --public-ip, --public-ipv6
	NodePublic family.Pair[netip.Addr] // annotations node-public-ip, node-public-ipv6; stronger than Public
	Overwrite  family.Pair[netip.Addr] // annotations public-ip-overwrite, public-ipv6-overwrite: only published

	// NodeIP is the address by which the cluster knows this node (InternalIP). Without any of the
	// options above, the device carrying it is preferred to the one of the default route.
	NodeIP family.Pair[netip.Addr]

	// Networks are the pod networks: a bridge with an address inside is the pods', whatever its name.
	Networks family.Pair[ranges.List]
}

// A FamilyError says that one family of a dual-stack node has no usable way out while the other has:
// whoever asked may go on with the other one alone.
type FamilyError struct {
	Family family.Family // the one that is missing
	Err    error
}

func (e *FamilyError) Error() string { return e.Family.String() + ": " + e.Err.Error() }

func (e *FamilyError) Unwrap() error { return e.Err }

// Select chooses the uplink for the families that are on. What is explicitly asked for always wins; where the
// rules leave a choice, current (zero: none) is kept as long as it satisfies them. The Decision is
// complete with an error too. For dual stack the error is a *FamilyError if one family alone would do.
// An error does not mean that current has stopped working: a running node keeps it and selects again later.
func Select(host Host, opts Options, on family.Pair[bool], current Uplink) (Uplink, Decision, error) {
	s := selection{host: host, opts: opts, on: on, current: current}
	u, err := s.run()
	if err == nil || !on.V4 || !on.V6 || s.contradiction {
		return u, s.decision, err
	}
	missing := map[family.Family]error{}
	for _, f := range family.All() {
		alone := selection{host: host, opts: opts, current: current}
		*alone.on.Ref(f) = true
		if _, err := alone.run(); err != nil {
			missing[f] = err
		}
	}
	if len(missing) == 1 {
		for f, ferr := range missing {
			err = &FamilyError{Family: f, Err: ferr}
		}
	}
	return Uplink{}, s.decision, err
}

// A selection is one call of Select for one set of families.
type selection struct {
	host     Host
	opts     Options
	on       family.Pair[bool]
	current  Uplink
	decision Decision

	contradiction bool // flags name two devices: no family should go on alone, the operator has to decide
}

// A rule is one way to find candidates, the one to prefer first.
type rule struct {
	name string // as the operator knows it: the flag and its value
	find func() ([]candidate, error)
}

// A candidate is a device that a rule proposes.
type candidate struct {
	link   Link
	why    string
	named  bool                    // the operator means this very device, or an address on it
	pinned family.Pair[netip.Addr] // the address to use; zero: choose one
	match  func(netip.Addr) bool   // what a chosen address must fulfil; nil: nothing
	global family.Pair[bool]       // a link-local address will not do
}

func (s *selection) run() (Uplink, error) {
	if !s.on.V4 && !s.on.V6 {
		return Uplink{}, errors.New("choose the external interface: neither IPv4 nor IPv6 is enabled")
	}
	rules, explicit := s.rules()
	var errs []error
	for _, r := range rules {
		u, err := s.try(r)
		if err == nil {
			return u, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", r.name, err))
	}
	remedy := "name the device or its address with --iface, or with --iface-regex or --iface-can-reach"
	if explicit {
		remedy = "correct the flag"
	}
	return Uplink{}, fmt.Errorf("choose the external interface: %w; %s; devices here: %s",
		oneLine(errs), remedy, s.host.summary())
}

// try settles on the first candidate of r that has all that is needed.
func (s *selection) try(r rule) (Uplink, error) {
	candidates, err := r.find()
	if err != nil {
		s.decision.reject(r.name, err.Error())
		return Uplink{}, err
	}
	var errs []error
	for _, c := range candidates {
		u, err := s.settle(c)
		if err != nil {
			s.decision.reject(c.link.Name, err.Error())
			errs = append(errs, fmt.Errorf("%s: %w", c.link.Name, err))
			continue
		}
		s.decision.choose(u, r.name, c)
		return u, nil
	}
	if len(errs) == 0 {
		errs = append(errs, errors.New("no device fits"))
	}
	return Uplink{}, oneLine(errs)
}

// oneLine joins errors for a log line or a readiness answer; errors.Join would put each on its own line.
func oneLine(errs []error) error {
	texts := make([]string, len(errs))
	for i, err := range errs {
		texts[i] = err.Error()
	}
	return errors.New(strings.Join(texts, "; "))
}

// settle checks the device and chooses its addresses.
func (s *selection) settle(c candidate) (Uplink, error) {
	u := Uplink{Name: c.link.Name, Index: c.link.Index, MTU: c.link.MTU}
	switch {
	case !c.named && s.host.overlay(c.link, s.opts.Networks):
		return Uplink{}, errors.New("it belongs to the pod network")
	case !c.link.Up:
		return Uplink{}, errors.New("the device is down")
	case c.link.MTU == 0:
		return Uplink{}, errors.New("the device has MTU 0")
	}
	for _, f := range family.All() {
		if !s.on.Of(f) {
			continue
		}
		addr := c.pinned.Of(f)
		if !addr.IsValid() {
			var err error
			if addr, err = s.address(c, f); err != nil {
				return Uplink{}, err
			}
		}
		*u.Addr.Ref(f) = addr
		*u.Public.Ref(f) = firstValid(s.opts.Overwrite.Of(f), s.public(f), addr)
	}
	return u, nil
}

func (s *selection) address(c candidate, f family.Family) (netip.Addr, error) {
	addr, ok := c.link.choose(f, s.current.Addr.Of(f), c.match)
	switch {
	case !ok:
		return addr, fmt.Errorf("no usable %s address%s", f, c.link.unusableNote(f))
	case c.global.Of(f) && addr.IsLinkLocalUnicast():
		return addr, fmt.Errorf("no %s default route, and only the link-local address %s", f, addr)
	}
	return addr, nil
}

// public returns the address that the operator wants published in family f, unless it is off.
func (s *selection) public(f family.Family) netip.Addr {
	if !s.on.Of(f) {
		return netip.Addr{}
	}
	return firstValid(s.opts.NodePublic.Of(f), s.opts.Public.Of(f))
}

func firstValid(addrs ...netip.Addr) netip.Addr {
	for _, a := range addrs {
		if a.IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

// unusableNote says why the addresses of family f that l has do not count.
func (l Link) unusableNote(f family.Family) string {
	var notes []string
	for _, a := range l.Addrs {
		if why := a.unusable(); why != "" && family.Of(a.Prefix.Addr()) == f {
			notes = append(notes, a.Prefix.Addr().String()+": "+why)
		}
	}
	if len(notes) == 0 {
		return ""
	}
	return " (" + strings.Join(notes, "; ") + ")"
}
