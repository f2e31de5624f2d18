package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// gcPercent trades a little CPU, of which an agent at rest uses none, for memory on every node.
	gcPercent = 50

	tidyPeriod = 5 * time.Second
	tidyWorth  = 4 << 20   // bytes allocated since the last time, from which on there is something to give back
	tidyQuiet  = 256 << 10 // bytes allocated in a period, up to which an agent is at rest
)

// tidy gives memory back to the host whenever a burst of work is over: what the start has needed, or a full pass over
// thousands of peers, and pages of the program that ran once. The collector by itself would keep the room for the next
// burst, and count all of it as the agent's.
func tidy(ctx context.Context, log *slog.Logger) error {
	tick := time.NewTicker(tidyPeriod)
	defer tick.Stop()
	var last, tidied uint64 // bytes allocated so far, when they were looked at
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := allocated()
		if now-tidied > tidyWorth && now-last < tidyQuiet {
			debug.FreeOSMemory()
			if err := releaseProgram(); err != nil {
				log.DebugContext(ctx, "pages of the program stay mapped", "err", err)
			}
			now = allocated()
			tidied = now
		}
		last = now
	}
}

// allocated returns how many bytes have been allocated since the start. It stops nothing, other than runtime.ReadMemStats.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// releaseProgram takes the pages of the program's own file out of this process; they stay in the page cache, and come
// back as they are used. The kernel maps 16 pages with every one that is touched, so a start leaves nearly all mapped.
func releaseProgram() error {
	raw, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range fileMappings(raw) {
		// Cold first, which Linux has since 5.4: unmapped while marked as just used, the pages would count as active,
		// which is what Kubernetes shows as used memory.
		_ = m.advise(unix.MADV_COLD)
		if err := m.advise(unix.MADV_DONTNEED); err != nil {
			errs = append(errs, fmt.Errorf("%x-%x: %w", m.start, m.end, err))
		}
	}
	return errors.Join(errs...)
}

// A mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// advise is madvise(2). The wrapper in unix wants a slice, which nobody has of the program's text.
func (m mapping) advise(advice uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, advice); errno != 0 {
		return errno
	}
	return nil
}

// fileMappings reads smaps (proc_pid_smaps(5)) and returns what is mapped from files, read-only, and is as in the file:
// a position-independent program has addresses filled in on pages that are read-only by now, and those must stay.
func fileMappings(smaps []byte) []mapping {
	var found []mapping
	var m mapping
	candidate := false
	for line := range bytes.Lines(smaps) {
		f := strings.Fields(string(line))
		switch {
		case len(f) >= 5 && !strings.HasSuffix(f[0], ":"): // address, permissions, offset, device, inode, path
			candidate = len(f) >= 6 && f[1][1] == '-' && f[4] != "0"
			if _, err := fmt.Sscanf(f[0], "%x-%x", &m.start, &m.end); err != nil {
				candidate = false
			}
		case candidate && f[0] == "Anonymous:" && f[1] == "0":
			found = append(found, m)
		}
	}
	return found
}
