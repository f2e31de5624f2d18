package cni

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/cni/bandwidth"
	"github.com/weftnet/weft/internal/cni/bridge"
	"github.com/weftnet/weft/internal/cni/conf"
	"github.com/weftnet/weft/internal/cni/hostlocal"
	"github.com/weftnet/weft/internal/cni/rules"
	"github.com/weftnet/weft/internal/cni/statefile"
)

// dead returns the addresses whose pods are gone, in order. An entry lives if a namespace behind a port of
// the bridge has the address or if the port that this plugin would have made for it is there. Entries
// that are not known to be ours also live while some port leads to a namespace without any address: that
// may be the reference plugin between making the port and setting the address.
func dead(entries map[netip.Addr]hostlocal.Owner, ports []bridge.LivePort, ours func(hostlocal.Owner) bool) []netip.Addr {
	live, names, unsure := map[netip.Addr]bool{}, map[string]bool{}, false
	for _, p := range ports {
		names[p.Name] = true
		unsure = unsure || len(p.Addrs) == 0 && !p.Ours
		for _, a := range p.Addrs {
			live[a] = true
		}
	}
	var gone []netip.Addr
	for a, o := range entries {
		if !live[a] && !names[portName(o)] && (!unsure || ours(o)) {
			gone = append(gone, a)
		}
	}
	slices.SortFunc(gone, netip.Addr.Compare)
	return gone
}

// reclaimer returns the reclaim of a bridge's network. state may be empty: then no entry is known to be
// ours.
func reclaimer(c conf.Bridge, state statefile.Dir) reclaim {
	return func(dir *hostlocal.Dir) (int, error) {
		k, err := bridge.Open()
		if err != nil {
			return 0, err
		}
		defer k.Close()
		entries, err := dir.Entries()
		if err != nil {
			return 0, err
		}
		ports, err := k.Ports(c.Device, c.Network)
		if err != nil {
			return 0, err
		}
		ours := func(o hostlocal.Owner) bool {
			return state != "" && state.Has(statefile.Key{ContainerID: o.ContainerID, IfName: o.IfName})
		}
		gone := slices.DeleteFunc(dead(entries, ports, ours), dir.InFlight)
		if len(gone) == 0 {
			return 0, nil
		}
		lost := owners{}
		for _, a := range gone {
			lost[entries[a]] = true
		}
		if err := forgetOwners(c.Network, lost); err != nil {
			return 0, err
		}
		n, err := freeDead(dir, gone)
		if state != "" {
			err = errors.Join(err, state.Sweep())
			for o := range lost {
				err = errors.Join(err, state.Remove(statefile.Key{ContainerID: o.ContainerID, IfName: o.IfName}))
			}
		}
		return n, err
	}
}

// forgetOwners deletes what dead attachments left besides their entries: above all, no port of the node may
// lead to an address that another pod gets.
func forgetOwners(network string, lost owners) error {
	labels := map[string]bool{}
	for o := range lost {
		for _, plugin := range []string{"bridge", "portmap"} {
			labels[rules.Label{Plugin: plugin, Network: network, ContainerID: o.ContainerID, IfName: o.IfName}.String()] = true
		}
	}
	conn, err := rules.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.Remove(func(comment string) bool { return labels[comment] }); err != nil {
		return err
	}
	k, err := bandwidth.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	for o := range lost {
		err = errors.Join(err, k.Delete(bandwidth.DeviceName(network, o.ContainerID, o.IfName)))
	}
	return err
}

func freeDead(dir *hostlocal.Dir, gone []netip.Addr) (int, error) {
	var errs []error
	n := 0
	for _, a := range gone {
		if !dir.InFlight(a) {
			err := dir.Free(a)
			if errs = append(errs, err); err == nil {
				n++
			}
		}
	}
	return n, errors.Join(errs...)
}

// reclaimOlder frees the entries that are older than this boot. It is all that host-local can know when
// another plugin made the device.
func reclaimOlder(dir *hostlocal.Dir) (int, error) {
	boot, err := bootTime()
	if err != nil {
		return 0, err
	}
	entries, err := dir.Entries()
	if err != nil {
		return 0, err
	}
	var gone []netip.Addr
	for a := range entries {
		if made, err := dir.Modified(a); err == nil && made.Before(boot) {
			gone = append(gone, a)
		}
	}
	return freeDead(dir, gone)
}

// bootTime reads the time of boot from proc_stat(5).
func bootTime() (time.Time, error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, "btime "); ok {
			seconds, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return time.Unix(seconds, 0), err
		}
	}
	return time.Time{}, errors.New("/proc/stat: no btime")
}
