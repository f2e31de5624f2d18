package firewall

import (
	"context"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/state"
)

// Cleanup removes every rule, chain and table of ours and of the original, in both modes and families, and
// returns what it removed; a dry run only says so. Rules in legacy iptables are out of reach; Findings names
// them.
func (f *Firewall) Cleanup(ctx context.Context, dryRun bool) ([]state.Change, error) {
	if dryRun {
		return f.Plan(Policy{})
	}
	return f.Apply(ctx, Policy{})
}

// alone says whether a shared table holds nothing but its base chain, accepting, our chain, and jumps to it.
// Such a table goes with what is ours: it does nothing, and whoever needs it makes it again, as iptables does.
func (c *conn) alone(f family.Family, p place) (bool, error) {
	fam := protocolFamily(f)
	chains, err := c.ask(fam, unix.NFT_MSG_GETCHAIN, netlink.Dump, nil)
	if err != nil {
		return false, err
	}
	for _, m := range chains {
		table, name := named(m)
		if table != p.table || name == p.chain {
			continue
		}
		if name != p.base.name || parseChain(m).policy != verdictAccept {
			return false, nil
		}
	}
	rules, err := c.rules(fam, p.table, "")
	if err != nil {
		return false, err
	}
	for _, m := range rules {
		if r := parseRule(m); r.chain != p.chain && r.target() != p.chain {
			return false, nil
		}
	}
	sets, err := c.ask(fam, unix.NFT_MSG_GETSET, netlink.Dump,
		encode(func(ae *netlink.AttributeEncoder) { ae.String(unix.NFTA_SET_TABLE, p.table) }))
	return len(sets) == 0, err
}

// named returns the table and the name of a chain from its message.
func named(msg []byte) (table, name string) {
	for typ, data := range attributes(msg) {
		switch typ {
		case unix.NFTA_CHAIN_TABLE:
			table = text(data)
		case unix.NFTA_CHAIN_NAME:
			name = text(data)
		}
	}
	return table, name
}
