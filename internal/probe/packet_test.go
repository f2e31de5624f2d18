package probe

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func TestEncode(t *testing.T) {
	b := make([]byte, 100)
	encode(b, false, ordinary, 0xbeef, 0x1234, 0x0102030405060708)
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if sum = sum>>16 + sum&0xffff; sum != 0xffff {
		t.Errorf("checksum: %x is left", sum)
	}
	for _, v6 := range []bool{false, true} {
		encode(b, v6, ordinary, 0xbeef, 0x1234, 7)
		if _, _, _, ok := decode(b, v6, 0xbeef); ok {
			t.Error("a request passes for an answer")
		}
		b[0] = 0
		if v6 {
			b[0] = 129
		}
		if k, seq, cookie, ok := decode(b, v6, 0xbeef); !ok || k != ordinary || seq != 0x1234 || cookie != 7 {
			t.Errorf("%x %x %v", seq, cookie, ok)
		}
		if _, _, _, ok := decode(b, v6, 0xbeee); ok {
			t.Error("another identifier passes")
		}
	}
}

func FuzzDecode(f *testing.F) {
	b := make([]byte, 20+16)
	b[0] = 0x45
	f.Add(b)
	f.Add(append([]byte{0x46}, bytes.Repeat([]byte{0}, 50)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, payload, ok := decodeIPv4(b)
		if ok && len(payload) > len(b)-lenIPv4 {
			t.Error("payload is more than there was")
		}
		decode(payload, false, 0)
		decode(b, true, 0)
	})
}
