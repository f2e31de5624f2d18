package firewall

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"

	"github.com/weftnet/weft/internal/family"
)

// rule returns what k means, if one of our rules can mean that: in the encoding of nft or in any that
// iptables-nft has used.
func (k kernelRule) rule(f family.Family) (rule, bool) {
	d := decoder{family: f}
	for _, e := range k.elements {
		if d.rule.action != 0 || !d.element(e) { // nothing may follow the verdict
			return rule{}, false
		}
	}
	if c, ok := comment(k.userdata); ok && d.rule.comment == "" {
		d.rule.comment = c
	}
	return d.rule, d.rule.action != 0 && d.loaded == nothing && d.clamps()
}

// A source is what a comparison's register was loaded with.
type source uint8

const (
	nothing source = iota
	packetMark
	sourceAddress
	destinationAddress
	protocol // of the transport layer
	tcpFlags
	routeMSS   // what the route allows, in host order
	networkMSS // the same in network order
)

// A decoder reads expressions one by one. They come as "load, perhaps mask, compare", always through one
// register at a time.
type decoder struct {
	family   family.Family
	rule     rule
	loaded   source
	register uint32
	length   int    // bytes loaded
	mask     []byte // applied to them; nil: none
	isTCP    bool   // the rule is for TCP only
	isSYN    bool   // and for SYN without RST only
}

// element takes in one expression; false means that no rule of ours contains it.
func (d *decoder) element(e element) bool {
	switch e.name {
	case "counter":
		return true
	case "meta":
		return d.meta(e.data)
	case "payload":
		return d.payload(e.data)
	case "bitwise":
		return d.bitwise(e.data)
	case "cmp":
		return d.cmp(e.data)
	case "match":
		return d.match(e.data)
	case "immediate":
		return d.verdict(e.data)
	case "masq":
		return d.masq(e.data)
	case "target":
		return d.target(e.data)
	case "rt":
		return d.route(e.data)
	case "byteorder":
		return d.byteorder(e.data)
	case "exthdr":
		return d.exthdr(e.data)
	}
	return false
}

func (d *decoder) unmarshal(data []byte, e expr.Any) bool {
	return expr.Unmarshal(protocolFamily(d.family), data, e) == nil
}

func (d *decoder) load(s source, register uint32, length int) bool {
	if d.loaded != nothing {
		return false
	}
	d.loaded, d.register, d.length, d.mask = s, register, length, nil
	return true
}

func (d *decoder) meta(data []byte) bool {
	var m expr.Meta
	if !d.unmarshal(data, &m) || m.SourceRegister {
		return false
	}
	if m.Key == expr.MetaKeyL4PROTO {
		return d.load(protocol, m.Register, 1)
	}
	return m.Key == expr.MetaKeyMARK && d.load(packetMark, m.Register, 4)
}

func (d *decoder) payload(data []byte) bool {
	var p expr.Payload
	if !d.unmarshal(data, &p) || p.OperationType != expr.PayloadLoad {
		return false
	}
	if p.Base == expr.PayloadBaseTransportHeader {
		return p.Offset == flagsOffset && p.Len == 1 && d.load(tcpFlags, p.DestRegister, 1)
	}
	if p.Base != expr.PayloadBaseNetworkHeader ||
		p.Len == 0 || int(p.Len) > d.family.Bits()/8 {
		return false
	}
	switch p.Offset {
	case sourceOffset(d.family):
		return d.load(sourceAddress, p.DestRegister, int(p.Len))
	case destinationOffset(d.family):
		return d.load(destinationAddress, p.DestRegister, int(p.Len))
	}
	return false
}

func (d *decoder) bitwise(data []byte) bool {
	var b expr.Bitwise
	if !d.unmarshal(data, &b) || d.loaded == nothing || d.mask != nil || b.SourceRegister != d.register ||
		len(b.Mask) != d.length || len(b.Xor) != d.length || !allZero(b.Xor) {
		return false
	}
	d.register, d.mask = b.DestRegister, b.Mask
	return true
}

