package bridge

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A Namespace is a pod's open network namespace.
type Namespace struct {
	Path string
	file *os.File
}

// OpenNamespace opens the namespace that the runtime names. The error is fs.ErrNotExist if it is gone,
// be it that there is no file or that nothing is mounted on it any more.
func OpenNamespace(path string) (*Namespace, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	n := &Namespace{Path: path, file: f}
	if err := n.check(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return n, nil
}

func (n *Namespace) check() error {
	var fsys unix.Statfs_t
	if err := unix.Fstatfs(int(n.file.Fd()), &fsys); err != nil {
		return fmt.Errorf("network namespace %s: %w", n.Path, err)
	}
	if fsys.Type != unix.NSFS_MAGIC && fsys.Type != unix.PROC_SUPER_MAGIC {
		return fmt.Errorf("network namespace %s: nothing is mounted there: %w", n.Path, os.ErrNotExist)
	}
	var own, other unix.Stat_t
	err := errors.Join(unix.Stat("/proc/thread-self/ns/net", &own), unix.Fstat(int(n.file.Fd()), &other))
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", n.Path, err)
	}
	if own.Dev == other.Dev && own.Ino == other.Ino && os.Getenv("CNI_NETNS_OVERRIDE") == "" {
		return types.NewError(types.ErrInvalidNetNS, "CNI_NETNS is the host's own namespace", n.Path)
	}
	return nil
}

// Close closes the file; the namespace stays for as long as its pod does.
func (n *Namespace) Close() error { return n.file.Close() }

// handle opens a netlink socket inside.
func (n *Namespace) handle() (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(n.file.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("enter network namespace %s: %w", n.Path, err)
	}
	return h, nil
}

// Do runs f on a thread inside the namespace; /proc/sys/net is the namespace's own there.
func (n *Namespace) Do(f func() error) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer own.Close()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", n.Path, err)
	}
	err = f()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // the thread stays locked: nobody else may run on it
	}
	runtime.UnlockOSThread()
	return err
}

// setSysctl writes a value below /proc/sys/net unless it is there already.
func setSysctl(path, value string) error {
	path = "/proc/sys/net/" + path
	have, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	if string(have) == value+"\n" {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	return nil
}

// SetUp sets an interface of the namespace up and returns its addresses.
func (n *Namespace) SetUp(name string) ([]netip.Prefix, error) {
	h, err := n.handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkSetUp(link)
	}
	if err != nil {
		return nil, fmt.Errorf("set %s up: %w", name, err)
	}
	have, err := (&Kernel{nl: h}).addresses(link)
	return slices.SortedFunc(maps.Keys(have), netip.Prefix.Compare), err
}

// IsUp says whether an interface of the namespace is up.
func (n *Namespace) IsUp(name string) (bool, error) {
	h, err := n.handle()
	if err != nil {
		return false, err
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return false, fmt.Errorf("device %s: %w", name, err)
	}
	return link.Attrs().Flags&net.FlagUp != 0, nil
}
