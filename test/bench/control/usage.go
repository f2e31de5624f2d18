package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A usage is what a process has used so far.
type usage struct {
	cpu      time.Duration
	peakKiB  int
	switches int // voluntary context switches of all threads: each is one wake-up
}

func usageOf(pid int) (usage, error) {
	var u usage
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	// After the command in parentheses; utime and stime are fields 14 and 15 of proc(5), in ticks of 10 ms.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	for _, f := range fields[11:13] {
		ticks, err := strconv.Atoi(f)
		if err != nil {
			return u, err
		}
		u.cpu += time.Duration(ticks) * 10 * time.Millisecond
	}
	u.peakKiB = field(fmt.Sprintf("/proc/%d/status", pid), "VmHWM:")
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, t := range threads {
		u.switches += field(t, "voluntary_ctxt_switches:")
	}
	return u, err
}

// field returns a number from a file of "name: number" lines, 0 if it is not there.
func field(path, name string) int {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n
		}
	}
	return 0
}

// atRest measures an agent that has nothing to do.
func (b *bench) atRest(ctx context.Context, d time.Duration) error {
	before, err := usageOf(b.node.Agent.PID())
	if err != nil {
		return err
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := usageOf(b.node.Agent.PID())
	if err != nil {
		return err
	}
	cpu := after.cpu - before.cpu
	fmt.Printf("At rest for %v with %d peers: %v of CPU (%.2f %% of a core), %.1f wake-ups a second, %d MB resident.\n\n",
		d, b.peers, cpu, 100*cpu.Seconds()/d.Seconds(), float64(after.switches-before.switches)/d.Seconds(),
		field(fmt.Sprintf("/proc/%d/status", b.node.Agent.PID()), "VmRSS:")/1024)
	return nil
}

func sizes(dir string) error {
	fmt.Println("| binary | bytes |\n| --- | --- |")
	for _, name := range []string{"flanneld", "flannel", "weft"} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		fmt.Printf("| %s | %.1f MB |\n", name, float64(fi.Size())/1e6)
	}
	return nil
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown kernel"
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}

func load() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(raw))[0]
}
