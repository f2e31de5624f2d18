package udptun

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// slowSum is RFC 1071 as it stands there, in network order.
func slowSum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func TestSumIsThatOfRFC1071(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 600 {
		b := make([]byte, n)
		for i := range b {
			if b[i] = byte(r.Uint32()); n%3 == 0 {
				b[i] |= 0xf0 // many carries
			}
			if n%7 == 0 {
				b[i] = 0xff
			}
		}
		cut := 2 * r.IntN(n/2+1)
		if got, want := fold(add(add(0, b[:cut]), b[cut:])), wire(slowSum(b)); got%0xffff != want%0xffff || (got == 0) != (want == 0) {
			t.Fatalf("%d bytes: %#x, want %#x", n, got, want)
		}
	}
}

func BenchmarkSum(b *testing.B) {
	buf := make([]byte, 1448)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		add(0, buf)
	}
}
