package rules

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// The parts of a rule, named for how a rule reads. A register holds what is compared; none is needed
// after the part that fills it.
const (
	reg  = 1
	reg2 = 2
)

// What never leaves a node.
var (
	Loopback4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8)
	Loopback6 = netip.PrefixFrom(netip.IPv6Loopback(), 128)
)

// Multicast returns the multicast range of a family.
func Multicast(f family.Family) netip.Prefix {
	if f == family.V4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4)
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8)
}

func join(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

// Join makes one rule of its parts.
func Join(parts ...[]expr.Any) []expr.Any { return join(parts...) }

// From matches the source, To and NotTo the destination address.
func From(p netip.Prefix) []expr.Any { return address(p, false, expr.CmpOpEq) }

// To matches packets to p.
func To(p netip.Prefix) []expr.Any { return address(p, true, expr.CmpOpEq) }

// NotTo matches packets to anything but p.
func NotTo(p netip.Prefix) []expr.Any { return address(p, true, expr.CmpOpNeq) }

func address(p netip.Prefix, destination bool, op expr.CmpOp) []expr.Any {
	offset, length := uint32(12), uint32(4) // RFC 791: source address
	if family.Of(p.Addr()) == family.V6 {
		offset, length = 8, 16 // RFC 8200
	}
	if destination {
		offset += length
	}
	parts := []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}}
	if p.Bits() < p.Addr().BitLen() {
		parts = append(parts, &expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: length,
			Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, length),
		})
	}
	return append(parts, &expr.Cmp{Op: op, Register: reg, Data: p.Masked().Addr().AsSlice()})
}

// ToPort matches an IP protocol and its destination port, which TCP, UDP and SCTP have in one place.
func ToPort(protocol byte, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{protocol}},
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

// ToThisNode matches packets to an address of this node.
func ToThisNode() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// NotFromLoopback matches packets that came in on another device than lo.
func NotFromLoopback() []expr.Any { return device("lo", expr.CmpOpNeq) }

// FromDevice matches packets that came in on a device.
func FromDevice(name string) []expr.Any { return device(name, expr.CmpOpEq) }

func device(name string, op expr.CmpOp) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg},
		&expr.Cmp{Op: op, Register: reg, Data: padded},
	}
}

// FromOtherMAC matches frames whose source is not mac.
func FromOtherMAC(mac net.HardwareAddr) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: mac},
	}
}

// SetMark sets bits of the packet's mark.
func SetMark(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
		&expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^bits), Xor: binaryutil.NativeEndian.PutUint32(bits),
		},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg},
	}
}

// Marked matches packets that have the bits set.
func Marked(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
		&expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(bits)},
	}
}

// DNAT sends the packet to another address and port.
func DNAT(to netip.AddrPort) []expr.Any {
	nfproto := uint32(unix.NFPROTO_IPV4)
	if family.Of(to.Addr()) == family.V6 {
		nfproto = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: reg2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: nfproto, RegAddrMin: reg, RegProtoMin: reg2},
	}
}

// Masquerade gives the packet the source address of the device that it leaves by.
func Masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// Drop drops the packet.
func Drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

// Jump goes on in another chain and comes back.
func Jump(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictJump, Chain: chain} }
