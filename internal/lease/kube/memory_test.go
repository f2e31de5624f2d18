package kube_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A cgroup is one of the memory controller, as a container has it. An empty one stands for none: a machine may not
// let us make any.
type cgroup struct {
	dir   string
	files cgroupFiles
}

// cgroupFiles are what the two versions of cgroups call the same thing.
type cgroupFiles struct{ usage, anon, active, inactive string }

// newCgroup makes a cgroup that goes with the test.
func newCgroup(t *testing.T) cgroup {
	t.Helper()
	g := cgroup{files: cgroupFiles{"memory.current", "anon", "active_file", "inactive_file"}}
	top := "/sys/fs/cgroup"
	if _, err := os.Stat(top + "/memory/memory.stat"); err == nil {
		top += "/memory"
		g.files = cgroupFiles{"memory.usage_in_bytes", "rss", "active_file", "inactive_file"}
	}
	dir, err := os.MkdirTemp(top, "weft-cost-")
	if err != nil {
		t.Logf("no cgroup: %v", err)
		return cgroup{}
	}
	t.Cleanup(func() {
		for end := time.Now().Add(5 * time.Second); ; { // a process that was killed leaves a little later
			err := os.Remove(dir)
			if err == nil || time.Now().After(end) {
				return
			}
			<-time.After(50 * time.Millisecond)
		}
	})
	if _, err := os.Stat(filepath.Join(dir, g.files.usage)); err != nil {
		t.Logf("the memory of cgroups is not counted: %v", err)
		return cgroup{}
	}
	g.dir = dir
	return g
}

// command returns a command whose process is in the cgroup from its first page on.
func (g cgroup) command(argv ...string) *exec.Cmd {
	if g.dir == "" {
		return exec.Command(argv[0], argv[1:]...)
	}
	return exec.Command("sh", append([]string{"-c", `echo $$ > "$0" && exec "$@"`, filepath.Join(g.dir, "cgroup.procs")}, argv...)...)
}

// String says what Kubernetes would show for a container: the working set is all that is charged but for pages of
// files that nobody has used again.
func (g cgroup) String() string {
	raw, err := os.ReadFile(filepath.Join(g.dir, g.files.usage))
	if err != nil {
		return "no cgroup"
	}
	usage, _ := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	raw, err = os.ReadFile(filepath.Join(g.dir, "memory.stat"))
	if err != nil {
		return err.Error()
	}
	stat := fields(raw)
	return fmt.Sprintf("cgroup: working set %s of %s charged (anonymous %s, files %s active and %s inactive)",
		mib(usage-stat[g.files.inactive]), mib(usage), mib(stat[g.files.anon]), mib(stat[g.files.active]), mib(stat[g.files.inactive]))
}

// resident is a process's resident memory in bytes: its own, and the pages of its program, which belong to the page cache
// and go when others need the room.
type resident struct{ anon, file, peak int64 }

func (d daemon) resident(t *testing.T) resident {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	s := fields(b)
	return resident{s["RssAnon:"] << 10, s["RssFile:"] << 10, s["VmHWM:"] << 10}
}

// memory tells what the daemon uses now, and most of all so far.
func (d daemon) memory(t *testing.T) string {
	r := d.resident(t)
	return fmt.Sprintf("RssAnon %s, RssFile %s, at most %s together so far; %s", mib(r.anon), mib(r.file), mib(r.peak), d.group)
}

// sample looks once a second and tells the mean, and the most.
func (d daemon) sample(t *testing.T, during time.Duration) string {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var sum, most resident
	n := int64(during / time.Second)
	for range n {
		<-tick.C
		r := d.resident(t)
		sum.anon, sum.file = sum.anon+r.anon, sum.file+r.file
		if r.anon+r.file > most.anon+most.file {
			most = r
		}
	}
	return fmt.Sprintf("on average RssAnon %s and RssFile %s, at most %s and %s", mib(sum.anon/n), mib(sum.file/n), mib(most.anon), mib(most.file))
}

// fields reads lines of a name, a number, and perhaps a unit.
func fields(b []byte) map[string]int64 {
	out := map[string]int64{}
	for line := range bytes.Lines(b) {
		if f := strings.Fields(string(line)); len(f) > 1 {
			if n, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				out[f[0]] = n
			}
		}
	}
	return out
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// forget drops a file's pages from the page cache, so that who reads them next is charged for them, as after a boot.
func forget(t *testing.T, file string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
		t.Fatal(err)
	}
}
