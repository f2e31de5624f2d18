package udptun

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/atomicfile"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/state"
)

const (
	maxFile   = 64 << 20
	saveEvery = time.Second // at most: a storm of changes is written once
	saveAgain = time.Minute // after a failure, even if nothing changes
)

// A record is what is on disk of one data plane.
type record struct {
	Tunnel state.Tunnel                `json:"tunnel"`
	Peers  map[netip.Prefix]netip.Addr `json:"peers"`
}

// save makes sure that what is wanted gets to disk soon. t.mu is held.
func (t *Tunnel) save() {
	if t.file != "" && t.saving == nil {
		t.saveAfter(saveEvery)
	}
}

func (t *Tunnel) saveAfter(d time.Duration) {
	t.saving = time.AfterFunc(d, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.closed {
			return
		}
		if err := t.write(); err != nil {
			t.log.Error("remember the tunnel", "err", err, "again", saveAgain)
			t.saveAfter(saveAgain)
		}
	})
}

// write writes the file. t.mu is held.
func (t *Tunnel) write() error {
	t.saving = nil
	all := map[string]record{}
	for dev, e := range t.engines {
		if tab := e.table.Load(); tab != nil && e.want.Port != 0 { // else it has never run
			all[dev] = record{Tunnel: e.want, Peers: tab.want}
		}
	}
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	_, err = atomicfile.Write(t.file, b, 0o600)
	return err
}

// Resume goes on with what a former process did, before anything else is known: until the first Apply,
// peers are reached as they were. Devices that are not there any more are left out, so nothing is taken
// from before a reboot. An error is no reason to stop: Apply starts from nothing.
func (t *Tunnel) Resume() error {
	if t.file == "" {
		return nil
	}
	b, err := atomicfile.Read(t.file, maxFile)
	if err != nil {
		return err
	}
	var all map[string]record
	if err := json.Unmarshal(b, &all); err != nil {
		return fmt.Errorf("%s: %w", t.file, err)
	}
	s := state.New()
	for dev, r := range all {
		if err := r.check(); err != nil {
			return fmt.Errorf("%s: %s: %w", t.file, dev, err)
		}
		if !exists(dev) {
			continue
		}
		s.Tunnels[dev] = r.Tunnel
		for subnet, a := range r.Peers {
			s.TunnelPeers[state.TunnelKey{Dev: dev, Subnet: subnet}] = a
		}
	}
	_, err = t.Apply(s, true)
	return err
}

// check refuses what no plan can have asked for.
func (r record) check() error {
	w := r.Tunnel
	if w.Port < 1 || w.Port > 65535 || w.Queues < 0 || w.Queues > MaxQueues {
		return fmt.Errorf("port %d or queues %d", w.Port, w.Queues)
	}
	for _, f := range family.All() {
		for _, a := range []netip.Addr{w.Local.Of(f), w.Addr.Of(f)} {
			if a.IsValid() && family.Of(a) != f {
				return fmt.Errorf("%s is no %s address", a, f)
			}
		}
	}
	for subnet, a := range r.Peers {
		if !subnet.IsValid() || subnet != subnet.Masked() || !a.IsValid() || a.Is4() != subnet.Addr().Is4() {
			return fmt.Errorf("peer %s at %s", subnet, a)
		}
	}
	return nil
}

// exists says whether there is a device of this name.
func exists(dev string) bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(dev)
	return err == nil && unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r) == nil
}
