package uplink

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/internal/family"
)

// A Decision explains a choice: what was chosen and why, and what was not. It is meant to be logged once
// per change, as one value.
type Decision struct {
	Chosen   Uplink // zero: nothing fitted
	Rule     string // the flag or rule that decided
	Reason   string
	Rejected []Rejection
}

// A Rejection is a candidate that was not chosen: a device, an address on the chosen device, or a flag
// whose value led to none.
type Rejection struct {
	Candidate, Reason string
}

func (r Rejection) String() string { return r.Candidate + ": " + r.Reason }

// LogValue implements slog.LogValuer.
func (d Decision) LogValue() slog.Value {
	var attrs []slog.Attr
	if d.Chosen.Name != "" {
		attrs = append(attrs, slog.String("dev", d.Chosen.Name), slog.Int("mtu", d.Chosen.MTU))
		for _, f := range family.All() {
			if a := d.Chosen.Addr.Of(f); a.IsValid() {
				name := strings.ToLower(f.String())
				attrs = append(attrs, slog.String(name, a.String()), slog.String(name+"_public", d.Chosen.Public.Of(f).String()))
			}
		}
		attrs = append(attrs, slog.String("rule", d.Rule), slog.String("reason", d.Reason))
	}
	rejected := make([]string, len(d.Rejected))
	for i, r := range d.Rejected {
		rejected[i] = r.String()
	}
	return slog.GroupValue(append(attrs, slog.Any("rejected", rejected))...)
}

func (d *Decision) reject(candidate, reason string) {
	r := Rejection{candidate, reason}
	for _, have := range d.Rejected {
		if have == r {
			return
		}
	}
	d.Rejected = append(d.Rejected, r)
}

// choose records the choice, and the addresses of the device that it passed over.
func (d *Decision) choose(u Uplink, rule string, c candidate) {
	d.Chosen, d.Rule, d.Reason = u, rule, c.why
	for _, x := range c.link.Addrs {
		ip := x.Prefix.Addr()
		chosen := u.Addr.Of(family.Of(ip))
		if chosen.IsValid() && ip != chosen {
			d.reject(fmt.Sprintf("%s on %s", ip, c.link.Name), c.passedOver(x, chosen))
		}
	}
}

// passedOver says why the address x of the device was not chosen while another one was.
func (c candidate) passedOver(x Address, chosen netip.Addr) string {
	ip := x.Prefix.Addr()
	if c.pinned.Of(family.Of(ip)).IsValid() {
		return c.why + ": " + chosen.String()
	}
	if why := x.unusable(); why != "" {
		return why
	}
	if c.match != nil && !c.match(ip) {
		return "does not match"
	}
	var other Address
	for _, a := range c.link.Addrs {
		if a.Prefix.Addr() == chosen {
			other = a
		}
	}
	switch order := comparePreference(other, x); {
	case order > 0:
		return chosen.String() + " is in use already"
	case order == 0:
		return chosen.String() + " comes first or is in use already"
	case x.linkLocal() && !other.linkLocal():
		return "link-local; " + chosen.String() + " is global"
	case !x.Permanent && other.Permanent:
		return "has a lifetime; " + chosen.String() + " is permanent"
	}
	return "temporary or secondary; " + chosen.String() + " is neither"
}

// maxSummary bounds the list of devices in an error.
const maxSummary = 16

// summary lists the devices that have usable addresses.
func (h Host) summary() string {
	var out []string
	for _, l := range h.Links {
		var addrs []string
		for _, f := range family.All() {
			for _, a := range l.usable(f) {
				addrs = append(addrs, a.Prefix.Addr().String())
			}
		}
		if len(addrs) > 0 && len(out) < maxSummary {
			out = append(out, l.Name+" ("+strings.Join(addrs, ", ")+")")
		}
	}
	if len(out) == 0 {
		return "none with an address"
	}
	return strings.Join(out, ", ")
}
