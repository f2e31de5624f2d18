package udptun

// The virtio-net header (virtio 1.3, 5.1.6) in its old form of ten bytes and the machine's byte order,
// which is what a TUN device has unless told otherwise.
const lenVnet = 10

const (
	needsCsum = 1 // flags: the checksum holds the pseudo-header's sum and is to be finished

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoUDPL4 = 5
)

// A vnet is a virtio-net header.
type vnet struct {
	flags   uint8
	gso     uint8
	hdrLen  uint16 // of all headers; in what the kernel gives, a hint only
	gsoSize uint16 // of the payload of all segments but the last
	start   uint16 // where the checksum begins,
	offset  uint16 // and where it is, from there
}

func readVnet(b []byte) vnet {
	_ = b[lenVnet-1]
	return vnet{
		flags: b[0], gso: b[1], hdrLen: native.Uint16(b[2:]), gsoSize: native.Uint16(b[4:]),
		start: native.Uint16(b[6:]), offset: native.Uint16(b[8:]),
	}
}

func (v vnet) put(b []byte) {
	_ = b[lenVnet-1]
	b[0], b[1] = v.flags, v.gso
	native.PutUint16(b[2:], v.hdrLen)
	native.PutUint16(b[4:], v.gsoSize)
	native.PutUint16(b[6:], v.start)
	native.PutUint16(b[8:], v.offset)
}

// finish completes the checksum of a packet that is no larger than it looks.
func (v vnet) finish(b []byte) bool {
	if v.flags&needsCsum == 0 {
		return true
	}
	start, at := int(v.start), int(v.start)+int(v.offset)
	if at+2 > len(b) {
		return false
	}
	sum := ^fold(add(0, b[start:])) // the field holds the pseudo-header's part
	if sum == 0 && v.offset == udpSum {
		sum = 0xffff // in UDP 0 means that there is none (RFC 768)
	}
	native.PutUint16(b[at:], sum)
	return true
}
