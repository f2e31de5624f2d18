package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// setUp makes the node's files and settings.
func (s Spec) setUp() error {
	// The lab's mounts are private; these are seen by the node's processes only.
	for _, m := range s.Mounts {
		if err := os.MkdirAll(m.Target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.Source, m.Target, m.Type, m.Flags, m.Data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.Source, m.Target, err)
		}
	}
	if err := os.MkdirAll(s.Control, 0o755); err != nil {
		return err
	}
	if err := s.shield(); err != nil {
		return err
	}
	for name, value := range s.Sysctls {
		err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sysctl: %w", err)
		}
	}
	if err := makeCgroup(s.Cgroup); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	// Container runtimes mount volumes where containers see them come and go.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// shield puts files of the node over settings of the whole machine.
func (s Spec) shield() error {
	for path, value := range s.Shields {
		file := filepath.Join(s.Control, strings.ReplaceAll(strings.Trim(path, "/"), "/", "_"))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		err := unix.Mount(file, path, "", unix.MS_BIND, "")
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mount over %s: %w", path, err)
		}
	}
	return nil
}

const cgroupRoot = "/sys/fs/cgroup"

// makeCgroup makes the cgroup in the one hierarchy of version 2, or in each of version 1.
func makeCgroup(path string) error {
	if exists(cgroupRoot + "/cgroup.controllers") {
		return makeUnified(path)
	}
	hierarchies, err := filepath.Glob(cgroupRoot + "/*")
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		if !exists(h + "/cgroup.procs") {
			continue
		}
		dir := h
		for elem := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
			parent := dir
			dir = filepath.Join(dir, elem)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			// A new cpuset has neither processors nor memory, and takes no process.
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				if err := copyFile(filepath.Join(parent, f), filepath.Join(dir, f)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// makeUnified hands every controller down to the cgroup. One that cannot be handed down stays above.
func makeUnified(path string) error {
	if err := os.MkdirAll(filepath.Join(cgroupRoot, path), 0o755); err != nil {
		return err
	}
	dir := cgroupRoot
	for elem := range strings.SplitSeq(strings.Trim(path, "/")+"/", "/") {
		raw, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		if err != nil {
			return err
		}
		for c := range strings.FieldsSeq(string(raw)) {
			_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644) // see above
		}
		dir = filepath.Join(dir, elem)
	}
	return nil
}

// copyFile copies the content of a file, if there is one.
func copyFile(from, to string) error {
	raw, err := os.ReadFile(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.WriteFile(to, raw, 0o644)
}
