package udptun

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/state"
)

const (
	tunPath = "/dev/net/tun"

	// Several queues even if only one is used: the kernel attaches to a device only in the mode in which it was
	// made, and a later process may want more.
	tunFlags = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE
)

// queueLength is how many packets wait in each queue of the device while its worker has no CPU; the kernel's default
// of 500 is full after 3 ms of small ones.
const queueLength = 2000

// A device is this process's side of a TUN device, which outlives the process.
type device struct {
	queues   []int
	tso, uso bool // what the kernel has, as far as it is wanted
	sum      bool
}

// openDevice makes the device, or adopts the one that a former process left.
func openDevice(name string, queues int, off state.TunnelOff) (*device, error) {
	d := &device{}
	for range queues {
		fd, err := attach(name, tunFlags)
		if errors.Is(err, unix.EINVAL) && len(d.queues) == 0 {
			if err = removeSingle(name); err == nil {
				fd, err = attach(name, tunFlags)
			}
		}
		if err != nil {
			d.close()
			return nil, describe(name, err)
		}
		d.queues = append(d.queues, fd)
	}
	if err := d.offload(off); err != nil {
		d.close()
		return nil, fmt.Errorf("device %s: offloads: %w", name, err)
	}
	lengthen(name)
	// Device, addresses and routes stay when the process ends, and the next one goes on with them.
	if err := unix.IoctlSetInt(d.queues[0], unix.TUNSETPERSIST, 1); err != nil {
		d.close()
		return nil, fmt.Errorf("device %s: make it persist: %w", name, err)
	}
	return d, nil
}

func describe(name string, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("device %s is in use: another flanneld runs on this host", name)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%s: %w: the kernel has no TUN (CONFIG_TUN), or the container is not given the device", tunPath, err)
	}
	return fmt.Errorf("device %s: %w", name, err)
}

// attach opens a queue of the device, which is made if it is not there.
func attach(name string, flags uint16) (int, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("open", err)
	}
	r, err := unix.NewIfreq(name)
	if err == nil {
		r.SetUint16(flags)
		err = os.NewSyscallError("TUNSETIFF", unix.IoctlIfreq(fd, unix.TUNSETIFF, r))
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// lengthen makes the queues of the device queueLength long. What the kernel gives is good enough.
func lengthen(name string) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	if r, err := unix.NewIfreq(name); err == nil {
		r.SetUint32(queueLength)
		_ = unix.IoctlIfreq(fd, unix.SIOCSIFTXQLEN, r)
	}
	_ = unix.Close(fd)
}

// removeSingle removes a persistent TUN device with a single queue and no owner, such as one that the ip
// command makes; it cannot get more queues.
func removeSingle(name string) error {
	fd, err := attach(name, unix.IFF_TUN|unix.IFF_NO_PI)
	if errors.Is(err, unix.EINVAL) {
		return errors.New("a device of this name is there, and it is no TUN device")
	}
	if err != nil {
		return err
	}
	err = unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0)
	return errors.Join(err, unix.Close(fd)) // goes with its last descriptor
}

// offload asks for what the kernel may leave to us. The whole set is refused if it has an unknown member.
func (d *device) offload(off state.TunnelOff) error {
	d.sum = !off.Checksum
	d.tso = d.sum && !off.TSO
	d.uso = d.sum && !off.USO
	var flags int
	if d.sum {
		flags |= unix.TUN_F_CSUM
	}
	if d.tso {
		flags |= unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	}
	if d.uso {
		err := unix.IoctlSetInt(d.queues[0], unix.TUNSETOFFLOAD, flags|unix.TUN_F_USO4|unix.TUN_F_USO6)
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
		d.uso = false // before Linux 6.2
	}
	return unix.IoctlSetInt(d.queues[0], unix.TUNSETOFFLOAD, flags)
}

func (d *device) close() {
	for _, fd := range d.queues {
		_ = unix.Close(fd)
	}
	d.queues = nil
}
