package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Become replaces the running process by a program at the given place: a node, a pod, "router" or
// "etcd". It returns only if that fails.
func (l *Lab) Become(where string, argv []string) error {
	runtime.LockOSThread() // exec keeps the namespaces of the thread that calls it
	if err := l.enterPlace(where); err != nil {
		return err
	}
	// weft itself is at hand in there, wherever it lies.
	if err := os.Setenv("PATH", filepath.Dir(l.Options.Weft)+":"+os.Getenv("PATH")); err != nil {
		return err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	env := append(os.Environ(), "PS1="+where+"# ")
	return fmt.Errorf("run %s: %w", path, unix.Exec(path, argv, env))
}

func (l *Lab) enterPlace(where string) error {
	switch where {
	case routerName:
		return errors.Join(l.router.enter(), unix.Chdir("/"))
	case etcdName:
		return errors.Join(l.etcd.machine.enter(), unix.Chdir("/"))
	}
	if n, err := l.Node(where); err == nil {
		return errors.Join(n.machine.enter(), unix.Chdir("/root"))
	}
	p, err := l.Pod(where)
	if err != nil {
		return fmt.Errorf("%s is none of the machines (%s, %s, %s) and no pod", where,
			strings.Join(l.Options.nodes(), ", "), routerName, etcdName)
	}
	return p.enter()
}

// enter moves the calling thread into the pod, with a host name and a /sys of its own.
func (p *Pod) enter() error {
	if err := p.Node.machine.enter(); err != nil {
		return err
	}
	if err := enterNet(p.netns()); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("new namespaces: %w", err)
	}
	// The node's mounts are private since its start, so this one stays here.
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	return errors.Join(unix.Sethostname([]byte(p.Name)), unix.Chdir("/"))
}
