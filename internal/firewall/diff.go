package firewall

import (
	"fmt"
	"slices"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/state"
)

// A difference is what turns a listing into a layout, as two transactions of which the second removes what
// the first has replaced. Both are empty if nothing differs.
type difference struct {
	set, del []step
	passes   uint64 // what the FORWARD jump is moved behind, 0 if it stays
}

// A step is a change and the requests that make it.
type step struct {
	change   state.Change
	requests []request
	guarded  bool // only if nothing was written since the listing: it would take others' rules along
}

func changesOf(steps []step) []state.Change {
	var changes []state.Change
	for _, s := range steps {
		changes = append(changes, s.change)
	}
	return changes
}

func requestsOf(steps []step) []request {
	var requests []request
	for _, s := range steps {
		requests = append(requests, s.requests...)
	}
	return requests
}

// A differ compares one spot.
type differ struct {
	family family.Family
	mode   Mode // the encoding of what is written
	spot   spot
	place  place
	have   found
}

// diff compares a family with its layout. Passed is what the FORWARD jump has once been moved behind; it is
// not moved behind the same rules again, lest it race for ever with a program that wants to be last too.
func diff(f family.Family, want layout, have listing, passed uint64) (difference, error) {
	var d difference
	keepOwn := len(want.spots[spotOwnNAT].rules)+len(want.spots[spotOwnFilter].rules)+len(want.spots[spotOwnMangle].rules) > 0
	d.ownTable(f, have.spots[spotOwnNAT], keepOwn)
	for s := range spotCount {
		p := s.place(f)
		sd := differ{family: f, mode: want.mode, spot: s, place: p, have: have.spots[s]}
		rules := want.spots[s].rules
		if want.spots[s].ifHooked && !sd.have.hooked(p) {
			rules = nil
		}
		switch {
		case p.own && len(rules) > 0:
			sd.ownChain(&d, rules)
		case p.own && keepOwn && sd.have.chain:
			d.remove("chain "+p.in(f, p.chain), "", p.flush(f), p.deleteChain(f))
		case !p.own && len(rules) > 0:
			if err := sd.spliced(&d, rules, passed); err != nil {
				return difference{}, err
			}
		case !p.own && sd.have.chain:
			sd.unsplice(&d)
		}
	}
	return d, nil
}

func (d *difference) put(op state.Op, object, have, want string, requests ...request) {
	d.set = append(d.set, step{state.Change{Op: op, Kind: "firewall", Object: object, Have: have, Want: want}, requests, false})
}

func (d *difference) remove(object, have string, requests ...request) {
	d.del = append(d.del, step{state.Change{Op: state.Remove, Kind: "firewall", Object: object, Have: have}, requests, false})
}

// ownTable compares the table that both of our own chains are in.
func (d *difference) ownTable(f family.Family, have found, keep bool) {
	p := spotOwnNAT.place(f)
	object := "table " + p.in(f, "")
	switch {
	case keep && !have.table:
		d.put(state.Add, object, "", "", p.addTable(f))
	case keep && have.flags != 0:
		d.put(state.Modify, object, fmt.Sprintf("flags %#x", have.flags), "no flags", p.addTable(f))
	case !keep && have.table:
		d.remove(object, "", p.deleteTable(f))
	}
}

// ownChain compares a chain of our own table.
func (s differ) ownChain(d *difference, rules []rule) {
	f, p := s.family, s.place
	object := "chain " + p.in(f, p.chain)
	present := s.have.chain
	switch {
	case present && s.have.base.base != p.base:
		d.put(state.Modify, object, "another hook", "", p.flush(f), p.deleteChain(f), p.addBase(f))
		present = false
	case !present:
		d.put(state.Add, object, "", "", p.addBase(f))
	case s.have.base.policy != verdictAccept:
		d.put(state.Modify, object, "policy drop", "policy accept", p.addBase(f))
	}
	s.content(d, rules, present)
}

// spliced compares a chain in a table that others use, and the jump to it. The base chain is made if it is
// missing; an existing one, its policy above all, is not ours to change.
func (s differ) spliced(d *difference, rules []rule, passed uint64) error {
	f, p := s.family, s.place
	if !s.have.table {
		d.put(state.Add, "table "+p.in(f, ""), "", "", p.addTable(f))
	}
	switch {
	case s.have.base == nil:
		d.put(state.Add, "chain "+p.in(f, p.base.name), "", "", p.addBase(f))
	case !s.have.hooked(p):
		return fmt.Errorf("chain %s is there but sees no %s packets: somebody made it without its hook",
			p.in(f, p.base.name), p.base.kind)
	}
	if !s.have.chain {
		d.put(state.Add, "chain "+p.in(f, p.chain), "", "", p.addChain(f))
	}
	s.content(d, rules, s.have.chain)
	s.jump(d, passed)
	return nil
}

