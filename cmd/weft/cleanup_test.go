package main

import (
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/internal/options"
)

// While flanneld runs, cleanup lists what it would remove and removes nothing.
func TestCleanupBesideARunningAgent(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		dir := t.TempDir()
		subnetFile := filepath.Join(dir, "subnet.env")
		l, err := net.Listen("unix", options.Socket(subnetFile))
		if err != nil {
			t.Fatal(err)
		}
		agent := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") })}
		go agent.Serve(l) //nolint:errcheck // it ends with the test
		defer agent.Close()
		run := func(args ...string) (string, error) {
			var out strings.Builder
			c := newCleanupCommand()
			c.SilenceUsage, c.SilenceErrors = true, true
			c.SetOut(&out)
			c.SetErr(io.Discard)
			c.SetArgs(append(args, "--subnet-file", subnetFile, "--snapshot-file", filepath.Join(dir, "snapshot.json"),
				"--cni-conf-dir", dir, "--cni-state-dir", dir, "--cni-bin-dir", dir))
			err := c.ExecuteContext(t.Context())
			return out.String(), err
		}
		if out, err := run("--dry-run"); err != nil || !strings.Contains(out, options.Socket(subnetFile)) {
			t.Errorf("dry run: %v, %q", err, out)
		}
		if out, err := run(); err == nil || !strings.Contains(err.Error(), "is running") {
			t.Errorf("%v, %q", err, out)
		}
	})
}
