package firewall

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// The extensions of xtables that iptables mode is written in, with the revisions that every iptables-nft
// knows. Newer ones write a mark as nft does, but older ones (1.8.7 and before) then print the rule without
// it, and would restore it so.
const (
	xtComment    = "comment"
	xtMark       = "mark"
	xtMarkRev    = 1
	xtMasquerade = "MASQUERADE"
)

// register is the one that all comparisons go through (NFT_REG_1).
const register = unix.NFT_REG_1

// randomFully is NF_NAT_RANGE_PROTO_RANDOM_FULLY of include/uapi/linux/netfilter/nf_nat.h.
const randomFully = unix.NF_NAT_RANGE_PROTO_RANDOM_FULLY

// expressions returns the rule as the kernel's expressions: in iptables mode those that iptables-nft would
// write, counters included, else those that nft would. The second has no room for the comment; see userdata.
func (r rule) expressions(f family.Family, m Mode) []expr.Any {
	es := append(address(f, sourceOffset(f), r.src), address(f, destinationOffset(f), r.dst)...)
	if m == NFTables {
		es = append(nativeMark(r.mark), es...)
		return append(es, r.verdict()...)
	}
	if r.action == actionClamp {
		es = append(append(protocolTCP(), es...), &expr.Match{Name: xtTCP, Info: synInfo()})
	}
	if r.mark != 0 {
		es = append(es, &expr.Match{Name: xtMark, Rev: xtMarkRev, Info: markInfo(r.mark)})
	}
	if r.comment != "" {
		c := xt.Comment(r.comment)
		es = append(es, &expr.Match{Name: xtComment, Info: &c})
	}
	es = append(es, &expr.Counter{})
	switch r.action {
	case actionMasquerade:
		return append(es, &expr.Target{Name: xtMasquerade, Info: masqueradeInfo(f, r.random)})
	case actionClamp:
		return append(es, &expr.Target{Name: xtTCPMSS, Info: tcpmssInfo()})
	default:
		return append(es, r.verdict()...)
	}
}

func (r rule) verdict() []expr.Any {
	switch r.action {
	case actionReturn:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
	case actionAccept:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	case actionJump:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: r.jump}}
	case actionClamp:
		return nativeClamp()
	default:
		return []expr.Any{&expr.Masq{FullyRandom: r.random}}
	}
}

// needs names the kernel modules without which the rule cannot be installed.
func (r rule) needs(m Mode) string {
	switch {
	case m == IPTables && r.action == actionMasquerade:
		return "nft_compat, xt_comment, xt_MASQUERADE"
	case m == IPTables && r.action == actionClamp:
		return "nft_compat, xt_comment, xt_tcpudp, xt_TCPMSS"
	case m == IPTables && r.mark != 0:
		return "nft_compat, xt_comment, xt_mark"
	case m == IPTables:
		return "nft_compat, xt_comment"
	case r.action == actionMasquerade:
		return "nft_masq"
	case r.action == actionClamp:
		return "nft_rt, nft_exthdr"
	default:
		return "nf_tables"
	}
}

// userdata returns the comment in the form that nft reads and that iptables-nft takes for a comment match.
func (r rule) userdata() []byte {
	if r.comment == "" {
		return nil
	}
	return commentTLV(r.comment)
}

// commentTLV returns a comment as libnftnl keeps it for rules, chains and tables alike: type
// (NFTNL_UDATA_*_COMMENT, all 0), length, the text and a zero byte.
func commentTLV(comment string) []byte {
	return append([]byte{0, byte(len(comment) + 1)}, comment+"\x00"...)
}

// address compares the address at offset of the network header. Whole bytes are compared alone, as nft and
// iptables-nft do; other prefix lengths take a mask.
func address(f family.Family, offset uint32, m match) []expr.Any {
	if !m.prefix.IsValid() {
		return nil
	}
	op := expr.CmpOpEq
	if m.not {
		op = expr.CmpOpNeq
	}
	data, bits := m.prefix.Masked().Addr().AsSlice(), m.prefix.Bits()
	load := func(n int) expr.Any {
		return &expr.Payload{
			DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(n),
		}
	}
	if bits%8 == 0 {
		return []expr.Any{load(bits / 8), &expr.Cmp{Op: op, Register: register, Data: data[:bits/8]}}
	}
	n := f.Bits() / 8
	return []expr.Any{
		load(n),
		&expr.Bitwise{
			SourceRegister: register, DestRegister: register,
			Len: uint32(n), Mask: mask(n, bits), Xor: make([]byte, n),
		},
		&expr.Cmp{Op: op, Register: register, Data: data},
	}
}

// mask returns n bytes of which the first bits are ones.
func mask(n, bits int) []byte {
	ones := netip.PrefixFrom(netip.AddrFrom16([16]byte(allOnes())), bits).Masked().Addr().As16()
	return ones[:n]
}

func allOnes() []byte {
	b := make([]byte, 16)
	for i := range b {
		b[i] = 0xff
	}
	return b
}

func nativeMark(mark uint32) []expr.Any {
	if mark == 0 {
		return nil
	}
	m := binary.NativeEndian.AppendUint32(nil, mark)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: register},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 4, Mask: m, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: m},
	}
}

// markInfo is struct xt_mark_mtinfo1 { u32 mark, mask; u8 invert }, padded to eight bytes as all xtables
// data is.
func markInfo(mark uint32) *xt.Unknown {
	b := binary.NativeEndian.AppendUint32(nil, mark)
	b = binary.NativeEndian.AppendUint32(b, mark)
	u := xt.Unknown(append(b, make([]byte, 8)...))
	return &u
}

// masqueradeInfo is, for IPv4, struct nf_nat_ipv4_multi_range_compat { u32 count; { u32 flags; be32 min, max;
// be16 min, max } }, padded to eight bytes, and for IPv6 struct nf_nat_range { u32 flags; u8 min[16], max[16];
// be16 min, max }.
func masqueradeInfo(f family.Family, random bool) *xt.Unknown {
	flags := uint32(0)
	if random {
		flags = randomFully
	}
	size, b := 40, []byte(nil)
	if f == family.V4 {
		size, b = 24, binary.NativeEndian.AppendUint32(b, 1)
	}
	b = binary.NativeEndian.AppendUint32(b, flags)
	u := xt.Unknown(append(b, make([]byte, size-len(b))...))
	return &u
}

// Offsets of the addresses in the IPv4 and IPv6 headers (RFC 791, RFC 8200).
func sourceOffset(f family.Family) uint32 {
	if f == family.V6 {
		return 8
	}
	return 12
}

func destinationOffset(f family.Family) uint32 {
	if f == family.V6 {
		return 24
	}
	return 16
}