func (d *decoder) cmp(data []byte) bool {
	var c expr.Cmp
	if !d.unmarshal(data, &c) || d.loaded == nothing || c.Register != d.register || len(c.Data) != d.length ||
		(c.Op != expr.CmpOpEq && c.Op != expr.CmpOpNeq) {
		return false
	}
	from := d.loaded
	d.loaded = nothing
	switch from {
	case packetMark:
		return c.Op == expr.CmpOpEq && d.mask != nil &&
			d.setMark(binary.NativeEndian.Uint32(c.Data), binary.NativeEndian.Uint32(d.mask))
	case sourceAddress:
		return d.address(&d.rule.src, c)
	case destinationAddress:
		return d.address(&d.rule.dst, c)
	}
	return c.Op == expr.CmpOpEq && d.tcp(from, c.Data)
}

// address takes in a comparison of an address.
func (d *decoder) address(to *match, c expr.Cmp) bool {
	length, ok := 8*d.length, true
	if d.mask != nil {
		length, ok = maskLength(d.mask)
	}
	address := make([]byte, d.family.Bits()/8)
	copy(address, c.Data)
	a, _ := netip.AddrFromSlice(address)
	p := netip.PrefixFrom(a, length)
	if !ok || length == 0 || p != p.Masked() || to.prefix.IsValid() {
		return false
	}
	*to = match{prefix: p, not: c.Op == expr.CmpOpNeq}
	return true
}

func (d *decoder) setMark(value, mask uint32) bool {
	if value != mask || value == 0 || d.rule.mark != 0 {
		return false
	}
	d.rule.mark = value
	return true
}

func (d *decoder) match(data []byte) bool {
	name, rev, info := extension(data)
	switch {
	case name == xtComment && d.rule.comment == "":
		d.rule.comment = text(info)
		return d.rule.comment != ""
	case name == xtTCP && rev == 0:
		d.isSYN = bytes.Equal(info, *synInfo())
		return d.isSYN
	case name == xtMark && rev == xtMarkRev && len(info) >= 12:
		return info[8] == 0 && d.setMark(binary.NativeEndian.Uint32(info), binary.NativeEndian.Uint32(info[4:]))
	}
	return false
}

func (d *decoder) verdict(data []byte) bool {
	v, ok := verdictOf(data)
	switch {
	case !ok:
		return false
	case v.code == expr.VerdictReturn:
		d.rule.action = actionReturn
	case v.code == expr.VerdictAccept:
		d.rule.action = actionAccept
	case v.code == expr.VerdictJump:
		d.rule.action, d.rule.jump = actionJump, v.chain
	default:
		return false
	}
	return true
}

func (d *decoder) masq(data []byte) bool {
	var m expr.Masq
	if !d.unmarshal(data, &m) || m.ToPorts || m.Random || m.Persistent {
		return false
	}
	d.rule.action, d.rule.random = actionMasquerade, m.FullyRandom
	return true
}

func (d *decoder) target(data []byte) bool {
	name, rev, info := extension(data)
	if name == xtTCPMSS && rev == 0 && bytes.Equal(info, *tcpmssInfo()) {
		d.rule.action = actionClamp
		return true
	}
	if name != xtMasquerade || rev != 0 {
		return false
	}
	for _, random := range []bool{false, true} {
		if bytes.Equal(info, *masqueradeInfo(d.family, random)) {
			d.rule.action, d.rule.random = actionMasquerade, random
			return true
		}
	}
	return false
}

func allZero(b []byte) bool { return !slices.ContainsFunc(b, func(x byte) bool { return x != 0 }) }

// maskLength returns the prefix length of a network mask; false if it has holes.
func maskLength(mask []byte) (int, bool) {
	n, ended := 0, false
	for _, b := range mask {
		ones := bits.LeadingZeros8(^b)
		if (ended && b != 0) || b<<ones != 0 {
			return 0, false
		}
		ended = ended || ones < 8
		n += ones
	}
	return n, true
}
