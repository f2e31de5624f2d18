package cluster

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// newNamespaces are those that a node has besides its lab's.
func newNamespaces() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC}
}
