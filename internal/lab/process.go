package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A process is one that the lab started. Its start time tells it from a later process that was given
// the same number.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, field 22 of /proc/PID/stat
}

// start starts cmd where do leads and records it in file, so that a later command finds it. The file is
// written outside: inside a node, its path may mean another one. The caller's death does not end cmd.
func start(cmd *exec.Cmd, do func(func() error) error, file string) (process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if err := do(cmd.Start); err != nil {
		return process{}, err
	}
	p := process{PID: cmd.Process.Pid}
	var err error
	if p.Start, err = startTime(p.PID); err == nil {
		err = writeJSON(file, p)
	}
	if err != nil {
		err = errors.Join(err, cmd.Process.Kill())
	}
	go cmd.Wait() //nolint:errcheck // reaps; how it ended is in its log
	return p, err
}

// here is the do of start for the namespaces that the caller is in.
func here(f func() error) error { return f() }

// recorded returns the process of a file that start wrote, and whether it still runs.
func recorded(file string) (process, bool) {
	var p process
	if err := readJSON(file, &p); err != nil {
		return p, false
	}
	return p, p.running()
}

// running says whether the process exists and is no zombie.
func (p process) running() bool {
	fields, err := stat(p.PID)
	return err == nil && fields[0] != "Z" && fields[0] != "X" && fields[19] == strconv.FormatUint(p.Start, 10)
}

// open returns a descriptor of the process that cannot come to mean another one.
func (p process) open() (int, error) {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return -1, err
	}
	if !p.running() {
		return -1, errors.Join(unix.ESRCH, unix.Close(fd))
	}
	return fd, nil
}

// signal sends sig and waits up to timeout for the process to end. It reports whether the process is
// gone, which it also is when it was not there in the first place.
func (p process) signal(sig unix.Signal, timeout time.Duration) (gone bool, err error) {
	fd, err := p.open()
	if errors.Is(err, unix.ESRCH) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return false, fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return waitReadable(fd, timeout), nil
}

// stop ends the process: politely, and after the grace period by force.
func (p process) stop(grace time.Duration) error {
	gone, err := p.signal(unix.SIGTERM, grace)
	if gone || err != nil {
		return err
	}
	if gone, err = p.signal(unix.SIGKILL, 10*time.Second); !gone && err == nil {
		err = fmt.Errorf("process %d survives SIGKILL", p.PID)
	}
	return err
}

// waitReadable waits until fd can be read, which for a process means that it has ended.
func waitReadable(fd int, timeout time.Duration) bool {
	deadline := time.Now().Add(timeout)
	for {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if n > 0 || (err != nil && !errors.Is(err, unix.EINTR)) {
			return n > 0
		}
		if left == 0 {
			return false
		}
	}
}

func startTime(pid int) (uint64, error) {
	fields, err := stat(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// stat returns the fields of /proc/PID/stat from the third, the state, on.
func stat(pid int) ([]string, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:])) // the second may hold blanks
	if len(fields) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	return fields, nil
}

func writeJSON(file string, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	tmp := file + ".new"
	if err := os.WriteFile(tmp, append(raw, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}

func readJSON(file string, v any) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// remove deletes a file that may be gone already.
func remove(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
