package cleanup

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/internal/state"
)

// A conflist is a CNI configuration that names our plugin.
type conflist struct {
	path   string
	name   string // of the network: host-local keeps its addresses under it
	bridge string
}

// conflists returns the configurations whose first plugin is ours.
func (h *host) conflists() []conflist {
	paths, err := filepath.Glob(filepath.Join(h.opts.CNIConfDir, "*.conf*"))
	if err != nil {
		return nil
	}
	// What a network may be called (CNI specification, section 1): the name becomes part of a path.
	name := regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)
	var found []conflist
	for _, p := range paths {
		raw, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		var c struct {
			Name    string `json:"name"`
			Plugins []struct {
				Type     string `json:"type"`
				Delegate struct {
					Bridge string `json:"bridge"`
				} `json:"delegate"`
			} `json:"plugins"`
		}
		if json.Unmarshal(raw, &c) != nil || len(c.Plugins) == 0 || c.Plugins[0].Type != "flannel" || !name.MatchString(c.Name) {
			continue
		}
		found = append(found, conflist{path: p, name: c.Name, bridge: c.Plugins[0].Delegate.Bridge})
	}
	return found
}

// findBridges returns the bridges that pods of our networks are or were on.
func (h *host) findBridges() ([]netlink.Link, error) {
	names := []string{"cni0"}
	for _, c := range h.conflists() {
		if c.bridge != "" && !slices.Contains(names, c.bridge) {
			names = append(names, c.bridge)
		}
	}
	var found []netlink.Link
	for _, name := range names {
		link, err := h.nl.LinkByName(name)
		if err != nil || link.Type() != "bridge" || !h.ours(link) {
			continue
		}
		n, err := h.ports(link)
		if err != nil {
			return nil, err
		}
		if n > 0 && !h.opts.Force && !h.opts.DryRun {
			return nil, fmt.Errorf("%d pods are still attached to bridge %s: stop them first, or cut them off with --force", n, name)
		}
		found = append(found, link)
	}
	return found, nil
}

// bridge removes the pods' bridges.
func (h *host) bridge(context.Context, *slog.Logger) ([]state.Change, error) {
	var changes []state.Change
	for _, link := range h.bridges {
		name := link.Attrs().Name
		if !h.opts.DryRun {
			if err := h.nl.LinkDel(link); err != nil {
				return changes, fmt.Errorf("bridge %s: %w", name, err)
			}
		}
		changes = append(changes, state.Change{Op: state.Remove, Kind: "link", Object: name, Have: "bridge"})
	}
	return changes, nil
}

// ours says whether a bridge has an address inside a pod network.
func (h *host) ours(link netlink.Link) bool {
	addrs, err := h.nl.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return false
	}
	for _, a := range addrs {
		for _, n := range h.networks {
			if ip, ok := address(a.IP); ok && n.Contains(ip) {
				return true
			}
		}
	}
	return false
}

func address(ip net.IP) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(ip)
	return a.Unmap(), ok
}

// ports counts the links on a bridge.
func (h *host) ports(bridge netlink.Link) (int, error) {
	links, err := h.nl.LinkList()
	if err != nil {
		return 0, fmt.Errorf("list links: %w", err)
	}
	n := 0
	for _, l := range links {
		if l.Attrs().MasterIndex == bridge.Attrs().Index {
			n++
		}
	}
	return n, nil
}
