package firewall

import (
	"bytes"
	"encoding/binary"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// clamp returns the rules that lower the MSS in the SYN and SYN-ACK of TCP connections that pods have a part in to
// what the routes both ways allow. They never raise it (nft_exthdr_tcp_set_eval, tcpmss_mangle_packet).
func (p Policy) clamp(f family.Family) []rule {
	var rules []rule
	for _, n := range p.Network.Of(f) {
		rules = append(rules, rule{src: is(n), action: actionClamp}, rule{src: not(n), dst: is(n), action: actionClamp})
	}
	return rules
}

// The extensions of xtables that clamping is written in. The match on flags is the one that every iptables-nft
// prints; from 1.8.8 on they write it as nft does.
const (
	xtTCP    = "tcp"
	xtTCPMSS = "TCPMSS"
)

const (
	flagsOffset = 13 // of the TCP header (RFC 9293)
	flagSYN     = 0x02
	flagRST     = 0x04

	optionMSS       = 2 // kind; the value is two bytes at offset 2
	optionMSSOffset = 2
	optionMSSLen    = 2

	clampToPMTU = 0xffff // XT_TCPMSS_CLAMP_PMTU
)

// synInfo is struct xt_tcp { u16 spts[2], dpts[2]; u8 option, flg_mask, flg_cmp, invflags }, padded to 16 bytes:
// any ports, of SYN and RST only SYN.
func synInfo() *xt.Unknown {
	b := binary.NativeEndian.AppendUint16(nil, 0)
	b = binary.NativeEndian.AppendUint16(b, 0xffff)
	b = binary.NativeEndian.AppendUint16(b, 0)
	b = binary.NativeEndian.AppendUint16(b, 0xffff)
	u := xt.Unknown(append(b, 0, flagSYN|flagRST, flagSYN, 0, 0, 0, 0, 0))
	return &u
}

// tcpmssInfo is struct xt_tcpmss_info { u16 mss }, padded to eight bytes.
func tcpmssInfo() *xt.Unknown {
	u := xt.Unknown(append(binary.NativeEndian.AppendUint16(nil, clampToPMTU), make([]byte, 6)...))
	return &u
}

// protocolTCP is the match that all of TCP's extensions need before them.
func protocolTCP() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{unix.IPPROTO_TCP}},
	}
}

// nativeClamp is "tcp flags syn / syn,rst tcp option maxseg size set rt mtu".
func nativeClamp() []expr.Any {
	return append(protocolTCP(),
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: flagsOffset, Len: 1},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 1, Mask: []byte{flagSYN | flagRST}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{flagSYN}},
		&expr.Rt{Register: register, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: register, DestRegister: register, Op: expr.ByteorderHton, Len: optionMSSLen, Size: optionMSSLen},
		&expr.Exthdr{SourceRegister: register, Op: expr.ExthdrOpTcpopt, Type: optionMSS, Offset: optionMSSOffset, Len: optionMSSLen},
	)
}

// compat tells nft_compat that the rule is for TCP only, without which it takes no extension of TCP's.
func compat(ae *netlink.AttributeEncoder) error {
	ae.Uint32(unix.NFTA_RULE_COMPAT_PROTO, unix.IPPROTO_TCP)
	ae.Uint32(unix.NFTA_RULE_COMPAT_FLAGS, 0)
	return nil
}

// tcp takes in a comparison that came out as TCP, or as SYN without RST.
func (d *decoder) tcp(from source, data []byte) bool {
	switch {
	case from == protocol && d.mask == nil && bytes.Equal(data, []byte{unix.IPPROTO_TCP}):
		d.isTCP = true
	case from == tcpFlags && bytes.Equal(d.mask, []byte{flagSYN | flagRST}) && bytes.Equal(data, []byte{flagSYN}):
		d.isSYN = true
	default:
		return false
	}
	return true
}

// clamps says whether the rule matches what is clamped if it clamps, and else nothing of it.
func (d *decoder) clamps() bool {
	clamp := d.rule.action == actionClamp
	return d.isTCP == clamp && d.isSYN == clamp
}

// The expressions that google/nftables does not read, or only in part.

func (d *decoder) route(data []byte) bool {
	n := numbers(data)
	return n[unix.NFTA_RT_KEY] == unix.NFT_RT_TCPMSS && d.load(routeMSS, n[unix.NFTA_RT_DREG], optionMSSLen)
}

func (d *decoder) byteorder(data []byte) bool {
	n := numbers(data)
	if d.loaded != routeMSS || n[unix.NFTA_BYTEORDER_SREG] != d.register || n[unix.NFTA_BYTEORDER_OP] != unix.NFT_BYTEORDER_HTON ||
		n[unix.NFTA_BYTEORDER_LEN] != optionMSSLen || n[unix.NFTA_BYTEORDER_SIZE] != optionMSSLen {
		return false
	}
	d.loaded, d.register = networkMSS, n[unix.NFTA_BYTEORDER_DREG]
	return true
}

func (d *decoder) exthdr(data []byte) bool {
	var e expr.Exthdr
	if !d.unmarshal(data, &e) || d.loaded != networkMSS || e != (expr.Exthdr{
		SourceRegister: d.register, Op: expr.ExthdrOpTcpopt, Type: optionMSS, Offset: optionMSSOffset, Len: optionMSSLen,
	}) {
		return false
	}
	d.loaded, d.rule.action = nothing, actionClamp
	return true
}

// numbers returns attributes that are 32-bit numbers.
func numbers(b []byte) map[uint16]uint32 {
	m := map[uint16]uint32{}
	for typ, data := range attributes(b) {
		m[typ] = number(data)
	}
	return m
}
