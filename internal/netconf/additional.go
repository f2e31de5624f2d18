package netconf

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

const (
	additional    = "AdditionalNetworks"
	maxAdditional = 8 // per family: every packet to or from pods is compared with each
)

// entry names one of the additional networks.
func (r rawNetwork) entry(i int) string { return fmt.Sprintf("%s[%d]", r.field(additional), i) }

// additional decodes the additional networks. Without a problem each entry is valid, and has no host bits.
func (p *parser) additional(r rawNetwork) ([]netip.Prefix, bool) {
	var raw []json.RawMessage
	if r.additional == nil {
		return nil, true
	}
	if err := json.Unmarshal(r.additional, &raw); err != nil {
		p.problem(r.field(additional), "must be a list of %s prefixes in quotes, such as [\"%s\"]", r.family, r.example())
		return nil, false
	}
	if len(raw) > maxAdditional {
		p.problem(r.field(additional), "has %d entries: %d at most", len(raw), maxAdditional)
		return nil, false
	}
	list, ok := make([]netip.Prefix, len(raw)), true
	for i, text := range raw {
		var one bool
		list[i], one = p.prefix(r, r.entry(i), text)
		ok = ok && one
	}
	return list, ok
}

// apart checks the additional networks that did decode against the network, if it did, and each other.
func (p *parser) apart(r rawNetwork, network netip.Prefix, list []netip.Prefix) bool {
	ok := true
	for i, more := range list {
		if !more.IsValid() {
			continue
		}
		ok = p.usable(r, r.entry(i), more) && ok
		if more.Overlaps(network) {
			p.problem(r.entry(i), "%s overlaps %s, %s", more, r.field("Network"), network)
			ok = false
		}
		for j, other := range list[:i] {
			if more.Overlaps(other) {
				p.problem(r.entry(i), "%s overlaps %s, %s", more, r.entry(j), other)
				ok = false
			}
		}
	}
	return ok
}
