package rtnl

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Netlink is in the byte order of the host.
var native = binary.NativeEndian

const (
	headerLen = unix.SizeofNlMsghdr
	attrLen   = unix.SizeofRtAttr

	// The two high bits of an attribute's type are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
	attrTypeMask = 0x3fff
	attrNested   = 0x8000
)

// A Batch is a row of request messages that go to the kernel in one system call. The zero value is an
// empty batch. Attributes are added to the message that was begun last.
type Batch struct {
	buf    []byte
	starts []int
}

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() { b.buf, b.starts = b.buf[:0], b.starts[:0] }

// Len returns the number of messages.
func (b *Batch) Len() int { return len(b.starts) }

// Begin begins a message. flags are those beside NLM_F_REQUEST; header is the fixed part that the type
// has before its attributes.
func (b *Batch) Begin(typ, flags uint16, header []byte) {
	b.starts = append(b.starts, len(b.buf))
	b.buf = append(b.buf, make([]byte, headerLen)...)
	h := b.buf[len(b.buf)-headerLen:]
	native.PutUint16(h[4:], typ)
	native.PutUint16(h[6:], flags|unix.NLM_F_REQUEST)
	b.buf = append(b.buf, header...)
	b.end()
}

// end pads the last message and notes its length.
func (b *Batch) end() {
	for len(b.buf)%unix.NLMSG_ALIGNTO != 0 {
		b.buf = append(b.buf, 0)
	}
	h := b.buf[b.starts[len(b.starts)-1]:]
	native.PutUint32(h, uint32(len(h)))
}

// Bytes adds an attribute.
func (b *Batch) Bytes(typ uint16, v []byte) {
	b.attr(typ, len(v))
	b.buf = append(b.buf, v...)
	b.end()
}

// String adds an attribute that ends in a zero byte.
func (b *Batch) String(typ uint16, v string) {
	b.attr(typ, len(v)+1)
	b.buf = append(b.buf, v...)
	b.buf = append(b.buf, 0)
	b.end()
}

// Uint8 adds an attribute.
func (b *Batch) Uint8(typ uint16, v uint8) { b.Bytes(typ, []byte{v}) }

// Bool adds an attribute of one byte.
func (b *Batch) Bool(typ uint16, v bool) {
	if v {
		b.Uint8(typ, 1)
	} else {
		b.Uint8(typ, 0)
	}
}

// Uint32 adds an attribute in host order.
func (b *Batch) Uint32(typ uint16, v uint32) {
	b.attr(typ, 4)
	b.buf = native.AppendUint32(b.buf, v)
	b.end()
}

// Uint16BE adds an attribute in network order.
func (b *Batch) Uint16BE(typ, v uint16) {
	b.attr(typ, 2)
	b.buf = binary.BigEndian.AppendUint16(b.buf, v)
	b.end()
}

// Addr adds an address of 4 or 16 bytes.
func (b *Batch) Addr(typ uint16, a netip.Addr) {
	if a.Is4() {
		v := a.As4()
		b.Bytes(typ, v[:])
		return
	}
	v := a.As16()
	b.Bytes(typ, v[:])
}

// Nest adds an attribute that holds what f adds.
func (b *Batch) Nest(typ uint16, f func()) {
	start := len(b.buf)
	b.attr(typ|attrNested, 0)
	b.end()
	f()
	native.PutUint16(b.buf[start:], uint16(len(b.buf)-start))
}

func (b *Batch) attr(typ uint16, n int) {
	b.buf = native.AppendUint16(b.buf, uint16(attrLen+n))
	b.buf = native.AppendUint16(b.buf, typ)
}

// A Message is one message from the kernel. Body is valid until the next read.
type Message struct {
	Type  uint16
	Flags uint16
	Seq   uint32
	Port  uint32 // of the socket whose request caused it, in most notifications; 0: none
	Body  []byte
}

// Messages splits what one read returned. A truncated rest is left out.
func Messages(b []byte) iter.Seq[Message] {
	return func(yield func(Message) bool) {
		for len(b) >= headerLen {
			n := int(native.Uint32(b))
			if n < headerLen || n > len(b) {
				return
			}
			m := Message{
				Type:  native.Uint16(b[4:]),
				Flags: native.Uint16(b[6:]),
				Seq:   native.Uint32(b[8:]),
				Port:  native.Uint32(b[12:]),
				Body:  b[headerLen:n],
			}
			if !yield(m) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// Attrs walks the attributes in b. A truncated rest is left out.
func Attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= attrLen {
			n := int(native.Uint16(b))
			if n < attrLen || n > len(b) {
				return
			}
			if !yield(native.Uint16(b[2:])&attrTypeMask, b[attrLen:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// Uint16BE reads an attribute in network order; what is too short is 0, as in the functions below.
func Uint16BE(v []byte) uint16 {
	if len(v) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(v)
}

// Uint8 reads an attribute.
func Uint8(v []byte) uint8 {
	if len(v) < 1 {
		return 0
	}
	return v[0]
}

// Uint32 reads an attribute in host order.
func Uint32(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return native.Uint32(v)
}

// String reads an attribute that may end in a zero byte.
func String(v []byte) string {
	if n := len(v); n > 0 && v[n-1] == 0 {
		v = v[:n-1]
	}
	return string(v)
}

// Addr reads an address of 4 or 16 bytes; any other length gives the zero Addr.
func Addr(v []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(v)
	return a
}
