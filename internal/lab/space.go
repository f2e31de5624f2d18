package lab

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespaces are what sets a machine of the lab apart from the one it runs on. Processes share the
// rest, /proc and its numbers included.
const namespaces = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS

// hold makes a new set of namespaces, kept by a process that does nothing else. The go runtime makes
// every mount private there, so that nothing mounted inside is seen outside.
func hold(file string) (process, error) {
	cmd := exec.Command("sleep", "infinity")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: namespaces}
	p, err := start(cmd, here, file)
	if err != nil {
		return p, fmt.Errorf("new namespaces (root is needed): %w", err)
	}
	return p, nil
}

// inside runs f in the namespaces of p, on a thread of its own that ends with it. Sockets, open files
// and processes that f makes stay in the namespaces; goroutines that f starts run outside them.
func (p process) inside(f func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime discards the thread
		errc <- func() error {
			if err := p.enter(); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-errc
}

// enter moves the calling thread, which must be locked, into the namespaces of p.
func (p process) enter() error {
	fd, err := p.open()
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %d, which held the namespaces, is gone", p.PID)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// A thread that shares its root and working directory with others cannot change its mounts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the working directory: %w", err)
	}
	if err := unix.Setns(fd, namespaces); err != nil {
		return fmt.Errorf("enter namespaces of process %d: %w", p.PID, err)
	}
	return nil
}

// enterNet moves the calling thread into the network namespace that is mounted at file.
func enterNet(file string) error {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", file, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", file, err)
	}
	return nil
}

// makeNet makes a network namespace, with loopback up, and mounts it at file. The calling thread ends
// up inside it.
func makeNet(file string) error {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return fmt.Errorf("create %s: %w", file, err)
	}
	if err := errors.Join(unix.Close(fd), unix.Unshare(unix.CLONE_NEWNET)); err != nil {
		return fmt.Errorf("new network namespace: %w", err)
	}
	if err := unix.Mount("/proc/thread-self/ns/net", file, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", file, err)
	}
	return loopbackUp()
}
