package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/lab/frame"
)

// VXLANPort is the port of the vxlan backend unless the configuration names another.
const VXLANPort = 8472

// A Capture collects the IP packets that pass a device.
type Capture struct {
	file      *os.File
	vxlanPort uint16
	reader    sync.WaitGroup

	mu      sync.Mutex // guards what follows
	packets []frame.Packet
}

const (
	maxPackets = 1 << 20 // what a capture keeps; later packets are left out
	snapLen    = 256     // of each packet: headers are enough
)

// StartCapture captures on device dev of the given place until Stop, in both directions. UDP to
// vxlanPort is taken for VXLAN.
func StartCapture(at Place, dev string, vxlanPort uint16) (*Capture, error) {
	c := &Capture{vxlanPort: vxlanPort}
	err := at.Do(func() error {
		link, err := net.InterfaceByName(dev)
		if err != nil {
			return fmt.Errorf("capture on %s: %w", dev, err)
		}
		// Protocol 0 receives nothing until bind names the device as well.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		c.file = os.NewFile(uintptr(fd), "capture")
		all := uint16(unix.ETH_P_ALL)
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all>>8 | all<<8, Ifindex: link.Index}))
	})
	if err != nil {
		if c.file != nil {
			err = errors.Join(err, c.file.Close())
		}
		return nil, err
	}
	c.reader.Go(c.read)
	return c, nil
}

func (c *Capture) read() {
	buf := make([]byte, snapLen)
	for {
		n, err := c.file.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err == nil { // an error means that the device went down; it may come back
			c.add(buf[:n])
		}
	}
}

func (c *Capture) add(b []byte) {
	p, ok := frame.Parse(b, c.vxlanPort)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.packets) < maxPackets {
		c.packets = append(c.packets, p)
	}
}

// Packets returns what was captured so far.
func (c *Capture) Packets() []frame.Packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]frame.Packet(nil), c.packets...)
}

// Stop ends the capture and returns all that passed the device up to now.
func (c *Capture) Stop() ([]frame.Packet, error) {
	if err := c.file.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return nil, err
	}
	c.reader.Wait()
	// What the reader had no time for is still in the socket.
	raw, err := c.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	buf := make([]byte, snapLen)
	err = raw.Control(func(fd uintptr) {
		for {
			n, err := unix.Read(int(fd), buf)
			if err != nil {
				return // EAGAIN: empty
			}
			c.add(buf[:n])
		}
	})
	return c.Packets(), errors.Join(err, c.file.Close())
}
