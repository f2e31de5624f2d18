package kernel_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel"
	"github.com/weftnet/weft/internal/netnstest"
)

// As in a container that is not privileged and has no mount of the host's files.
func TestReadOnlyProcSys(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		sh(t, "ip link add w0 type veth peer name w1")
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			t.Fatal(err)
		}
		mount := func(source, target, kind string, flags uintptr) {
			if err := unix.Mount(source, target, kind, flags, ""); err != nil {
				t.Fatal(err)
			}
		}
		mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE)
		mount("proc", "/proc", "proc", unix.MS_RDONLY)
		for _, name := range []string{"rp_filter", "accept_local"} {
			key := "net/ipv4/conf/w0/" + name
			if err := kernel.WriteSysctl(key, "1"); err != nil {
				t.Errorf("%s: %v", key, err)
			}
			out, err := exec.Command("cat", "/proc/sys/"+key).Output()
			if got := strings.TrimSpace(string(out)); err != nil || got != "1" {
				t.Errorf("%s: %q, %v", key, got, err)
			}
		}
		for _, key := range []string{"net/ipv4/ip_forward", "net/ipv4/conf/all/rp_filter", "net/ipv6/conf/w0/accept_ra", "net/ipv4/conf/w0/forwarding"} {
			if err := kernel.WriteSysctl(key, "1"); !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.ENODEV) {
				t.Errorf("%s: %v", key, err)
			}
		}
	})
}
