package udptun

import (
	"encoding/binary"
	"math/bits"
)

// Internet checksums (RFC 1071) are computed in the machine's byte order: the ones' complement sum does not
// care, as long as it is stored in the order in which it was read. A sum is a 64-bit ones' complement
// number that fold turns into the 16 bits of a header.

var native = binary.NativeEndian

// add adds b to the sum s. A part of odd length may only come last.
func add(s uint64, b []byte) uint64 {
	// Two chains of additions, so that neither waits for the other, nor for a carry from one round to the next.
	var c, t, d, carries uint64
	for len(b) >= 128 {
		w := (*[128]byte)(b)
		s, c = bits.Add64(s, native.Uint64(w[0:8]), 0)
		s, c = bits.Add64(s, native.Uint64(w[8:16]), c)
		s, c = bits.Add64(s, native.Uint64(w[16:24]), c)
		s, c = bits.Add64(s, native.Uint64(w[24:32]), c)
		s, c = bits.Add64(s, native.Uint64(w[32:40]), c)
		s, c = bits.Add64(s, native.Uint64(w[40:48]), c)
		s, c = bits.Add64(s, native.Uint64(w[48:56]), c)
		s, c = bits.Add64(s, native.Uint64(w[56:64]), c)
		t, d = bits.Add64(t, native.Uint64(w[64:72]), 0)
		t, d = bits.Add64(t, native.Uint64(w[72:80]), d)
		t, d = bits.Add64(t, native.Uint64(w[80:88]), d)
		t, d = bits.Add64(t, native.Uint64(w[88:96]), d)
		t, d = bits.Add64(t, native.Uint64(w[96:104]), d)
		t, d = bits.Add64(t, native.Uint64(w[104:112]), d)
		t, d = bits.Add64(t, native.Uint64(w[112:120]), d)
		t, d = bits.Add64(t, native.Uint64(w[120:128]), d)
		carries += c + d
		b = b[128:]
	}
	s, c = bits.Add64(s, t, 0)
	s, c = bits.Add64(s, carries, c)
	for len(b) >= 8 {
		s, c = bits.Add64(s, native.Uint64(b), c)
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		copy(last[:], b)
		s, c = bits.Add64(s, native.Uint64(last[:]), c)
	}
	s, c = bits.Add64(s, 0, c)
	return s + c
}

// add16 adds one 16-bit field with the value v.
func add16(s uint64, v uint16) uint64 {
	s, c := bits.Add64(s, uint64(wire(v)), 0)
	return s + c
}

// wire returns v as native reads it from a packet.
func wire(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return native.Uint16(b[:])
}

// fold brings a sum down to 16 bits, which native puts into a packet.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}
