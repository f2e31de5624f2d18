package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// A Node is one machine of the lab.
type Node struct {
	Name  string
	Agent *Agent

	lab     *Lab
	machine process
	port    port
}

// Addr returns the node's underlay addresses as the lab assigned them; zero: none.
func (n *Node) Addr() family.Pair[netip.Addr] {
	return family.Pair[netip.Addr]{V4: n.port.Addr.V4.Addr(), V6: n.port.Addr.V6.Addr()}
}

// Addrs lists the node's underlay addresses, IPv4 first.
func (n *Node) Addrs() []netip.Addr { return valid(n.Addr()) }

// valid lists the addresses of a pair that are set, IPv4 first.
func valid(p family.Pair[netip.Addr]) []netip.Addr {
	var out []netip.Addr
	for _, f := range family.All() {
		if a := p.Of(f); a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// Segment returns the name of the node's L2 segment, which is also the router's bridge.
func (n *Node) Segment() string { return n.port.Segment }

// boot makes the node's namespaces, lays its disk over the machine's files and connects it.
func (n *Node) boot() error {
	d := n.disk()
	if err := d.make(n.Name, n.lab.Options); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	var err error
	if n.machine, err = hold(n.file("holder.json")); err != nil {
		return err
	}
	err = n.machine.inside(func() error {
		return errors.Join(
			unix.Sethostname([]byte(n.Name)),
			sysctl("net/ipv4/conf/all/rp_filter", "0"),
			sysctl("net/ipv4/conf/default/rp_filter", "0"),
			d.mount())
	})
	if err != nil {
		return err
	}
	return n.lab.plug(n.Name, n.machine, n.port)
}

// Reboot switches the node off without warning and on again. Devices, routes, rules, pods, the agent, what
// Launch started and everything in /run are gone; the node's other files stay. Nothing is started.
func (n *Node) Reboot() error {
	files, err := filepath.Glob(n.file("process-*.json"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if p, running := recorded(f); running {
			if _, err := p.signal(unix.SIGKILL, killWait); err != nil {
				return err
			}
		}
	}
	if _, err := n.machine.signal(unix.SIGKILL, killWait); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(n.disk().path("/run")), os.RemoveAll(n.file("pods"))); err != nil {
		return err
	}
	return n.boot()
}

// Do calls f on a thread inside the node's namespaces. Sockets that f opens stay there; goroutines that
// it starts do not.
func (n *Node) Do(f func() error) error { return n.machine.inside(f) }

// Exec runs a program on the node and returns what it prints on standard output.
func (n *Node) Exec(ctx context.Context, name string, args ...string) (string, error) {
	return execute(ctx, n.Do, name, args...)
}

// Exec runs a program on the router and returns what it prints on standard output.
func (l *Lab) Exec(ctx context.Context, name string, args ...string) (string, error) {
	return execute(ctx, l.router.inside, name, args...)
}

func execute(ctx context.Context, do func(func() error) error, name string, args ...string) (string, error) {
	var out, errout bytes.Buffer
	err := do(func() error {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = "/", &out, &errout
		return cmd.Run()
	})
	if err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(errout.Bytes()))
	}
	return out.String(), nil
}

// Netlink returns a netlink handle of the node's network namespace; the caller deletes it.
func (n *Node) Netlink() (*netlink.Handle, error) {
	var h *netlink.Handle
	err := n.Do(func() (err error) {
		h, err = netlink.NewHandle()
		return err
	})
	return h, err
}

// Replug takes the node's network card out and puts in another one, with the same name and addresses.
func (n *Node) Replug() error { return n.lab.plug(n.Name, n.machine, n.port) }

// Renumber replaces the node's underlay addresses by those with another host number of its segment.
func (n *Node) Renumber(host int) error {
	next := n.port
	for _, f := range family.All() {
		if a := n.port.Addr.Of(f); a.IsValid() {
			b := a.Addr().AsSlice()
			b[len(b)-1] = byte(host)
			addr, _ := netip.AddrFromSlice(b)
			*next.Addr.Ref(f) = netip.PrefixFrom(addr, a.Bits())
		}
	}
	err := n.Do(func() error {
		link, err := netlink.LinkByName(Uplink)
		if err != nil {
			return err
		}
		for _, f := range family.All() {
			if err := replaceAddress(link, n.port.Addr.Of(f), next.Addr.Of(f)); err != nil {
				return err
			}
		}
		// The routes went with the address.
		return defaultRoutes(next)
	})
	if err == nil {
		n.port = next
	}
	return err
}

func replaceAddress(link netlink.Link, old, next netip.Prefix) error {
	if !next.IsValid() || old == next {
		return nil
	}
	oldNet := &net.IPNet{IP: old.Addr().AsSlice(), Mask: net.CIDRMask(old.Bits(), old.Addr().BitLen())}
	if err := netlink.AddrDel(link, &netlink.Addr{IPNet: oldNet}); err != nil {
		return fmt.Errorf("remove %s: %w", old, err)
	}
	return addAddress(link, next)
}

// Dial connects from the node.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return n.machine.dial(ctx, network, address)
}

func (p process) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = p.inside(func() error {
		// With an address, no name, the socket is made by this thread.
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Path returns where the lab's machine has what the node sees as path, for paths in /run, /etc/cni,
// /var/lib/cni and /var/lib/flannel.
func (n *Node) Path(path string) string { return n.disk().path(path) }

func (n *Node) disk() disk { return disk(n.file("disk")) }

// file returns the path of a file that the lab keeps about the node.
func (n *Node) file(elem ...string) string {
	return n.lab.file(append([]string{"node-" + n.Name}, elem...)...)
}

// logTail returns the last lines of a log, indented.
func logTail(file string, lines int) string {
	raw, err := os.ReadFile(file)
	if err != nil {
		return "    (no log: " + err.Error() + ")"
	}
	all := strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
	return "    " + strings.Join(all[max(0, len(all)-lines):], "\n    ") + "\n    (whole log: " + filepath.Clean(file) + ")"
}
