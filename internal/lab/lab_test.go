package lab

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/netnstest"
)

// bare makes a lab without agents and etcd; its binaries are stand-ins.
func bare(t *testing.T, o Options) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		netnstest.Unavailable(t, "root")
	}
	o.Name, o.Base, o.NoEtcd = "bare", t.TempDir(), true
	for _, bin := range []*string{&o.Weft, &o.Flanneld, &o.Flannel} {
		if *bin == "" {
			*bin = "/bin/true"
		}
	}
	l, err := Up(t.Context(), o)
	t.Cleanup(func() {
		if err := Down(o.Base, o.Name); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// patience is for what takes no time, on a machine that is busy.
const patience = 30 * time.Second

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(pollEvery) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func TestNodesReachEachOther(t *testing.T) {
	l := bare(t, Options{Segments: [][]string{{"A", "B"}, {"C"}}, Family: Dual, MTU: 1400})
	for _, from := range l.Nodes {
		for _, to := range l.Nodes {
			if _, err := Ping(from, to.Addr().V4, patience); err != nil {
				t.Errorf("%s to %s: %v", from.Name, to.Name, err)
			}
			if _, err := Ping(from, to.Addr().V6, patience); err != nil {
				t.Errorf("%s to %s: %v", from.Name, to.Name, err)
			}
		}
	}
}

func TestNodeSeesItsOwnWorld(t *testing.T) {
	l := bare(t, Options{Segments: [][]string{{"A", "B"}}})
	a := l.Nodes[0]
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := a.Exec(t.Context(), name, args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	if got := run("uname", "-n"); got != "A" {
		t.Errorf("host name %q, want A", got)
	}
	if got := run("ls", "/sys/class/net"); !strings.Contains(got, "eth0") || strings.Count(got, "\n") > 3 {
		t.Errorf("/sys/class/net holds %q, want that of the node", got)
	}
	if got := run("ls", "/run/flannel", "/var/lib/cni", "/var/lib/flannel"); strings.Contains(got, "subnet.env") {
		t.Errorf("directories are not fresh: %q", got)
	}
	if got := run("cat", "/etc/machine-id"); len(got) != 32 {
		t.Errorf("machine-id %q", got)
	}
	if out, err := exec.Command("cat", "/etc/passwd").Output(); err != nil || run("cat", "/etc/passwd") != strings.TrimSpace(string(out)) {
		t.Errorf("/etc/passwd is not the machine's (%v)", err)
	}
	run("touch", "/run/flannel/x", "/etc/cni/net.d/y")
	for _, path := range []string{"/run/flannel/x", "/etc/cni/net.d/y"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s appears outside the node", path)
		}
		if _, err := os.Stat(l.Nodes[1].Path(path)); err == nil {
			t.Errorf("%s appears on another node", path)
		}
		if _, err := os.Stat(a.Path(path)); err != nil {
			t.Error(err)
		}
	}
}

func TestDownRemovesHalfMadeLab(t *testing.T) {
	l := bare(t, Options{Segments: [][]string{{"A"}}})
	holder := l.Nodes[0].machine
	if err := remove(l.file("lab.json")); err != nil {
		t.Fatal(err)
	}
	if err := l.Down(); err != nil {
		t.Fatal(err)
	}
	if holder.running() {
		t.Error("the node's holder still runs")
	}
	if _, err := os.Stat(l.dir); err == nil {
		t.Error("the directory is still there")
	}
	if err := l.Down(); !errors.Is(err, ErrNone) {
		t.Errorf("second Down says %v, want ErrNone", err)
	}
	if err := os.Mkdir(l.dir, 0o755); err != nil { // for the cleanup
		t.Fatal(err)
	}
}

func TestDownSparesProcessesOfOthers(t *testing.T) {
	l := bare(t, Options{Segments: [][]string{{"A"}}})
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	// The number was given to another process since.
	if err := writeJSON(filepath.Join(l.dir, "node-A", "process-agent.json"), process{PID: other.Process.Pid, Start: 1}); err != nil {
		t.Fatal(err)
	}
	if err := stopAll([]string{filepath.Join(l.dir, "node-A", "process-agent.json")}); err != nil {
		t.Fatal(err)
	}
	if _, err := stat(other.Process.Pid); err != nil {
		t.Error("a process that the lab did not start was ended")
	}
}

func TestOpenFindsLab(t *testing.T) {
	l := bare(t, Options{Segments: [][]string{{"A"}, {"B"}}})
	again, err := Open(l.Options.Base, "bare")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Ping(again.Nodes[1], again.Nodes[0].Addr().V4, patience); err != nil {
		t.Error(err)
	}
	if _, err := Up(t.Context(), l.Options); !errors.Is(err, ErrExists) {
		t.Errorf("a second Up says %v, want ErrExists", err)
	}
}

func TestCableAndPartition(t *testing.T) {
	l := bare(t, Options{Segments: [][]string{{"A", "B"}}})
	a, b := l.Nodes[0], l.Nodes[1]
	ping := func(from, to *Node, timeout time.Duration) error {
		_, err := Ping(from, to.Addr().V4, timeout)
		return err
	}
	pingEtcd := func(timeout time.Duration) error {
		_, err := Ping(a, l.etcd.addr, timeout)
		return err
	}
	const silence = 200 * time.Millisecond
	if err := l.Partition("A", true); err != nil {
		t.Fatal(err)
	}
	if pingEtcd(silence) == nil {
		t.Error("etcd answers a partitioned node")
	}
	if err := ping(a, b, patience); err != nil {
		t.Errorf("a node that is partitioned from etcd: %v", err)
	}
	if err := errors.Join(l.Partition("A", false), l.Partition("A", false), pingEtcd(patience)); err != nil {
		t.Error(err)
	}
	if err := l.Cable("A", false); err != nil {
		t.Fatal(err)
	}
	if ping(b, a, silence) == nil {
		t.Error("a node without cable answers")
	}
	if err := l.Cable("A", true); err != nil {
		t.Fatal(err)
	}
	until(t, "a node with its cable again answers", func() bool { return ping(b, a, time.Second) == nil })
}

func TestRebootAndRenumber(t *testing.T) {
	l := bare(t, Options{Segments: [][]string{{"A", "B"}}})
	a, b := l.Nodes[0], l.Nodes[1]
	if _, err := a.Exec(context.Background(), "touch", "/run/flannel/gone", "/var/lib/flannel/kept"); err != nil {
		t.Fatal(err)
	}
	if err := a.Reboot(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Exec(t.Context(), "ls", "/var/lib/flannel/kept"); err != nil {
		t.Error(err)
	}
	if _, err := a.Exec(t.Context(), "ls", "/run/flannel/gone"); err == nil {
		t.Error("/run outlives a reboot")
	}
	if err := a.Renumber(99); err != nil {
		t.Fatal(err)
	}
	if got := a.Addr().V4.String(); got != "172.31.0.99" {
		t.Errorf("address %s, want 172.31.0.99", got)
	}
	if _, err := Ping(b, a.Addr().V4, patience); err != nil {
		t.Error(err)
	}
}

func sent(p *Probe) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sentAt)
}

func TestProbeCountsLoss(t *testing.T) {
	l := bare(t, Options{Segments: [][]string{{"A", "B"}}})
	a, b := l.Nodes[0], l.Nodes[1]
	p, err := StartProbe(a, b.Addr().V4, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	until(t, "100 answers", func() bool { return p.Answered() >= 100 })
	if got := p.Stop(); got.Lost != 0 || got.Sent < 100 {
		t.Errorf("undisturbed: %v", got)
	}
	if p, err = StartProbe(a, b.Addr().V4, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	until(t, "100 answers", func() bool { return p.Answered() >= 100 })
	if err := l.Cable("B", false); err != nil {
		t.Fatal(err)
	}
	cut := sent(p)
	until(t, "an outage of 50 requests", func() bool { return sent(p) >= cut+50 })
	if err := l.Cable("B", true); err != nil {
		t.Fatal(err)
	}
	n := p.Answered()
	until(t, "answers after the outage", func() bool { return p.Answered() > n })
	if got := p.Stop(); got.Lost == 0 || got.Lost == got.Sent || got.Longest < 40*time.Millisecond {
		t.Errorf("disturbed: %v", got)
	}
}
