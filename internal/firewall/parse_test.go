package firewall

import (
	"encoding/binary"
	"testing"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// message returns a rule as the kernel would list it, without the nfgenmsg.
func message(t testing.TB, f family.Family, es ...expr.Any) []byte {
	t.Helper()
	return encode(func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_RULE_CHAIN, "C")
		ae.Uint64(unix.NFTA_RULE_HANDLE, 7)
		ae.Nested(unix.NFTA_RULE_EXPRESSIONS, func(list *netlink.AttributeEncoder) error {
			for _, e := range es {
				b, err := expr.Marshal(protocolFamily(f), e)
				if err != nil {
					t.Fatal(err)
				}
				list.Bytes(unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM, b)
			}
			return nil
		})
	})
}

// TestOlderEncodings reads rules as other versions of iptables-nft wrote them: a mask for every prefix
// length, other registers, the mark compared natively or by extension, the verdict by the same words.
func TestOlderEncodings(t *testing.T) {
	const r32 = unix.NFT_REG32_00
	comment := xt.Comment(commentMasquerade)
	masked := []expr.Any{
		&expr.Payload{DestRegister: r32, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: r32, DestRegister: r32 + 1, Len: 4, Mask: []byte{255, 255, 0, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: r32 + 1, Data: []byte{10, 5, 0, 0}},
		&expr.Match{Name: xtComment, Info: &comment},
		&expr.Counter{Packets: 9},
		&expr.Verdict{Kind: expr.VerdictReturn},
	}
	want := rule{src: not(prefixes("10.5.0.0/16")[0]), action: actionReturn, comment: commentMasquerade}
	if got, ok := parseRule(message(t, family.V4, masked...)).rule(family.V4); !ok || got != want {
		t.Errorf("masked source: %+v, %v", got, ok)
	}
	for name, mark := range map[string][]expr.Any{
		"native":    nativeMark(kubeMark),
		"extension": {&expr.Match{Name: xtMark, Rev: xtMarkRev, Info: markInfo(kubeMark)}},
	} {
		es := append(mark, &expr.Match{Name: xtComment, Info: &comment}, &expr.Verdict{Kind: expr.VerdictReturn})
		want := rule{mark: kubeMark, action: actionReturn, comment: commentMasquerade}
		if got, ok := parseRule(message(t, family.V4, es...)).rule(family.V4); !ok || got != want {
			t.Errorf("%s mark: %+v, %v", name, got, ok)
		}
	}
}

// FuzzParseRule feeds the parser whatever might come: it never panics, and takes for ours only what it would
// write again with the same meaning.
func FuzzParseRule(f *testing.F) {
	for _, m := range []Mode{IPTables, NFTables} {
		for _, fam := range family.All() {
			p := dual(m)
			for _, r := range append(append(p.masquerade(fam), commented(p.forward(fam), commentForward)...), p.clamp(fam)...) {
				f.Add(message(f, fam, r.expressions(fam, m)...), fam == family.V6)
			}
		}
	}
	f.Add(binary.NativeEndian.AppendUint16(nil, 3), false)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		fam := family.V4
		if v6 {
			fam = family.V6
		}
		k := parseRule(b)
		k.target()
		k.refusesAll()
		r, ok := k.rule(fam)
		if !ok {
			return
		}
		comment := r.comment
		r.comment = "" // userdata keeps it in nftables mode
		again, ok := parseRule(message(t, fam, r.expressions(fam, NFTables)...)).rule(fam)
		if !ok || again != r {
			t.Errorf("%+v (comment %q) comes back as %+v, %v", r, comment, again, ok)
		}
	})
}
