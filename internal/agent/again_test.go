package agent

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/lease/leasetest"
	"github.com/weftnet/weft/internal/uplink"
)

// A snapshot that could not be written is written once that works again.
func TestSnapshotIsWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, mem := t.TempDir(), leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		mem.Put(peer(200))
		r := newRig(t, dir, mem)
		inTheWay := filepath.Join(dir, "lib")
		_ = os.WriteFile(inTheWay, nil, 0o600)
		r.opts.SnapshotFile = filepath.Join(inTheWay, "snapshot.json")
		defer r.start(t)()
		settle(20 * time.Second)
		_ = os.Remove(inTheWay) // as a full disk that has room again
		settle(24 * time.Hour)
		if _, err := os.Stat(r.opts.SnapshotFile); err != nil {
			t.Errorf("a day later: %v\n%s", err, r.log)
		}
	})
}

// A listing of the host that fails is tried again soon.
func TestListingIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := leasetest.NewMemory()
		mem.SetConfig([]byte(vxlanConfig))
		r := newRig(t, t.TempDir(), mem)
		fail := false
		r.parts.Uplink = func() (uplink.Host, error) {
			if fail {
				fail = false
				return uplink.Host{}, errors.New("dump interrupted")
			}
			return *r.host, nil
		}
		defer r.start(t)()
		settle(5 * time.Second)
		fail = true
		r.host.Links[0].Addrs[0].Prefix = netip.MustParsePrefix("10.77.0.9/24")
		r.event("address")
		settle(10 * time.Second)
		if a := r.Status().Uplink.Addr.V4; a != netip.MustParseAddr("10.77.0.9") {
			t.Errorf("after 10 s: %s, notes %v", a, r.Status().Notes)
		}
	})
}
