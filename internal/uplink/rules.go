package uplink

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"github.com/weftnet/weft/internal/family"
)

// flagPublic and annotationPublic are the names under which operators give a public address.
var (
	flagPublic       = family.Pair[string]{V4: "--public-ip", V6: "--public-ipv6"}
	annotationPublic = family.Pair[string]{V4: "annotation node-public-ip", V6: "annotation node-public-ipv6"}
)

// rules returns the rules to try, the first that settles decides, and whether the operator asked for
// them. What is asked for excludes the rest: a node must not end up on a network that nobody meant.
func (s *selection) rules() (rules []rule, explicit bool) {
	for _, v := range s.opts.Iface {
		rules = append(rules, rule{"--iface=" + v, func() ([]candidate, error) { return s.byIface(v) }})
	}
	for _, re := range s.opts.IfaceRegex {
		rules = append(rules, rule{"--iface-regex=" + re.String(), func() ([]candidate, error) { return s.byRegex(re), nil }})
	}
	if to := s.opts.CanReach; to.IsValid() {
		rules = append(rules, rule{"--iface-can-reach=" + to.String(), func() ([]candidate, error) { return s.byReach(to) }})
	}
	if len(rules) > 0 {
		return rules, true
	}
	for _, f := range family.All() {
		if p := s.public(f); p.IsValid() {
			return []rule{{s.publicName(f), func() ([]candidate, error) { return s.byPublic(f, p) }}}, true
		}
	}
	for _, f := range family.All() {
		if ip := s.opts.NodeIP.Of(f); s.on.Of(f) && ip.IsValid() {
			rules = append(rules, rule{"node address " + ip.String(), func() ([]candidate, error) { return s.byNodeIP(ip) }})
			break
		}
	}
	return append(rules, rule{"default route", s.byDefaultRoute}), false
}

func (s *selection) publicName(f family.Family) string {
	if a := s.opts.NodePublic.Of(f); a.IsValid() {
		return annotationPublic.Of(f) + " " + a.String()
	}
	return flagPublic.Of(f) + "=" + s.opts.Public.Of(f).String()
}

// byIface takes an address if the value is one, else a name.
func (s *selection) byIface(value string) ([]candidate, error) {
	addr, err := netip.ParseAddr(value)
	if err != nil {
		l, ok := s.host.linkNamed(value)
		if !ok {
			return nil, errors.New("no such device")
		}
		return []candidate{{link: l, why: "the flag names it", named: true}}, nil
	}
	c, err := s.carrier(addr.Unmap(), "the flag names its address")
	if err != nil {
		return nil, err
	}
	if err := s.pinOther(&c, family.Of(addr.Unmap())); err != nil {
		return nil, err
	}
	return []candidate{c}, nil
}

// byPublic takes the device that carries the public address p of family f.
func (s *selection) byPublic(f family.Family, p netip.Addr) ([]candidate, error) {
	c, err := s.carrier(p, "it carries the public address")
	if err != nil {
		return nil, notLocal(err)
	}
	for _, other := range family.All() {
		if q := s.public(other); other != f && q.IsValid() {
			if _, ok := s.host.carrying(q); !ok {
				return nil, notLocal(fmt.Errorf("%s: %w", s.publicName(other), errNotHere))
			}
		}
	}
	if err := s.pinOther(&c, f); err != nil {
		return nil, err
	}
	return []candidate{c}, nil
}

var errNotHere = errors.New("the address is on no device of this host")

func notLocal(err error) error {
	return fmt.Errorf("%w: behind NAT, say with --iface, --iface-regex or --iface-can-reach which device to use, "+
		"or leave the address out and annotate the node with public-ip-overwrite", err)
}

// carrier proposes the device that a is on, with a as its address.
func (s *selection) carrier(a netip.Addr, why string) (candidate, error) {
	l, ok := s.host.carrying(a)
	if !ok {
		return candidate{}, errNotHere
	}
	c := candidate{link: l, why: why, named: true}
	*c.pinned.Ref(family.Of(a)) = a
	return c, nil
}

// pinOther uses the public address of the family that is not f, if one is given, as the address on the
// device. On another device it is a mistake; on none it is only published.
func (s *selection) pinOther(c *candidate, f family.Family) error {
	for _, other := range family.All() {
		p := s.public(other)
		if other == f || !p.IsValid() {
			continue
		}
		if c.link.has(p) {
			*c.pinned.Ref(other) = p
		} else if l, ok := s.host.carrying(p); ok {
			s.contradiction = true
			return fmt.Errorf("%s is on %s, but must be on the same device, %s", s.publicName(other), l.Name, c.link.Name)
		}
	}
	return nil
}

// byRegex takes devices by an address of every family that is on, or else by name.
func (s *selection) byRegex(re *regexp.Regexp) []candidate {
	match := func(a netip.Addr) bool { return re.MatchString(a.String()) }
	var byAddress, byName []candidate
	for _, l := range s.host.Links {
		if s.host.overlay(l, s.opts.Networks) {
			continue
		}
		if s.hasMatching(l, match) {
			byAddress = append(byAddress, candidate{link: l, why: "an address of it matches", match: match})
		}
		if re.MatchString(l.Name) && !l.Loopback {
			byName = append(byName, candidate{link: l, why: "its name matches"})
		}
	}
	if len(byAddress) > 0 {
		return s.currentFirst(byAddress)
	}
	return s.currentFirst(byName)
}

func (s *selection) hasMatching(l Link, match func(netip.Addr) bool) bool {
	for _, f := range family.All() {
		if _, ok := l.choose(f, s.current.Addr.Of(f), match); s.on.Of(f) && !ok {
			return false
		}
	}
	return true
}

// currentFirst moves the device in use to the front: it satisfies the rule as well as the others do.
func (s *selection) currentFirst(cs []candidate) []candidate {
	slices.SortStableFunc(cs, func(a, b candidate) int {
		return firstTrue(a.link.Name == s.current.Name, b.link.Name == s.current.Name)
	})
	return cs
}

func (s *selection) byReach(to netip.Addr) ([]candidate, error) {
	r, asked := s.host.RouteTo(to)
	switch {
	case !asked:
		return nil, errors.New("the route was not looked up")
	case r.Err != nil:
		return nil, fmt.Errorf("no route: %w", r.Err)
	case r.Local:
		return nil, errors.New("this is an address of this host itself; give one of another host")
	}
	l, ok := s.host.linkAt(r.Index)
	if !ok {
		return nil, fmt.Errorf("the route leaves through device number %d, which is gone", r.Index)
	}
	c := candidate{link: l, why: "the route to it leaves through this device"}
	if r.Src.IsValid() {
		*c.pinned.Ref(family.Of(to)) = r.Src
	}
	return []candidate{c}, nil
}

// byNodeIP takes the device carrying the address by which the cluster knows this node. Machines made
// from one template may all have the same address behind the default route (10.0.2.15 with Vagrant).
func (s *selection) byNodeIP(ip netip.Addr) ([]candidate, error) {
	c, err := s.carrier(ip, "the cluster knows this node by its address")
	if err != nil {
		return nil, err
	}
	c.named = false
	for _, f := range family.All() {
		if other := s.opts.NodeIP.Of(f); other.IsValid() && c.link.has(other) {
			*c.pinned.Ref(f) = other
		}
	}
	return []candidate{c}, nil
}
