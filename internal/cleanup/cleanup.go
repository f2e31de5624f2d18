// Package cleanup removes from a host every trace of weft and of the original: what both leave standing on
// purpose when they stop, and nobody owns any more once they are gone for good.
package cleanup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/firewall"
	"github.com/weftnet/weft/internal/kernel"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/options"
	"github.com/weftnet/weft/internal/snapshot"
	"github.com/weftnet/weft/internal/state"
	"github.com/weftnet/weft/internal/subnetfile"
	"github.com/weftnet/weft/internal/uplink"
)

// Options says where to look.
type Options struct {
	Owner        string // alias of the agent's links
	SubnetFile   string
	SnapshotFile string
	Networks     []netip.Prefix // pod networks beside those that the files name
	CNIConfDir   string         // /etc/cni/net.d
	CNIStateDir  string         // /var/lib/cni
	CNIBinDir    string         // /opt/cni/bin
	DryRun       bool
	Force        bool // go on although pods are still attached: they lose their network
}

// Run removes what is there, or only lists it, and carries on past failures. Running it again is safe. It
// touches nothing while pods are still attached, unless forced.
func Run(ctx context.Context, opts Options, log *slog.Logger) ([]state.Change, error) {
	h := host{opts: opts, networks: slices.Clone(opts.Networks)}
	h.readFiles()
	if len(h.networks) == 0 {
		log.Warn("no subnet file and no snapshot tell the pod network: routes without a mark of ours are left; name it with --network")
	}
	nl, err := netlink.NewHandle()
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	h.nl = nl
	if h.bridges, err = h.findBridges(); err != nil {
		return nil, err
	}
	var errs []error
	for _, step := range []func(context.Context, *slog.Logger) ([]state.Change, error){
		h.firewall, h.kernel, h.bridge, h.plugin, h.sysctls, h.files, h.programs,
	} {
		changes, err := step(ctx, log)
		h.changes = append(h.changes, changes...)
		errs = append(errs, err)
	}
	return h.changes, errors.Join(errs...)
}

// host is one run.
type host struct {
	opts     Options
	networks []netip.Prefix
	sysctl   map[string]string // values from before us
	uplink   string            // external device; empty: not known
	changes  []state.Change
	nl       *netlink.Handle
	bridges  []netlink.Link
}

func (h *host) readFiles() {
	if f, err := subnetfile.Read(h.opts.SubnetFile); err == nil {
		for _, fam := range family.All() {
			h.networks = append(h.networks, f.Network.Of(fam).Prefixes()...)
		}
	}
	h.uplink = defaultUplink()
	s, err := snapshot.Load(h.opts.SnapshotFile)
	if err != nil {
		return
	}
	h.sysctl = s.Sysctls
	var set struct{ Uplink uplink.Uplink }
	if json.Unmarshal(s.Settings, &set) == nil && set.Uplink.Name != "" {
		h.uplink = set.Uplink.Name
	}
	c, _, err := netconf.Parse(s.Config, netconf.Kubernetes) // the laxer checks: only the networks matter
	if err != nil {
		return
	}
	for _, fam := range family.All() {
		h.networks = append(h.networks, c.Network.Of(fam).Ranges().Prefixes()...)
	}
}

// defaultUplink is the device that the original uses without any flag.
func defaultUplink() string {
	c, err := uplink.Open()
	if err != nil {
		return ""
	}
	defer c.Close()
	host, err := c.List()
	if err != nil {
		return ""
	}
	for _, f := range family.All() {
		var on family.Pair[bool]
		*on.Ref(f) = true
		if u, _, err := uplink.Select(host, uplink.Options{}, on, uplink.Uplink{}); err == nil {
			return u.Name
		}
	}
	return ""
}

func (h *host) firewall(ctx context.Context, log *slog.Logger) ([]state.Change, error) {
	f, err := firewall.Open(log)
	if err != nil {
		return nil, fmt.Errorf("firewall: %w", err)
	}
	defer f.Close()
	changes, err := f.Cleanup(ctx, h.opts.DryRun)
	if err != nil {
		err = fmt.Errorf("firewall: %w", err)
	}
	return changes, err
}

func (h *host) kernel(ctx context.Context, log *slog.Logger) ([]state.Change, error) {
	k, err := kernel.Open(log)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	sc := kernel.Scope{Owner: h.opts.Owner, Networks: h.networks, Uplink: h.uplink, Complete: true}
	return k.Cleanup(ctx, sc, h.opts.DryRun)
}

// sysctls puts back the values from before us, where what they belong to still exists.
func (h *host) sysctls(context.Context, *slog.Logger) ([]state.Change, error) {
	var changes []state.Change
	var errs []error
	for _, key := range sorted(h.sysctl) {
		path, before := filepath.Join("/proc/sys", key), h.sysctl[key]
		if !strings.HasPrefix(path, "/proc/sys/net/") {
			continue // the file says so, but we change nothing else
		}
		if h.goesWithItsLink(key) {
			continue
		}
		now, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(now)) == before {
			continue
		}
		if !h.opts.DryRun {
			if err := kernel.WriteSysctl(key, before); err != nil {
				errs = append(errs, fmt.Errorf("sysctl %s: %w", key, err))
				continue
			}
		}
		changes = append(changes, state.Change{
			Op: state.Modify, Kind: "sysctl", Object: key, Have: strings.TrimSpace(string(now)), Want: before,
		})
	}
	return changes, errors.Join(errs...)
}

// goesWithItsLink says whether a sysctl belongs to a link that is removed.
func (h *host) goesWithItsLink(key string) bool {
	return slices.ContainsFunc(h.changes, func(c state.Change) bool {
		return c.Kind == "link" && c.Op == state.Remove && strings.Contains(key, "/"+c.Object+"/")
	})
}

func sorted(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// files removes what lies on disk, the CNI plugin's state included: without the network it describes nothing.
func (h *host) files(context.Context, *slog.Logger) ([]state.Change, error) {
	paths := []string{h.opts.SubnetFile, options.Socket(h.opts.SubnetFile), options.TunnelFile(h.opts.SubnetFile), h.opts.SnapshotFile}
	paths = append(paths, filepath.Join(filepath.Dir(h.opts.SnapshotFile), "cni-conf.json")) // what was installed as conflist
	for _, c := range h.conflists() {
		paths = append(paths, c.path, filepath.Join(h.opts.CNIStateDir, "networks", c.name))
	}
	paths = append(paths, filepath.Join(h.opts.CNIStateDir, "flannel"), filepath.Join(filepath.Dir(h.opts.SubnetFile), "wgkey"))
	var changes []state.Change
	var errs []error
	for _, p := range paths {
		if _, err := os.Lstat(p); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if !h.opts.DryRun {
			if err := os.RemoveAll(p); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		changes = append(changes, state.Change{Op: state.Remove, Kind: "file", Object: p})
	}
	return changes, errors.Join(errs...)
}
