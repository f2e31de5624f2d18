package kernel

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel/rtnl"
)

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
