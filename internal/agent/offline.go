package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/firewall"
	"github.com/weftnet/weft/internal/kernel"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/plan"
	"github.com/weftnet/weft/internal/snapshot"
	"github.com/weftnet/weft/internal/state"
	"github.com/weftnet/weft/internal/uplink"
)

// settings is what the agent keeps in the snapshot beside what the store said: enough to make its plan again.
type settings struct {
	Store  netconf.Store
	Plan   plan.Options
	Uplink uplink.Uplink
	Hints  *uplink.Hints              `json:",omitempty"`
	Ways   map[netip.Prefix]lease.Key `json:",omitempty"`
	Trust  map[netip.Prefix]bool      `json:",omitempty"` // peers of whom probes are believed
	PodMTU int                        `json:",omitempty"` // this and the next: see plan.Input, of the boot named
	Held   family.Pair[netip.Addr]    `json:",omitzero"`
	Boot   string                     `json:",omitempty"`
}

// silent stands for a prober that has heard nothing yet.
type silent struct{}

func (silent) Run(context.Context, func()) error                           { return nil }
func (silent) Set([]plan.Probe)                                            {}
func (silent) Health() (map[plan.WayID]plan.Health, map[plan.WayID]string) { return nil, nil }
func (silent) Stats() (sent, answered uint64)                              { return 0, 0 }

// Offline returns what an agent would change that started now from the snapshot, with the flags and the
// uplink that the last one had.
func Offline(subnetFile, snapshotFile string, log *slog.Logger) ([]state.Change, error) {
	if snapshotFile == "" {
		snapshotFile = snapshot.Path(subnetFile)
	}
	s, err := snapshot.Load(snapshotFile)
	var set settings
	if err == nil {
		err = json.Unmarshal(s.Settings, &set)
	}
	if err != nil {
		return nil, fmt.Errorf("no flanneld runs here, and its snapshot cannot be used: %w", err)
	}
	k, err := kernel.Open(log)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	f, err := firewall.Open(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	a := New(Options{SubnetFile: subnetFile, SnapshotFile: snapshotFile, Store: set.Store, Identity: s.Identity, Plan: set.Plan},
		Parts{Kernel: k, Firewall: f, Prober: silent{}}, log)
	a.recallFiles()
	if err := a.useSnapshot(s); err != nil {
		return nil, err
	}
	a.change(func(in *inputs) { in.uplink, in.complete = set.Uplink, true })
	return a.Pending()
}
