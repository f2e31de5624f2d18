package cleanup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/google/nftables"

	"github.com/weftnet/weft/internal/cni/rules"
	"github.com/weftnet/weft/internal/state"
)

// plugin removes what the CNI plugin keeps in the kernel beside bridges and pods: its tables, and the devices
// that limit what pods receive.
func (h *host) plugin(context.Context, *slog.Logger) ([]state.Change, error) {
	tables, err := h.pluginTables()
	limits, more := h.pluginLimits()
	return append(tables, limits...), errors.Join(err, more)
}

func (h *host) pluginTables() ([]state.Change, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	names := map[nftables.TableFamily]string{
		nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyBridge: "bridge",
	}
	var changes []state.Change
	for _, t := range tables {
		name, ok := names[t.Family]
		if !ok || t.Name != rules.TableName {
			continue
		}
		c.DelTable(t)
		changes = append(changes, state.Change{Op: state.Remove, Kind: "firewall", Object: "table " + name + " " + t.Name})
	}
	if h.opts.DryRun || len(changes) == 0 {
		return changes, nil
	}
	if err := c.Flush(); err != nil {
		return nil, fmt.Errorf("tables %s: %w", rules.TableName, err)
	}
	return changes, nil
}

// pluginLimits removes the ifb devices of pods that are gone. The reference plugin gives its own the same names.
func (h *host) pluginLimits() ([]state.Change, error) {
	links, err := h.nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var changes []state.Change
	var errs []error
	for _, l := range links {
		name := l.Attrs().Name
		if l.Type() != "ifb" || !strings.HasPrefix(name, "bwp") {
			continue
		}
		if !h.opts.DryRun {
			if err := h.nl.LinkDel(l); err != nil {
				errs = append(errs, fmt.Errorf("link %s: %w", name, err))
				continue
			}
		}
		changes = append(changes, state.Change{Op: state.Remove, Kind: "link", Object: name, Have: "ifb"})
	}
	return changes, errors.Join(errs...)
}