// content compares the rules of a chain and replaces them all, in one transaction, if any differs.
func (s differ) content(d *difference, want []rule, present bool) {
	f, p := s.family, s.place
	var have []rule
	same := true
	for _, k := range s.have.rules {
		r, ok := k.rule(f)
		have = append(have, r)
		same = same && ok
	}
	if present && same && slices.Equal(have, want) {
		return
	}
	var requests []request
	if present && len(have) > 0 {
		requests = append(requests, p.flush(f))
	}
	for _, r := range want {
		requests = append(requests, p.appendRule(f, s.mode, p.chain, r))
	}
	changes := s.ruleChanges(want, present)
	for i, c := range changes {
		if i < len(changes)-1 {
			d.set = append(d.set, step{change: c})
			continue
		}
		d.set = append(d.set, step{change: c, requests: requests})
	}
}

// ruleChanges tells the difference of a chain's content rule by rule.
func (s differ) ruleChanges(want []rule, present bool) []state.Change {
	object := "rule of " + s.place.in(s.family, s.place.chain)
	var have []string
	if present {
		for _, k := range s.have.rules {
			have = append(have, s.describe(k))
		}
	}
	var changes []state.Change
	var texts []string
	for _, r := range want {
		t := r.text(s.family, s.textMode())
		texts = append(texts, t)
		if !slices.Contains(have, t) {
			changes = append(changes, state.Change{Op: state.Add, Kind: "firewall", Object: object, Want: t})
		}
	}
	for _, t := range have {
		if !slices.Contains(texts, t) {
			changes = append(changes, state.Change{Op: state.Remove, Kind: "firewall", Object: object, Have: t})
		}
	}
	if len(changes) == 0 { // the order differs, or one is there twice
		changes = append(changes, state.Change{
			Op: state.Modify, Kind: "firewall", Object: "rules of " + s.place.in(s.family, s.place.chain),
			Have: "another order", Want: "in order",
		})
	}
	return changes
}

// jump compares the way from the shared base chain to ours: one jump, appended when it is missing, and in
// FORWARD moved to the end when other rules have been appended after it, so that a policy of theirs comes
// before our accept. It is not moved behind a rule that refuses everything: pods would be cut off.
func (s differ) jump(d *difference, passed uint64) {
	f, p := s.family, s.place
	want := s.spot.jumpTo(f)
	object := "jump of " + p.in(f, p.base.name)
	text := want.text(f, s.textMode())
	keep := -1
	for i, j := range s.have.jumps {
		if r, ok := j.rule.rule(f); ok && r == want {
			keep = i
		}
	}
	moves := keep >= 0 && s.spot == spotFilter && s.have.followers != 0 && !s.have.followerEnds &&
		s.have.followers != passed
	for i, j := range s.have.jumps {
		if i != keep {
			d.put(state.Remove, object, s.describe(j.rule), "", p.deleteRule(f, j.chain, j.rule.handle))
		}
	}
	switch {
	case keep < 0:
		d.put(state.Add, object, "", text, p.appendRule(f, s.mode, p.base.name, want))
	case moves:
		d.passes = s.have.followers
		d.put(state.Modify, object, "before other rules", "last: "+text,
			p.deleteRule(f, p.base.name, s.have.jumps[keep].rule.handle),
			p.appendRule(f, s.mode, p.base.name, want))
	}
}

// unsplice removes the chain and every jump to it, and the table if nothing else is in it.
func (s differ) unsplice(d *difference) {
	f, p := s.family, s.place
	for _, j := range s.have.jumps {
		d.remove("jump of "+p.in(f, j.chain), s.describe(j.rule), p.deleteRule(f, j.chain, j.rule.handle))
	}
	d.remove("chain "+p.in(f, p.chain), "", p.flush(f), p.deleteChain(f))
	if s.have.alone {
		d.remove("table "+p.in(f, ""), "", p.deleteTable(f))
		d.del[len(d.del)-1].guarded = true
	}
}

// textMode is how rules of this spot are shown: as the command that people look at the table with prints them.
func (s differ) textMode() Mode {
	if s.place.own {
		return NFTables
	}
	return IPTables
}

func (s differ) describe(k kernelRule) string {
	if r, ok := k.rule(s.family); ok {
		return r.text(s.family, s.textMode())
	}
	return fmt.Sprintf("rule with handle %d, not ours", k.handle)
}
