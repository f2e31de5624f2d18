package firewall

import (
	"bytes"
	"encoding/binary"
	"iter"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// A kernelRule is a rule as the kernel lists it.
type kernelRule struct {
	handle   uint64
	chain    string
	elements []element
	userdata []byte
}

// An element is one expression of a rule.
type element struct {
	name string
	data []byte
}

// parseRule takes a rule message apart, which starts after the nfgenmsg. Unlike google/nftables it keeps
// expressions that it does not know: left out, they would make a foreign rule look like one of ours.
func parseRule(msg []byte) kernelRule {
	r := kernelRule{elements: make([]element, 0, 8)}
	for typ, data := range attributes(msg) {
		switch typ {
		case unix.NFTA_RULE_CHAIN:
			r.chain = text(data)
		case unix.NFTA_RULE_HANDLE:
			if len(data) == 8 {
				r.handle = binary.BigEndian.Uint64(data)
			}
		case unix.NFTA_RULE_USERDATA:
			r.userdata = data
		case unix.NFTA_RULE_EXPRESSIONS:
			for _, e := range attributes(data) {
				r.elements = append(r.elements, parseElement(e))
			}
		}
	}
	return r
}

func parseElement(b []byte) element {
	var e element
	for typ, data := range attributes(b) {
		switch typ {
		case unix.NFTA_EXPR_NAME:
			e.name = text(data)
		case unix.NFTA_EXPR_DATA:
			e.data = data
		}
	}
	return e
}

// attributes walks netlink attributes (struct nlattr { u16 length, type }, padded to four bytes) without
// copying them, which pays where thousands of foreign rules are passed over. It ends at the first that does
// not fit.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			n, typ := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
			if n < unix.SizeofNlAttr || n > len(b) || !yield(typ&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofNlAttr:n]) {
				return
			}
			b = b[min(len(b), (n+3)&^3):]
		}
	}
}

// text is an attribute that holds a string, which ends with a zero byte.
func text(b []byte) string { return string(bytes.TrimRight(b, "\x00")) }

// number is an attribute that holds a 32-bit number, in network order as everywhere in nf_tables.
func number(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// comment finds the comment in a rule's userdata (see commentTLV).
func comment(userdata []byte) (string, bool) {
	for len(userdata) >= 2 {
		kind, n := userdata[0], int(userdata[1])
		if len(userdata) < 2+n {
			return "", false
		}
		if kind == 0 {
			return text(userdata[2 : 2+n]), true
		}
		userdata = userdata[2+n:]
	}
	return "", false
}

// extension reads an xtables match or target; their attributes have the same numbers.
func extension(b []byte) (name string, rev uint32, info xt.Unknown) {
	for typ, data := range attributes(b) {
		switch typ {
		case unix.NFTA_MATCH_NAME:
			name = text(data)
		case unix.NFTA_MATCH_REV:
			rev = number(data)
		case unix.NFTA_MATCH_INFO:
			info = data
		}
	}
	return name, rev, info
}

// A verdict is what an immediate writes into the verdict register.
type verdict struct {
	code  expr.VerdictKind
	chain string // of a jump or goto
}

// verdictOf reads an immediate that is a verdict rather than data.
func verdictOf(b []byte) (v verdict, ok bool) {
	for typ, data := range attributes(b) {
		if typ != unix.NFTA_IMMEDIATE_DATA {
			continue
		}
		for typ, data := range attributes(data) {
			if typ == unix.NFTA_DATA_VERDICT {
				v, ok = parseVerdict(data), true
			}
		}
	}
	return v, ok
}

func parseVerdict(b []byte) verdict {
	var v verdict
	for typ, data := range attributes(b) {
		switch typ {
		case unix.NFTA_VERDICT_CODE:
			v.code = expr.VerdictKind(int32(number(data)))
		case unix.NFTA_VERDICT_CHAIN:
			v.chain = text(data)
		}
	}
	return v
}

// target returns the chain that the rule jumps or goes to, if it does.
func (k kernelRule) target() string {
	for _, e := range k.elements {
		if e.name != "immediate" {
			continue
		}
		if v, ok := verdictOf(e.data); ok && (v.code == expr.VerdictJump || v.code == expr.VerdictGoto) {
			return v.chain
		}
	}
	return ""
}

// refusesAll says whether the rule drops or rejects whatever reaches it.
func (k kernelRule) refusesAll() bool {
	for _, e := range k.elements {
		switch e.name {
		case "counter":
			continue
		case "match":
			if name, _, _ := extension(e.data); name == xtComment {
				continue
			}
		case "reject":
			return true
		case "target":
			name, _, _ := extension(e.data)
			return name == "REJECT"
		case "immediate":
			v, ok := verdictOf(e.data)
			return ok && v.code == expr.VerdictDrop
		}
		return false
	}
	return false
}

// content is the rule as bytes without what changes by itself: its handle and its counters.
func (k kernelRule) content() []byte {
	var b []byte
	for _, e := range k.elements {
		b = append(append(b, e.name...), 0)
		if e.name != "counter" {
			b = append(b, e.data...)
		}
	}
	return b
}
