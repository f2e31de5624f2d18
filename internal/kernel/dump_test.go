package kernel

import (
	"fmt"
	"log/slog"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel/rtnl"
	"github.com/weftnet/weft/internal/netnstest"
)

// TestInterruptedDumpIsBegunAgain makes a link while links are being listed.
func TestInterruptedDumpIsBegunAgain(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		for i := range 60 { // more than one read
			netnstest.Command(t, "ip", "link", "add", fmt.Sprint("br", i), "type", "bridge")
		}
		k, err := Open(slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		begun, names, late := 0, map[string]bool{}, false
		err = k.dump("links", func(b *rtnl.Batch) {
			b.Begin(unix.RTM_GETLINK, 0, make([]byte, unix.SizeofIfInfomsg))
		}, func() { begun++; clear(names) }, func(m rtnl.Message) {
			name, _, _ := parseLink(m)
			names[name] = true
			if !late {
				late = true
				netnstest.Command(t, "ip", "link", "add", "late", "type", "bridge")
			}
		})
		if err != nil || begun != 2 || !names["late"] || len(names) != 62 {
			t.Errorf("begun %d times, %d links: %v", begun, len(names), err)
		}
	})
}
