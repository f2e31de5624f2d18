package firewall

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// Attributes of include/uapi/linux/netfilter/nf_tables.h that x/sys does not have. Kernels before 5.10 do
// not know them, and pass over them.
const (
	tableUserdata = 6  // NFTA_TABLE_USERDATA
	chainUserdata = 12 // NFTA_CHAIN_USERDATA
)

// encode returns attributes; none of ours can be too long for netlink.
func encode(fill func(*netlink.AttributeEncoder)) []byte {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	fill(ae)
	b, err := ae.Encode()
	if err != nil {
		panic(fmt.Sprintf("firewall: encode attributes: %v", err))
	}
	return b
}

// in names a table, or a chain of it, in messages: "ip nat POSTROUTING".
func (p place) in(f family.Family, chain string) string {
	if chain == "" {
		return tableFamilyName(f) + " " + p.table
	}
	return tableFamilyName(f) + " " + p.table + " " + chain
}

// familyModule names what a table of family f needs beside nf_tables itself, on kernels that can leave it out.
func familyModule(f family.Family) string {
	if f == family.V6 {
		return "nf_tables_ipv6"
	}
	return "nf_tables_ipv4"
}

// addTable makes the table if it is missing, and takes away flags such as dormant from one that is there.
func (p place) addTable(f family.Family) request {
	return request{
		what: "add table " + p.in(f, ""), needs: familyModule(f),
		typ: unix.NFT_MSG_NEWTABLE, flags: netlink.Create,
		attrs: encode(func(ae *netlink.AttributeEncoder) {
			ae.String(unix.NFTA_TABLE_NAME, p.table)
			ae.Uint32(unix.NFTA_TABLE_FLAGS, 0)
			if p.tableComment != "" {
				ae.Bytes(tableUserdata, commentTLV(p.tableComment))
			}
		}),
	}
}

func (p place) deleteTable(f family.Family) request {
	return request{
		what: "delete table " + p.in(f, ""), needs: "nf_tables", typ: unix.NFT_MSG_DELTABLE,
		attrs: encode(func(ae *netlink.AttributeEncoder) { ae.String(unix.NFTA_TABLE_NAME, p.table) }),
	}
}

// verdictAccept is NF_ACCEPT, the policy of base chains that we make.
const verdictAccept = 1

// addBase makes the base chain, or sets the policy of one that is there.
func (p place) addBase(f family.Family) request {
	needs := familyModule(f)
	if p.base.kind == "nat" {
		needs = "nft_chain_nat, nf_nat"
	}
	return request{
		what: "add chain " + p.in(f, p.base.name), needs: needs, typ: unix.NFT_MSG_NEWCHAIN, flags: netlink.Create,
		attrs: encode(func(ae *netlink.AttributeEncoder) {
			ae.String(unix.NFTA_CHAIN_TABLE, p.table)
			ae.String(unix.NFTA_CHAIN_NAME, p.base.name)
			ae.Nested(unix.NFTA_CHAIN_HOOK, func(hook *netlink.AttributeEncoder) error {
				hook.Uint32(unix.NFTA_HOOK_HOOKNUM, p.base.hook)
				hook.Uint32(unix.NFTA_HOOK_PRIORITY, uint32(p.base.priority))
				return nil
			})
			ae.Uint32(unix.NFTA_CHAIN_POLICY, verdictAccept)
			ae.String(unix.NFTA_CHAIN_TYPE, p.base.kind)
			if p.chainComment != "" {
				ae.Bytes(chainUserdata, commentTLV(p.chainComment))
			}
		}),
	}
}

// addChain makes the chain that a shared base chain jumps to.
func (p place) addChain(f family.Family) request {
	return p.chainRequest(f, "add chain ", unix.NFT_MSG_NEWCHAIN, netlink.Create)
}

func (p place) deleteChain(f family.Family) request {
	return p.chainRequest(f, "delete chain ", unix.NFT_MSG_DELCHAIN, 0)
}

func (p place) chainRequest(f family.Family, verb string, typ uint16, flags netlink.HeaderFlags) request {
	return request{
		what: verb + p.in(f, p.chain), needs: "nf_tables", typ: typ, flags: flags,
		attrs: encode(func(ae *netlink.AttributeEncoder) {
			ae.String(unix.NFTA_CHAIN_TABLE, p.table)
			ae.String(unix.NFTA_CHAIN_NAME, p.chain)
		}),
	}
}

// flush removes all rules of the chain.
func (p place) flush(f family.Family) request {
	return request{
		what: "flush chain " + p.in(f, p.chain), needs: "nf_tables", typ: unix.NFT_MSG_DELRULE,
		attrs: encode(func(ae *netlink.AttributeEncoder) {
			ae.String(unix.NFTA_RULE_TABLE, p.table)
			ae.String(unix.NFTA_RULE_CHAIN, p.chain)
		}),
	}
}

func (p place) deleteRule(f family.Family, chain string, handle uint64) request {
	return request{
		what: fmt.Sprintf("delete rule %d of %s", handle, p.in(f, chain)), needs: "nf_tables",
		typ: unix.NFT_MSG_DELRULE,
		attrs: encode(func(ae *netlink.AttributeEncoder) {
			ae.String(unix.NFTA_RULE_TABLE, p.table)
			ae.String(unix.NFTA_RULE_CHAIN, chain)
			ae.Uint64(unix.NFTA_RULE_HANDLE, handle)
		}),
	}
}

// appendRule appends r to a chain in the encoding of mode m.
func (p place) appendRule(f family.Family, m Mode, chain string, r rule) request {
	return request{
		what: "add rule to " + p.in(f, chain) + ": " + r.text(f, m), needs: r.needs(m), clamps: r.action == actionClamp,
		typ: unix.NFT_MSG_NEWRULE, flags: netlink.Create | netlink.Append,
		attrs: encode(func(ae *netlink.AttributeEncoder) {
			ae.String(unix.NFTA_RULE_TABLE, p.table)
			ae.String(unix.NFTA_RULE_CHAIN, chain)
			ae.Nested(unix.NFTA_RULE_EXPRESSIONS, func(list *netlink.AttributeEncoder) error {
				for _, e := range r.expressions(f, m) {
					b, err := expr.Marshal(protocolFamily(f), e)
					if err != nil {
						return err
					}
					list.Bytes(unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM, b)
				}
				return nil
			})
			if m == IPTables && r.action == actionClamp {
				ae.Nested(unix.NFTA_RULE_COMPAT, compat)
			}
			if data := r.userdata(); m == NFTables && data != nil {
				ae.Bytes(unix.NFTA_RULE_USERDATA, data)
			}
		}),
	}
}
