package etcdserver

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// bridge returns a zap logger whose warnings and errors go to log until quiet is set; etcd's chatter below
// goes nowhere.
func bridge(log *slog.Logger, quiet *atomic.Bool) *zap.Logger {
	return zap.New(core{log: log, quiet: quiet})
}

// A core hands etcd's log entries to slog.
type core struct {
	log    *slog.Logger
	quiet  *atomic.Bool // while closing, etcd calls every listener that it closes an error
	fields []zapcore.Field
}

func (c core) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel && !c.quiet.Load() }

func (c core) With(fields []zapcore.Field) zapcore.Core {
	return core{c.log, c.quiet, append(slices.Clip(c.fields), fields...)}
}

// usual says whether etcd warns of something that it warns of at every start with its own defaults.
func usual(message string) bool {
	return strings.HasPrefix(message, "Running http and grpc server on single port") ||
		message == "simple token is not cryptographically signed"
}

func (c core) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !usual(e.Message) {
		return checked.AddCore(e, c)
	}
	return checked
}

func (c core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if e.Level > zapcore.WarnLevel {
		level = slog.LevelError
	}
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(slices.Clip(c.fields), fields...) {
		f.AddTo(enc)
	}
	keys := make([]string, 0, len(enc.Fields))
	for k := range enc.Fields {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	attrs := make([]slog.Attr, 0, len(keys))
	for _, k := range keys {
		attrs = append(attrs, slog.Any(k, enc.Fields[k]))
	}
	c.log.LogAttrs(context.Background(), level, e.Message, attrs...)
	return nil
}

func (c core) Sync() error { return nil }
