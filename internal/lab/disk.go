package lab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A disk is what a node keeps over a reboot: a directory of its own for each path below. Elsewhere a
// node sees the machine's files.
//
// Most of these directories need not exist on the machine, and the lab makes none outside its own
// directory. So /etc, /opt and /var/lib become directories of the node, filled with links to what the
// machine has there, and private entries in between.
type disk string

// conflist is what upstream's manifest installs as 10-flannel.conflist.
const conflist = `{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// Paths inside a node.
const (
	confDir    = "/etc/cni/net.d"
	confFile   = confDir + "/10-flannel.conflist"
	pluginDir  = "/opt/cni/bin"
	netnsDir   = "/run/netns"
	machineDir = "/run/machine" // where a node finds the machine's /etc, /opt and /var/lib
)

// linked are the directories that hold links to the machine's entries, except the private ones.
var linked = map[string][]string{
	"/etc":     {"cni", "hostname", "kubernetes", "machine-id"},
	"/opt":     {"cni"},
	"/var/lib": {"cni", "containerd", "flannel", "flanneld", "kubelet"},
}

// multiCall are the plugins whose work flannel does when called by their names.
var multiCall = []string{"bandwidth", "bridge", "host-local", "loopback", "portmap"}

// pluginHomes are where distributions put the reference CNI plugins.
var pluginHomes = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}

// make fills the disk of node name. It may exist already.
func (d disk) make(name string, o Options) error {
	for _, dir := range []string{"/run/flannel", netnsDir, "/run/lock", confDir, pluginDir, "/var/lib/cni", "/var/lib/flannel"} {
		if err := os.MkdirAll(d.path(dir), 0o755); err != nil {
			return err
		}
	}
	for dir, private := range linked {
		if err := os.MkdirAll(d.path(machineDir, dir), 0o755); err != nil {
			return err
		}
		if err := d.link(dir, private); err != nil {
			return err
		}
	}
	if err := d.linkPlugins(o); err != nil {
		return err
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	return errors.Join(
		d.writeOnce("/etc/machine-id", hex.EncodeToString(id)+"\n"),
		d.writeOnce("/etc/hostname", name+"\n"),
		d.writeOnce(confFile, conflist))
}

// link puts a link to every entry of the machine's directory dir on the disk, private ones excepted.
func (d disk) link(dir string, private []string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	skip := map[string]bool{}
	for _, p := range private {
		skip[p] = true
	}
	for _, e := range entries {
		if skip[e.Name()] {
			continue
		}
		target := filepath.Join(machineDir, dir, e.Name())
		if e.Type()&fs.ModeSymlink != 0 { // relative ones mean the directory they are in
			if target, err = os.Readlink(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
		if err := replaceLink(target, d.path(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// linkPlugins offers the machine's CNI plugins, and flannel under its own name. What the links lead to
// is looked up from inside the node, where /opt is the node's own.
func (d disk) linkPlugins(o Options) error {
	for _, home := range pluginHomes {
		entries, err := os.ReadDir(home)
		if err != nil {
			continue // not installed there
		}
		seen := home
		if home == pluginDir {
			seen = machineDir + home
		}
		for _, e := range entries {
			if err := replaceLink(filepath.Join(seen, e.Name()), d.path(pluginDir, e.Name())); err != nil {
				return err
			}
		}
	}
	if !o.ReferencePlugins {
		for _, name := range multiCall {
			if err := replaceLink(o.Flannel, d.path(pluginDir, name)); err != nil {
				return err
			}
		}
	}
	return replaceLink(o.Flannel, d.path(pluginDir, "flannel"))
}

// mount lays the disk over the machine's directories, in the namespaces of the calling thread.
func (d disk) mount() error {
	for dir := range linked {
		if err := bind(dir, d.path(machineDir, dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for dir := range linked {
		if err := bind(d.path(dir), dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// The disk lies below the machine's /run as a rule, so this comes last.
	if err := bind(d.path("/run"), "/run"); err != nil {
		return err
	}
	// /sys/class/net shows the namespace of whoever mounted it.
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	return nil
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", from, to, err)
	}
	return nil
}

// path returns where the disk keeps what a node sees as elem joined.
func (d disk) path(elem ...string) string {
	return filepath.Join(string(d), filepath.Join(elem...))
}

func (d disk) writeOnce(path, content string) error {
	f, err := os.OpenFile(d.path(path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Close())
}

func replaceLink(target, link string) error {
	if err := remove(link); err != nil {
		return err
	}
	return os.Symlink(target, link)
}
