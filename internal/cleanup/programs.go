package cleanup

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/weftnet/weft/internal/cni/install"
	"github.com/weftnet/weft/internal/state"
)

// programs removes what `flannel install` installed. The original's plugin stays: distributions ship it.
func (h *host) programs(context.Context, *slog.Logger) ([]state.Change, error) {
	var ours []string
	var errs []error
	for _, name := range install.Links() {
		path := filepath.Join(h.opts.CNIBinDir, name)
		if to, err := os.Readlink(path); err == nil && to == install.Program {
			ours = append(ours, path)
		}
	}
	for _, name := range []string{"flannel", install.Program} {
		path := filepath.Join(h.opts.CNIBinDir, name)
		raw, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		if bytes.Contains(raw, []byte(install.Marker)) {
			ours = append(ours, path)
		}
	}
	var changes []state.Change
	for _, path := range ours {
		if !h.opts.DryRun {
			if err := os.Remove(path); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		changes = append(changes, state.Change{Op: state.Remove, Kind: "file", Object: path})
	}
	return changes, errors.Join(errs...)
}
