package kernel

import (
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel/rtnl"
	"github.com/weftnet/weft/internal/state"
)

// LoseStrictChecks makes the socket work as on a kernel before 4.20, which does not filter dumps.
func (k *Kernel) LoseStrictChecks() error {
	var b rtnl.Batch
	header := make([]byte, unix.SizeofRtMsg)
	header[0], header[offTOS] = unix.AF_INET, 7 // refused, which turns strict checks off
	b.Begin(unix.RTM_GETROUTE, 0, header)
	return k.conn.Dump(&b, func(rtnl.Message) {})
}

// RouteEvent reads a notification about a route of the main table.
func RouteEvent(m rtnl.Message, names map[int32]string) (key state.RouteKey, r state.Route, gone, ok bool) {
	if m.Type != unix.RTM_NEWROUTE && m.Type != unix.RTM_DELROUTE {
		return key, r, false, false
	}
	key, got, ok := parseRoute(m, names)
	return key, got.Route, m.Type == unix.RTM_DELROUTE, ok
}
