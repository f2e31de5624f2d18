package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/plan"
	"github.com/weftnet/weft/internal/state"
)

// A Preview says what a new configuration would do to this node.
type Preview struct {
	Refused  string   `json:"refused,omitempty"` // why it would not be followed while flanneld runs
	Warnings []string `json:"warnings,omitempty"`

	Changes []state.Change `json:"changes"` // what the next pass would write
	MTU     [2]int         `json:"podMTU"`  // of new pods, now and then

	// What peers would be told, at first: old entries go when nobody needs them any more.
	Receive []lease.Key `json:"receive"`
	Send    []lease.Key `json:"send"`

	Moves []plan.Move `json:"moves"` // one per peer and family, once it follows too
}

// Preview returns what raw, a network configuration, would do.
func (a *Agent) Preview(raw []byte) (Preview, error) {
	c, warnings, err := netconf.Parse(raw, a.opts.Store)
	if err != nil {
		return Preview{}, err
	}
	in := a.inputs()
	if ws := waits(in); len(ws) > 0 {
		return Preview{}, errors.New("no plan yet: " + strings.Join(ws, "; "))
	}
	v := Preview{Refused: refusal(*in.config, c)}
	for _, w := range warnings {
		v.Warnings = append(v.Warnings, fmt.Sprint(w))
	}
	if v.Refused != "" {
		return v, nil
	}
	now, err := a.build(in)
	if err != nil {
		return Preview{}, err
	}
	in.config = &c
	after, err := a.input(in)
	if err != nil {
		return Preview{}, err
	}
	if err := a.onLink(&after); err != nil { // whether or not the configuration of now asks
		return Preview{}, err
	}
	then, err := plan.Build(after)
	if err != nil {
		return Preview{}, err
	}
	if v.Changes, err = a.difference(in, then); err != nil {
		return Preview{}, err
	}
	v.MTU = [2]int{now.Subnet.MTU, then.Subnet.MTU}
	v.Receive, v.Send = keysOf(then.Offer.Receive), then.Offer.Send
	v.Moves, err = plan.Preview(after, now, after.Config)
	return v, err
}

// onLink asks the kernel which peers are reached without a router.
func (a *Agent) onLink(pi *plan.Input) error {
	var addrs []netip.Addr
	for _, l := range pi.Leases {
		for _, f := range family.All() {
			if l.Has(f) && !l.SameSubnets(pi.Own) && l.Public.Of(f).IsValid() {
				addrs = append(addrs, l.Public.Of(f))
			}
		}
	}
	var err error
	if pi.Direct, err = a.parts.Kernel.OnLink(addrs); err != nil {
		return fmt.Errorf("which peers are on-link: %w", err)
	}
	return nil
}
