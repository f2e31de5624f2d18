package rules

import (
	"crypto/sha512"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The reference plugins, in their iptables mode, give each attachment a chain in table nat: its name is a
// prefix and as much of the hash of network and container as fits into 28 characters. What they added is
// deleted here when the pod is, where iptables itself keeps its rules in nf_tables.

func foreignChain(prefix, network, containerID string) string {
	return fmt.Sprintf("%s%x", prefix, sha512.Sum512([]byte(network+containerID)))[:28]
}

// Where the reference plugins jump to their chains from.
const (
	portmapEntry    = "CNI-HOSTPORT-DNAT"
	masqueradeEntry = "POSTROUTING"
)

// RemoveForeignPortmap deletes the reference plugin's port mappings of an attachment, if there are any.
func (c *Conn) RemoveForeignPortmap(network, containerID string) error {
	return c.removeForeign(portmapEntry, foreignChain("CNI-DN-", network, containerID))
}

// RemoveForeignMasquerade deletes what the reference plugin made of ipMasq, if there is any.
func (c *Conn) RemoveForeignMasquerade(network, containerID string) error {
	return c.removeForeign(masqueradeEntry, foreignChain("CNI-", network, containerID))
}

func (c *Conn) removeForeign(from, name string) error {
	var errs []error
	for _, f := range []Table{V4, V6} {
		errs = append(errs, again(func() error {
			return c.removeChain(&nftables.Table{Name: "nat", Family: f}, from, name)
		}))
	}
	return errors.Join(errs...)
}

// removeChain deletes a chain and the rules of another that jump to it.
func (c *Conn) removeChain(nat *nftables.Table, from, name string) error {
	req := c.request(unix.NFT_MSG_GETCHAIN, 0, nat.Family)
	req.AddData(nl.NewRtAttr(unix.NFTA_CHAIN_TABLE, nl.ZeroTerminated(nat.Name)))
	req.AddData(nl.NewRtAttr(unix.NFTA_CHAIN_NAME, nl.ZeroTerminated(name)))
	if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); absent(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("chain %s: %w", name, err)
	}
	entry := &nftables.Chain{Name: from, Table: nat}
	all, err := c.nft.GetRules(nat, entry)
	if err != nil && !absent(err) {
		return fmt.Errorf("rules of %s: %w", from, err)
	}
	for _, r := range all {
		if jumpsTo(r, name) {
			r.Table, r.Chain = nat, entry
			if err := c.nft.DelRule(r); err != nil {
				return fmt.Errorf("rule of %s: %w", from, err)
			}
		}
	}
	chain := &nftables.Chain{Name: name, Table: nat}
	c.nft.FlushChain(chain)
	c.nft.DelChain(chain)
	if err := c.nft.Flush(); err != nil { // EBUSY: the list was not whole, see list, and a jump is left
		return fmt.Errorf("delete chain %s: %w", name, err)
	}
	return nil
}

func jumpsTo(r *nftables.Rule, chain string) bool {
	for _, e := range r.Exprs {
		if v, ok := e.(*expr.Verdict); ok && v.Chain == chain {
			return true
		}
	}
	return false
}
