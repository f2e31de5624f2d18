package kernel

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel/rtnl"
)

// Link-local addresses come with every device, and wake where one may be the node's own.
func TestLinkLocalAddressesWakeOnTheUplink(t *testing.T) {
	notification := func(index int32, prefix string) rtnl.Message {
		p := netip.MustParsePrefix(prefix)
		body := make([]byte, unix.SizeofIfAddrmsg+4)
		body[0], body[1] = familyOf(p.Addr()), uint8(p.Bits())
		put32(body[4:], uint32(index))
		binary.NativeEndian.PutUint16(body[8:], uint16(4+p.Addr().BitLen()/8))
		binary.NativeEndian.PutUint16(body[10:], unix.IFA_ADDRESS)
		return rtnl.Message{Type: unix.RTM_NEWADDR, Body: append(body, p.Addr().AsSlice()...)}
	}
	n := &interest{indexes: map[int32]bool{1: true, 2: true}, ours: map[int32]bool{2: true}}
	for _, c := range []struct {
		name   string
		n      *interest
		index  int32
		prefix string
		want   string
	}{
		{"before the first pass", nil, 9, "fe80::1/64", ChangedAddress},
		{"on the uplink", n, 1, "fe80::1/64", ChangedAddress},
		{"of IPv4 on the uplink", n, 1, "169.254.7.7/16", ChangedAddress},
		{"on a device of ours", n, 2, "fe80::1/64", ""},
		{"on a pod's device", n, 3, "fe80::1/64", ""},
		{"of a wider scope on any device", n, 3, "fd00::1/64", ChangedAddress},
	} {
		if got := c.n.concerned(notification(c.index, c.prefix), 1); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// FuzzNotifications throws bytes at everything that reads what the kernel says.
func FuzzNotifications(f *testing.F) {
	for typ := uint16(unix.RTM_NEWLINK); typ < unix.RTM_GETNEIGH; typ++ {
		f.Add(typ, make([]byte, unix.SizeofIfInfomsg+8))
	}
	f.Add(uint16(unix.RTM_NEWNETCONF), []byte{2, 0, 0, 0, 8, 0, 1, 0, 1, 0, 0, 0})
	n := &interest{networks: testNetworks, underlay: []netip.Addr{netip.MustParseAddr("10.77.0.2")}}
	f.Fuzz(func(t *testing.T, typ uint16, body []byte) {
		m := rtnl.Message{Type: typ, Body: body}
		_ = n.concerned(m, 1)
		_ = (*interest)(nil).concerned(m, 1)
		parseLink(m)
		parseAddress(m)
		parseNeighbour(m)
		_ = direct(m)
		if key, _, ok := parseRoute(m, nil); ok && !key.Dst.IsValid() {
			t.Errorf("route to %v", key.Dst)
		}
	})
}
