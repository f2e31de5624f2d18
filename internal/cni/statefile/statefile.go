// Package statefile keeps what DEL needs: the configuration of the plugin that did the work, as the
// original keeps it, so that either plugin can delete what the other added.
//
//	<dir>/<container id>             the original's file
//	<dir>/<container id>:<interface> ours: the same bytes, one file per interface
//
// The first file is a hard link to one of the others, so it shows which interface it belongs to; the
// original cannot tell two interfaces of a container apart. Neither a container id nor an interface
// name can hold a colon.
package statefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxSize bounds what is read back; a delegate configuration has a few hundred bytes.
const maxSize = 1 << 20

// A Dir is the plugin's data directory.
type Dir string

// A Key is one attachment.
type Key struct {
	ContainerID, IfName string
}

func (d Dir) own(k Key) string        { return filepath.Join(string(d), k.ContainerID+":"+k.IfName) }
func (d Dir) shared(id string) string { return filepath.Join(string(d), id) }
func (d Dir) temporary(k Key) string {
	return filepath.Join(string(d), k.ContainerID+":"+k.IfName+":new")
}

// Save stores content for k. Its file is there whole when Save returns; wait returns once it is on disk
// too, which takes longer than all the rest of an ADD and so goes on beside it: if the machine loses
// power before, nothing of the ADD is left that the file would be needed for.
func (d Dir) Save(k Key, content []byte) (wait func() error, err error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	f, err := d.publish(k, content)
	if err != nil {
		return nil, fmt.Errorf("state file: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- errors.Join(f.Sync(), f.Close()) }()
	return func() error {
		if err := <-done; err != nil {
			return fmt.Errorf("state file: %w", err)
		}
		return nil
	}, nil
}

// create makes a temporary file that Sweep leaves alone, in the place of one that a killed ADD left.
func create(tmp string) (*os.File, error) {
	for {
		if err := ignoreMissing(os.Remove(tmp)); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err == nil {
			err = unix.Fstat(int(f.Fd()), &st)
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if st.Nlink > 0 {
			return f, nil
		}
		_ = f.Close() // a Sweep came between the two
	}
}

// publish makes the file under its names, ours first: from then on our DEL finds it. The shared name
// stays with whoever has it, so that the original can delete at least that attachment.
func (d Dir) publish(k Key, content []byte) (*os.File, error) {
	owner, err := d.sharedOwner(k.ContainerID)
	if err != nil {
		return nil, err
	}
	f, err := d.place(k, content)
	if err != nil {
		return nil, err
	}
	if owner == k.IfName { // its old content
		err = d.share(k)
	} else if err = os.Link(d.own(k), d.shared(k.ContainerID)); errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// place makes the file under our own name.
func (d Dir) place(k Key, content []byte) (*os.File, error) {
	tmp := d.temporary(k)
	for {
		f, err := create(tmp)
		if err != nil {
			return nil, err
		}
		if _, err = f.Write(content); err == nil {
			err = os.Rename(tmp, d.own(k))
		}
		if err == nil {
			return f, nil
		}
		if err = errors.Join(err, f.Close(), ignoreMissing(os.Remove(tmp))); !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		} // else a Sweep took it that had opened a former file of that name
	}
}

// share gives the shared name to the file of k.
func (d Dir) share(k Key) error {
	link := d.temporary(k)
	for {
		if err := ignoreMissing(os.Remove(link)); err != nil {
			return err
		}
		if err := os.Link(d.own(k), link); err != nil {
			return err
		}
		if err := os.Rename(link, d.shared(k.ContainerID)); !errors.Is(err, fs.ErrNotExist) {
			return err
		} // else a Sweep took the link
	}
}

// sharedOwner returns the interface whose file the shared one is; empty if there is none, or if the
// original wrote it.
func (d Dir) sharedOwner(id string) (string, error) {
	shared, err := os.Lstat(d.shared(id))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if links(shared) < 2 {
		return "", nil
	}
	names, err := d.Interfaces(id)
	if err != nil {
		return "", err
	}
	for _, ifName := range names {
		if own, err := os.Lstat(d.own(Key{id, ifName})); err == nil && os.SameFile(own, shared) {
			return ifName, nil
		}
	}
	return "", nil
}

// Interfaces returns the interfaces of a container that have a file of ours.
func (d Dir) Interfaces(id string) ([]string, error) {
	keys, err := d.Keys()
	var names []string
	for _, k := range keys {
		if k.ContainerID == id && k.IfName != "" {
			names = append(names, k.IfName)
		}
	}
	return names, err
}

// Keys lists what is stored. A key without an interface is a file that only the original wrote.
func (d Dir) Keys() ([]Key, error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	var keys []Key
	for _, e := range entries {
		id, ifName, _ := strings.Cut(e.Name(), ":")
		if !e.Type().IsRegular() || strings.Contains(ifName, ":") {
			continue
		}
		if ifName == "" {
			if info, err := e.Info(); err != nil || links(info) > 1 {
				continue // the shared name of a file of ours
			}
		}
		keys = append(keys, Key{id, ifName})
	}
	return keys, nil
}

// Load returns what is stored for k, by whichever plugin; nil if nothing is. The original's file counts
// for every interface that has none of ours, unless it is known to be another's.
func (d Dir) Load(k Key) ([]byte, error) {
	raw, err := read(d.own(k))
	if !errors.Is(err, fs.ErrNotExist) {
		return raw, err
	}
	owner, err := d.sharedOwner(k.ContainerID)
	if err != nil || owner != "" && owner != k.IfName {
		return nil, err
	}
	raw, err = read(d.shared(k.ContainerID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return raw, err
}

// Has says whether k has a file of ours.
func (d Dir) Has(k Key) bool {
	_, err := os.Lstat(d.own(k))
	return err == nil
}

// Remove forgets k. If other interfaces of the container remain, the shared name goes to one of them, so
// that the original could still delete it.
func (d Dir) Remove(k Key) error {
	owner, err := d.sharedOwner(k.ContainerID)
	if err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	errs := []error{ignoreMissing(os.Remove(d.temporary(k)))}
	if _, err := os.Lstat(d.own(k)); owner == k.IfName || owner == "" && errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, d.passOn(k))
	}
	errs = append(errs, ignoreMissing(os.Remove(d.own(k))))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	return nil
}

func (d Dir) passOn(k Key) error {
	names, err := d.Interfaces(k.ContainerID)
	if err != nil {
		return err
	}
	for _, other := range names {
		if other != k.IfName {
			return d.share(Key{k.ContainerID, other})
		}
	}
	return ignoreMissing(os.Remove(d.shared(k.ContainerID)))
}

// Sweep removes the temporary files that a killed ADD left. Those of a running one are locked.
func (d Dir) Sweep() error {
	left, err := filepath.Glob(filepath.Join(string(d), "*:*:new"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range left {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
			errs = append(errs, ignoreMissing(os.Remove(path)))
		}
		f.Close()
	}
	return errors.Join(errs...)
}

func read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSize))
}

func links(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Nlink)
	}
	return 0
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
