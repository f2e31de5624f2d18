// Package install puts the plugin where runtimes look for it.
//
//	<bin dir>/weft-cni                  this program
//	<bin dir>/flannel                   a copy, so that the original's installer, which overwrites it,
//	                                    does not change what the links lead to
//	<bin dir>/bridge, portmap, ... ->   weft-cni, only where nothing is
//	<conf dir>/10-flannel.conflist      last, once the node has a subnet: it is what makes a runtime
//	                                    take the network for ready
//
// Every file appears whole or not at all, and one that is right already is not touched.
package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/atomicfile"
	"github.com/weftnet/weft/internal/cni/netd"
)

// Program is the name of the file that the links lead to.
const Program = "weft-cni"

// Marker is in every build of this program and in nothing else.
const Marker = "weft CNI plugin"

// Conflist is what is installed unless the operator gives another.
const Conflist = `{
  "name": "cbr0",
  "cniVersion": "1.0.0",
  "plugins": [
    {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
    {"type": "portmap", "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}}
  ]
}
`

// Options say what goes where. The zero value of a field is the usual place.
type Options struct {
	Self       string // this program; default /proc/self/exe
	Release    string
	BinDir     string        // default /opt/cni/bin
	ConfDir    string        // default /etc/cni/net.d
	Name       string        // of the conflist; default 10-flannel.conflist
	Source     string        // file to take the conflist from; default: Conflist
	SubnetFile string        // default /run/flannel/subnet.env
	Wait       time.Duration // how long to wait for the subnet file
	NoConflist bool
	NoPrograms bool // only the conflist

	patience time.Duration // for a program's word on its release; default a minute
}

func (o Options) withDefaults() Options {
	for _, d := range []struct {
		field *string
		value string
	}{
		{&o.Self, "/proc/self/exe"}, {&o.BinDir, "/opt/cni/bin"}, {&o.ConfDir, "/etc/cni/net.d"},
		{&o.Name, "10-flannel.conflist"}, {&o.SubnetFile, "/run/flannel/subnet.env"},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if o.patience == 0 {
		o.patience = time.Minute
	}
	return o
}

// Links are the names under which other plugins and conflists call this program.
func Links() []string { return []string{"bandwidth", "bridge", "host-local", "loopback", "portmap"} }

// Run installs, and tells on w what it did and did not do and why.
func Run(ctx context.Context, o Options, w io.Writer) error {
	o = o.withDefaults()
	if !o.NoPrograms {
		if err := programs(o, w); err != nil {
			return err
		}
	}
	if o.NoConflist {
		return nil
	}
	return conflist(ctx, o, w)
}

func programs(o Options, w io.Writer) error {
	self, err := os.ReadFile(o.Self)
	if err != nil {
		return fmt.Errorf("read this program: %w", err)
	}
	if err := os.MkdirAll(o.BinDir, 0o755); err != nil {
		return err
	}
	unlock, err := lock(o.BinDir)
	if err != nil {
		return err
	}
	defer unlock()
	for _, name := range []string{Program, "flannel"} {
		if err := program(o, name, self, w); err != nil {
			return err
		}
	}
	for _, name := range Links() {
		path := filepath.Join(o.BinDir, name)
		err := os.Symlink(Program, path)
		switch {
		case err == nil:
			fmt.Fprintf(w, "%s: linked to %s\n", path, Program)
		case !errors.Is(err, fs.ErrExist):
			return err
		default:
			if to, err := os.Readlink(path); err != nil || to != Program {
				fmt.Fprintf(w, "%s: there already, left alone\n", path)
			}
		}
	}
	return nil
}

// program installs one copy of this program.
func program(o Options, name string, self []byte, w io.Writer) error {
	path := filepath.Join(o.BinDir, name)
	leftovers, err := filepath.Glob(filepath.Join(o.BinDir, "."+name+".*.tmp")) // of an installer that was killed
	if err != nil {
		return err
	}
	for _, l := range leftovers {
		if err := os.Remove(l); err != nil {
			return err
		}
	}
	why, err := mayReplace(o, path)
	if err != nil {
		return err
	}
	if why != "" {
		fmt.Fprintf(w, "%s: %s, left alone\n", path, why)
		return nil
	}
	changed, err := atomicfile.Write(path, self, 0o755)
	if info, statErr := os.Stat(path); err == nil && statErr == nil && info.Mode().Perm()&0o111 != 0o111 {
		changed, err = true, os.Chmod(path, 0o755) // a copy made by hand
	}
	if err != nil {
		return fmt.Errorf("install %s: %w", path, err)
	}
	if changed {
		fmt.Fprintf(w, "%s: installed\n", path)
	}
	return nil
}

// mayReplace returns why not, or nothing.
func mayReplace(o Options, path string) (string, error) {
	have, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if bytes.Contains(have, []byte(Marker)) {
		release, err := releaseOf(path, o.patience)
		if err != nil {
			return "", err
		}
		if newer(release, o.Release) {
			return "release " + release + " is newer than this " + o.Release, nil
		}
		return "", nil
	}
	// The module paths of the original's plugin, before and after it moved.
	for _, original := range []string{"github.com/flannel-io/cni-plugin", "github.com/containernetworking/plugins/plugins/meta/flannel"} {
		if bytes.Contains(have, []byte(original)) {
			return "", nil
		}
	}
	return "", fmt.Errorf("%s is neither this plugin nor the original's: move it away", path)
}

// releaseOf asks a build of this program for its release. One that cannot run, such as another
// architecture's, has none; one that is merely slow may be newer.
func releaseOf(path string, patience time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "version")
	cmd.Env = []string{}
	out, err := cmd.Output()
	fields := strings.Fields(string(out))
	if ctx.Err() != nil {
		return "", fmt.Errorf("%s does not say its release within %s", path, patience)
	}
	if err != nil || len(fields) == 0 {
		return "", nil
	}
	return fields[len(fields)-1], nil
}

