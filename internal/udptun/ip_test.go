package udptun

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

func TestDecrementKeepsTheChecksumRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := rapid.SliceOfN(rapid.Byte(), 20, 20).Draw(t, "header")
		h[0], h[8] = 0x45, rapid.ByteRange(0, 255).Draw(t, "ttl")
		be.PutUint16(h[2:], 20)
		h[10], h[11] = 0, 0
		be.PutUint16(h[10:], ^slowSum(h))
		before := bytes.Clone(h)
		p, ok := parse(h)
		if !ok {
			t.Fatal("not parsed")
		}
		if !p.decrement() {
			if before[8] > 1 || !bytes.Equal(h, before) {
				t.Fatal("refused, or changed")
			}
			return
		}
		if h[8] != before[8]-1 {
			t.Fatalf("TTL %d", h[8])
		}
		was := be.Uint16(h[10:])
		h[10], h[11] = 0, 0
		if want := ^slowSum(h); was != want { // as if computed anew, bit for bit
			t.Fatalf("checksum %#x, want %#x", was, want)
		}
	})
}

// Fragments put together again are the packet, whatever its options are.
func TestFragmentsMakeThePacket(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		options := rapid.SampledFrom([][]byte{nil, {0x94, 4, 0, 0}, {7, 7, 4, 0, 0, 0, 0, 0}, {0x94, 4, 0, 0, 1, 7, 3, 0}, {7, 0, 0, 0}}).Draw(t, "options")
		h := append([]byte{0x45 + byte(len(options)/4), 0x03, 0, 0, 0, 9, 0, 0, 64, 17, 0, 0, 10, 244, 1, 2, 10, 244, 2, 2}, options...)
		first := uint16(rapid.SampledFrom([]int{0, 0x2000, 0x2010, 0x0010}).Draw(t, "fragment already"))
		b := append(h, payload(t, rapid.IntRange(1, 5000).Draw(t, "length"))...)
		be.PutUint16(b[6:], first)
		setLength(b, 9)
		p, ok := parse(b)
		if !ok {
			t.Fatal("not parsed")
		}
		limit := rapid.IntRange(68, 1500).Draw(t, "limit")
		var data []byte
		at, more := int(first&offsetMask)*8, true
		fragment(p, limit, func(f []byte) {
			q, ok := parse(f)
			if !ok || len(q.b) != len(f) || len(f) > limit || slowSum(f[:q.l4]) != 0xffff {
				t.Fatalf("fragment %x", f)
			}
			word := be.Uint16(f[6:])
			if int(word&offsetMask)*8 != at || !more {
				t.Fatalf("offset %d, want %d", int(word&offsetMask)*8, at)
			}
			if f[1] != 0x03 || be.Uint16(f[4:]) != 9 || !bytes.Equal(f[12:20], b[12:20]) {
				t.Fatalf("header %x", f[:q.l4])
			}
			if len(data) > 0 && bytes.Contains(f[20:q.l4], []byte{7}) {
				t.Fatal("an option that is not for all fragments")
			}
			data, at, more = append(data, f[q.l4:]...), at+len(f)-q.l4, word&moreFragments != 0
		})
		if !bytes.Equal(data, b[p.l4:]) {
			t.Fatal("other data")
		}
		if more != (first&moreFragments != 0) {
			t.Fatal("wrong end")
		}
	})
}

func TestParseTakesOnlyWholePackets(t *testing.T) {
	good := seeds()[0]
	for name, b := range map[string][]byte{
		"empty":                   {},
		"19 bytes":                good[:19],
		"cut off":                 good[:43],
		"version 5":               append([]byte{0x55}, good[1:]...),
		"header of 16 bytes":      append([]byte{0x44}, good[1:]...),
		"header beyond the end":   append([]byte{0x4f}, good[1:]...),
		"shorter than its header": append([]byte{0x45, 0, 0, 19}, good[4:]...),
		"IPv6, cut off":           seeds()[2][:63],
		"IPv6 of 39 bytes":        seeds()[2][:39],
	} {
		if p, ok := parse(b); ok {
			t.Errorf("%s: %+v", name, p)
		}
	}
	if p, ok := parse(append(bytes.Clone(good), 1, 2, 3)); !ok || len(p.b) != len(good) {
		t.Errorf("what follows the packet is not cut off: %v %d", ok, len(p.b))
	}
}
