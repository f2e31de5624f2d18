package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/state"
)

const procSys = "/proc/sys"

// hostProcSys is where a container has the host's /proc/sys/net, its own being read-only unless it is
// privileged. Either shows the network namespace of whoever opens a file.
const hostProcSys = "/host/proc/sys"

// optional says whether a sysctl may be absent or not writable: accept_ra is the original's only one that
// may, because a host without IPv6 has none.
func optional(key string) bool { return path.Base(key) == "accept_ra" }

func listSysctls(h *have, want state.State) {
	clear(h.sysctls)
	for key := range want.Sysctls {
		v, err := readSysctl(key)
		h.sysctls[key] = sysctl{Value: v, Err: err}
	}
}

// listFormerSysctls lists what the sysctls of links that are to be renamed are now.
func listFormerSysctls(h *have, want state.State, steps []step) {
	for _, s := range steps {
		s, ok := s.(*linkStep)
		if !ok || s.from == "" {
			continue
		}
		for key := range want.Sysctls {
			if former := sysctlOf(key, s.name, s.from); former != key {
				v, err := readSysctl(former)
				h.sysctls[former] = sysctl{Value: v, Err: err}
				delete(h.sysctls, key)
			}
		}
	}
}

func readSysctl(key string) (string, error) {
	if !filepath.IsLocal(key) {
		return "", fmt.Errorf("not a path below %s", procSys)
	}
	b, err := os.ReadFile(filepath.Join(procSys, key))
	if err != nil {
		return "", err
	}
	return strings.Join(strings.Fields(string(b)), " "), nil // the kernel puts tabs between numbers
}

// A sysctlStep writes a value.
type sysctlStep struct {
	key        string
	have, want string
}

func (s *sysctlStep) kind() string { return "sysctl" }

func (s *sysctlStep) change() state.Change {
	return state.Change{Op: state.Modify, Kind: s.kind(), Object: s.key, Have: s.have, Want: s.want}
}

func (s *sysctlStep) run(context.Context, *Kernel, have) error { return WriteSysctl(s.key, s.want) }

// WriteSysctl sets a sysctl, named by its path below /proc/sys, in the network namespace of the process.
// It is EROFS where a container may set none and netlink cannot.
func WriteSysctl(key, value string) error {
	// No O_CREATE: a missing file must be an error that says so.
	f, err := os.OpenFile(filepath.Join(procSys, key), os.O_WRONLY, 0)
	if errors.Is(err, unix.EROFS) {
		host, hostErr := os.OpenFile(filepath.Join(hostProcSys, key), os.O_WRONLY, 0)
		if hostErr != nil {
			return writeDevconf(key, value)
		}
		f, err = host, nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
