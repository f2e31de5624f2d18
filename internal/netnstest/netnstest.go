// Package netnstest runs tests in throw-away network namespaces of the real kernel.
package netnstest

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Run runs f in a network namespace of its own, which goes away with the test: the thread is locked and
// never unlocked, so the runtime discards both. Goroutines that f starts run outside the namespace;
// netlink sockets opened inside stay inside, and so do processes started by Command. Loopback is up.
func Run(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Run("netns", func(t *testing.T) {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			Unavailable(t, "new network namespace (root is needed): %v", err)
		}
		Command(t, "ip", "link", "set", "lo", "up")
		f(t)
	})
}

// Unavailable skips the test because this machine lacks something, and fails it where CI promises it.
func Unavailable(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI promises what is missing here: "+format, args...)
	}
	t.Skipf("SKIPPED, this machine lacks something: "+format, args...)
}

// Need makes sure that a program is installed.
func Need(t testing.TB, program, debianPackage string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		Unavailable(t, "%s (apt-get install %s)", program, debianPackage)
	}
}

// Command runs a program in the caller's namespace, as a user would to set something up or look at it,
// and returns what it prints. A failure ends the test.
func Command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
