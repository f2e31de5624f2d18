package uplink

import (
	"errors"
	"fmt"
	"slices"

	"github.com/weftnet/weft/internal/family"
)

// byDefaultRoute takes the device of the first default route; in dual stack those of both families must
// agree. A family without a default route follows the other one, if it has a global address there: on-link
// peers need no router. The device in use is kept while it still has a default route, so that a second
// one does not renumber the node, and also while there is none at all: a DHCP renewal that takes the
// route away for a moment has not moved the node.
func (s *selection) byDefaultRoute() ([]candidate, error) {
	var devices family.Pair[[]Link]
	var unfit []error
	for _, f := range family.All() {
		if s.on.Of(f) {
			ls, errs := s.defaultDevices(f)
			*devices.Ref(f), unfit = ls, append(unfit, errs...)
		}
	}
	if l, ok := s.currentDefault(devices); ok {
		return []candidate{s.defaultCandidate(l, devices)}, nil
	}
	v4, v6 := devices.V4, devices.V6
	switch {
	case len(v4) == 0 && len(v6) == 0:
		return s.noDefault(unfit)
	case len(v4) > 0 && len(v6) > 0 && v4[0].Index != v6[0].Index:
		return nil, fmt.Errorf("IPv4 leaves through %s and IPv6 through %s, but both must use the same device",
			v4[0].Name, v6[0].Name)
	case len(v4) > 0:
		return []candidate{s.defaultCandidate(v4[0], devices)}, nil
	}
	return []candidate{s.defaultCandidate(v6[0], devices)}, nil
}

// defaultDevices returns the devices of the default routes of family f that have an address to send from,
// and what is wrong with the others.
func (s *selection) defaultDevices(f family.Family) (fit []Link, unfit []error) {
	for _, index := range s.host.Defaults.Of(f) {
		l, ok := s.host.linkAt(index)
		if !ok {
			continue
		}
		alone := selection{host: s.host, opts: s.opts, current: s.current}
		*alone.on.Ref(f) = true
		if _, err := alone.settle(candidate{link: l}); err != nil {
			s.decision.reject(l.Name, err.Error())
			unfit = append(unfit, fmt.Errorf("%s: %w", l.Name, err))
			continue
		}
		fit = append(fit, l)
	}
	return fit, unfit
}

// currentDefault returns the device in use if each family that has default routes has one through it.
func (s *selection) currentDefault(devices family.Pair[[]Link]) (Link, bool) {
	var found Link
	for _, f := range family.All() {
		ls := devices.Of(f)
		if len(ls) == 0 {
			continue
		}
		i := slices.IndexFunc(ls, func(l Link) bool { return l.Name == s.current.Name })
		if i < 0 {
			return Link{}, false
		}
		found = ls[i]
	}
	return found, found.Index != 0
}

func (s *selection) defaultCandidate(l Link, devices family.Pair[[]Link]) candidate {
	c := candidate{link: l, why: "a default route leaves through it"}
	for _, f := range family.All() {
		*c.global.Ref(f) = len(devices.Of(f)) == 0
	}
	s.rejectOthers(l)
	return c
}

// rejectOthers notes the devices that a default route would have made the uplink.
func (s *selection) rejectOthers(chosen Link) {
	for _, l := range s.host.Links {
		if l.Index == chosen.Index || s.host.overlay(l, s.opts.Networks) || !s.hasMatching(l, nil) {
			continue
		}
		reason := "no default route leaves through it"
		for _, f := range family.All() {
			if slices.Contains(s.host.Defaults.Of(f), l.Index) {
				reason = "its default route comes after that of " + chosen.Name + ", or " + chosen.Name + " is in use already"
			}
		}
		s.decision.reject(l.Name, reason)
	}
}

// noDefault keeps the device in use if its addresses are still there.
func (s *selection) noDefault(unfit []error) ([]candidate, error) {
	l, ok := s.host.linkNamed(s.current.Name)
	for _, f := range family.All() {
		if a := s.current.Addr.Of(f); s.on.Of(f) {
			ok = ok && a.IsValid() && l.has(a)
		}
	}
	if !ok && len(unfit) > 0 {
		return nil, oneLine(unfit)
	}
	if !ok {
		return nil, errors.New("there is none")
	}
	return []candidate{{link: l, why: "in use already, and there is no default route now"}}, nil
}
