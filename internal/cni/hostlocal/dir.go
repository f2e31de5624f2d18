// Package hostlocal gives out addresses and remembers them on disk exactly as the reference plugin
// host-local does, so that either can free what the other gave:
//
//	<dir>/10.244.0.5           one file per address: "<container id>\r\n<interface>"
//	<dir>/last_reserved_ip.0   the address given last, one file per range set
//	<dir>/lock                 flock(2), held while any of these changes
//
// An address file appears with its content in one step (O_TMPFILE, then linkat), so a plugin that is
// killed leaves either nothing or a whole entry. The reference plugin creates the file first and writes
// it afterwards; an empty file found under the lock is therefore a torn entry that nobody is writing any
// more, and is free.
//
// While an ADD runs, its process holds a flock(2) on the entry too, which the kernel drops however the
// process ends. So an entry that is not locked and whose pod has no device belongs to nobody.
package hostlocal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// separator stands between container and interface; it is what the reference plugin writes.
const separator = "\r\n"

// maxEntry is far above the longest entry: a container id is a file name elsewhere, so at most 255.
const maxEntry = 4096

// An Owner is who holds an address. IfName is empty in the entries of plugins before 0.7.
type Owner struct {
	ContainerID, IfName string
}

func (o Owner) String() string { return o.ContainerID + "/" + o.IfName }

// is says whether an entry of o is meant by a request of want.
func (o Owner) is(want Owner) bool {
	return o.ContainerID == want.ContainerID && (o.IfName == want.IfName || o.IfName == "")
}

// A Dir is the directory of one network, locked until Close.
type Dir struct {
	path string
	lock *os.File
}

// A Hold keeps the entries of a running ADD from being taken for dead.
type Hold struct {
	Fresh []netip.Addr // given now, not held before
	files []*os.File
}

// Close lets go; the entries stay.
func (h Hold) Close() {
	for _, f := range h.files {
		f.Close()
	}
}

// Open makes the directory if need be, and waits for its lock.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("address directory: %w", err)
	}
	return open(path)
}

// OpenExisting waits for the lock of a directory that may not exist: then both results are nil.
func OpenExisting(path string) (*Dir, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return open(path)
}

func open(path string) (*Dir, error) {
	f, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock of the address directory: %w", err)
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return &Dir{path: path, lock: f}, nil
}

// Close lets the next one in.
func (d *Dir) Close() error { return d.lock.Close() }

// nobody owns what has an address's name and cannot be read as an entry. No container has such an id.
const nobody = "?"

// Entries returns who holds what. An entry with an empty Owner is torn. One that cannot be read costs its
// address, and nobody else's.
func (d *Dir) Entries() (map[netip.Addr]Owner, error) {
	names, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	entries := map[netip.Addr]Owner{}
	for _, n := range names {
		a, err := netip.ParseAddr(n.Name())
		if err != nil || a.String() != n.Name() {
			continue
		}
		raw, err := readSmall(filepath.Join(d.path, n.Name()))
		if err == nil {
			entries[a] = parseOwner(raw)
		} else if !errors.Is(err, fs.ErrNotExist) {
			entries[a] = Owner{ContainerID: nobody}
		}
	}
	return entries, nil
}

// parseOwner reads an entry as the reference plugin compares it: white space around it does not count.
func parseOwner(raw []byte) Owner {
	id, ifName, _ := strings.Cut(string(bytes.TrimSpace(raw)), separator)
	return Owner{ContainerID: strings.TrimSpace(id), IfName: strings.TrimSpace(ifName)}
}

// Held returns the addresses of one owner.
func (d *Dir) Held(o Owner) ([]netip.Addr, error) {
	entries, err := d.Entries()
	if err != nil {
		return nil, err
	}
	var held []netip.Addr
	for a, e := range entries {
		if e.is(o) {
			held = append(held, a)
		}
	}
	return held, nil
}

// reserve enters an address for o and returns its entry, locked. The file is nil if somebody holds the
// address already.
func (d *Dir) reserve(a netip.Addr, o Owner) (*os.File, error) {
	f, err := publish(d.path, a.String(), []byte(o.ContainerID+separator+o.IfName))
	if errors.Is(err, fs.ErrExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("enter address %s: %w", a, err)
	}
	return f, nil
}

// retake locks an entry that an ADD which was killed left to the same owner.
func (d *Dir) retake(a netip.Addr) (*os.File, error) {
	f, err := openSmall(filepath.Join(d.path, a.String()))
	if err != nil {
		return nil, fmt.Errorf("take address %s again: %w", a, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("address %s: another ADD of the same interface is running: %w", a, err)
	}
	return f, nil
}

// InFlight says whether the ADD that made the entry of a is still running. What is no file is as if.
func (d *Dir) InFlight(a netip.Addr) bool {
	path := filepath.Join(d.path, a.String())
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return true
	}
	f, err := openSmall(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// Modified returns when the entry of a was made.
func (d *Dir) Modified(a netip.Addr) (time.Time, error) {
	info, err := os.Lstat(filepath.Join(d.path, a.String()))
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime(), nil
}

// Free removes the entry of a. One that is gone already is fine.
func (d *Dir) Free(a netip.Addr) error {
	if err := os.Remove(filepath.Join(d.path, a.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("free address %s: %w", a, err)
	}
	return nil
}

// FreeAll removes every entry of o and returns the addresses that it held.
func (d *Dir) FreeAll(o Owner) ([]netip.Addr, error) {
	held, err := d.Held(o)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, a := range held {
		errs = append(errs, d.Free(a))
	}
	return held, errors.Join(errs...)
}

// Last returns the address that was given last from a range set; the zero Addr if nobody knows.
func (d *Dir) Last(set int) netip.Addr {
	raw, err := readSmall(d.lastPath(set))
	if err != nil {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(strings.TrimSpace(string(raw)))
	return a
}

// SetLast remembers a as the address given last. It is a hint: a torn one costs nothing.
func (d *Dir) SetLast(set int, a netip.Addr) error {
	if err := os.WriteFile(d.lastPath(set), []byte(a.String()), 0o644); err != nil {
		return fmt.Errorf("remember last address: %w", err)
	}
	return nil
}

func (d *Dir) lastPath(set int) string {
	return filepath.Join(d.path, "last_reserved_ip."+strconv.Itoa(set))
}

func readSmall(path string) ([]byte, error) {
	f, err := openSmall(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxEntry))
}

// openSmall opens a file that anybody may have put here: a FIFO or a link must not hold up every pod.
func openSmall(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
}

// publish makes dir/name appear with its content and returns it locked. If the name is taken the error
// is fs.ErrExist.
func publish(dir, name string, content []byte) (*os.File, error) {
	path := filepath.Join(dir, name)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENOENT) {
		return publishTorn(path, content) // overlayfs before Linux 6.1 and a few others have no O_TMPFILE
	}
	if err != nil {
		return nil, &fs.PathError{Op: "create in", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	err = unix.Flock(fd, unix.LOCK_EX)
	if err == nil {
		_, err = f.Write(content)
	}
	if err == nil {
		link := "/proc/self/fd/" + strconv.Itoa(fd)
		err = unix.Linkat(unix.AT_FDCWD, link, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "publish", Path: path, Err: err}
	}
	return f, nil
}

// publishTorn is publish as the reference plugin does it.
func publishTorn(path string, content []byte) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	if err == nil {
		_, err = f.Write(content)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return f, nil
}
