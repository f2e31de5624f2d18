// Package conffile follows a configuration file. A ConfigMap volume changes as a whole: the file is a symbolic
// link through the directory ..data, which is itself a link that the kubelet replaces. So the directory is
// watched, not the file, and the content decides whether anything has changed.
package conffile

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxSize = 1 << 20 // etcd takes no larger ConfigMap

	// slow is how often the file is read although nothing was told: links may lead out of the directory.
	slow = 20 * time.Second

	// absent is how often a directory that cannot be watched is looked for.
	absent = time.Second
)

// events are the ways in which a file gets new content: written in place, renamed into place, linked.
const events = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_CREATE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// Watch calls f with the content of the file, now and after every change, until ctx ends, whose error it
// returns. While there is no file, or an empty one, it says so once and waits; when the file goes, the last
// content stays in force.
func Watch(ctx context.Context, path string, log *slog.Logger, f func(raw []byte)) error {
	w := watcher{path: path, log: log, f: f, dirty: make(chan struct{}, 1)}
	defer w.close()
	for {
		watched := w.subscribe() // before reading: what changes meanwhile is told
		w.read()
		wait := slow
		if !watched {
			wait = absent
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-w.dirty:
		case <-t.C:
		}
		t.Stop()
	}
}

type watcher struct {
	path  string
	log   *slog.Logger
	f     func([]byte)
	dirty chan struct{} // capacity 1: something happened in the directory

	inotify *os.File // nil: the directory is not watched
	done    chan struct{}
	last    []byte
	trouble string // told last
}

// subscribe watches the directory, and says whether it is watched.
func (w *watcher) subscribe() bool {
	if w.inotify != nil {
		select {
		case <-w.done: // the directory is gone or was replaced
			w.close()
		default:
			return true
		}
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return false // too many instances on this host (fs.inotify.max_user_instances): polling does
	}
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(w.path), events); err != nil {
		_ = unix.Close(fd)
		return false
	}
	w.inotify, w.done = os.NewFile(uintptr(fd), "inotify"), make(chan struct{})
	go w.drain(w.inotify, w.done)
	return true
}

// drain wakes the watcher on any event until the file is closed or the directory goes.
func (w *watcher) drain(file *os.File, done chan struct{}) {
	defer w.wake()
	defer close(done)
	buf := make([]byte, 64*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		n, err := file.Read(buf)
		if err != nil || n == 0 || leaves(buf[:n]) {
			return
		}
		w.wake()
	}
}

// leaves says whether events hold one after which the watch is of no use.
func leaves(b []byte) bool {
	for len(b) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(b[4:])
		if mask&(unix.IN_IGNORED|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_UNMOUNT) != 0 {
			return true
		}
		b = b[min(len(b), unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(b[12:]))):]
	}
	return false
}

func (w *watcher) wake() {
	select {
	case w.dirty <- struct{}{}:
	default:
	}
}

func (w *watcher) close() {
	if w.inotify == nil {
		return
	}
	_ = w.inotify.Close()
	<-w.done
	w.inotify = nil
}

// read hands over the content if it is new.
func (w *watcher) read() {
	raw, err := content(w.path)
	if err != nil {
		if err.Error() == w.trouble {
			return
		}
		w.trouble = err.Error()
		if w.last == nil {
			w.log.Info("no network configuration yet, waiting for it", "err", err)
		} else {
			w.log.Warn("network configuration cannot be read, keeping the last one", "err", err)
		}
		return
	}
	w.trouble = ""
	if w.last == nil || !bytes.Equal(raw, w.last) {
		w.last = raw
		w.f(bytes.Clone(raw))
	}
}

var errEmpty = errors.New("the file is empty")

func content(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxSize+1))
	switch {
	case err != nil:
		return nil, err
	case len(raw) > maxSize:
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxSize)
	case len(bytes.TrimSpace(raw)) == 0: // an editor has only just opened it
		return nil, &fs.PathError{Op: "read", Path: path, Err: errEmpty}
	}
	return raw, nil
}