// newer compares releases as in v1.2.3 and v1.2.3-rc1, which comes before it. What is none is older than any.
func newer(a, b string) bool {
	x, okA := parse(a)
	y, okB := parse(b)
	return okA && okB && slices.Compare(x[:], y[:]) > 0
}

// parse returns the numbers and, last, 0 for what comes before the release and 1 for the release itself.
func parse(release string) (v [4]int, ok bool) {
	core, _, before := strings.Cut(release, "-")
	if !before {
		v[3] = 1
	}
	n, err := fmt.Sscanf(core, "v%d.%d.%d", &v[0], &v[1], &v[2])
	return v, err == nil && n == 3
}

func lock(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		d.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { d.Close() }, nil
}

// conflist writes the conflist, if it is time to.
func conflist(ctx context.Context, o Options, w io.Writer) error {
	content := []byte(Conflist)
	if o.Source != "" {
		var err error
		if content, err = os.ReadFile(o.Source); err != nil {
			return fmt.Errorf("conflist: %w", err)
		}
	}
	if err := check(content); err != nil {
		return fmt.Errorf("conflist %s: %w", o.Source, err)
	}
	path := filepath.Join(o.ConfDir, o.Name)
	if !wait(ctx, o.SubnetFile, o.Wait) {
		fmt.Fprintf(w, "%s: not written, because %s is not there yet: flanneld writes it once this node has a subnet; run this again then\n", path, o.SubnetFile)
		return nil
	}
	changed, err := atomicfile.Write(path, content, 0o644)
	if err != nil {
		return fmt.Errorf("conflist: %w", err)
	}
	if changed {
		fmt.Fprintf(w, "%s: written\n", path)
	}
	for _, other := range netd.Before(o.ConfDir, o.Name) {
		fmt.Fprintf(w, "warning: %s sorts before %s, so runtimes use it instead: remove it if this node's pods are to be on this network\n",
			filepath.Join(o.ConfDir, other), o.Name)
	}
	return nil
}

// check turns down what a runtime would not read, or what is not about this plugin.
func check(content []byte) error {
	var list struct {
		Name    string
		Plugins []struct{ Type string }
	}
	if err := json.Unmarshal(content, &list); err != nil {
		return err
	}
	if list.Name == "" {
		return errors.New("name: missing")
	}
	if !slices.ContainsFunc(list.Plugins, func(p struct{ Type string }) bool { return p.Type == "flannel" }) {
		return errors.New("plugins: none of type flannel")
	}
	return nil
}

// wait says whether a file is there, now or before the time is up.
func wait(ctx context.Context, path string, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(path); err == nil {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}
