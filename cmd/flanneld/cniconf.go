package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/weftnet/weft/internal/cniconf"
	"github.com/weftnet/weft/internal/options"
)

// keepCNIConf installs the CNI configuration, if that is asked for, once subnet.env is there.
func keepCNIConf(ctx context.Context, opts options.Options, log *slog.Logger) error {
	if opts.CNIConfFile == "" {
		return nil
	}
	cniconf.Files{
		Source: opts.CNIConfSource, Target: opts.CNIConfFile,
		Record: filepath.Join(filepath.Dir(opts.SnapshotFile), "cni-conf.json"), After: opts.SubnetFile,
	}.Keep(ctx, time.Second, log)
	return nil
}
