// Package k8s tests weft on a real Kubernetes cluster, made on this machine by package cluster. Root is needed.
//
// Environment:
//
//	WEFT_K8S_CACHE          directory for what is built, and kept; default /var/cache/weft-k8s
//	WEFT_K8S_BUILD          "no": nothing is built, the cache has everything
//	WEFT_K8S_NAME           of the cluster, for runs at the same time; default "k8s"
//	WEFT_K8S_IMAGE          archive of the image under test; default: built by tools/image
//	WEFT_K8S_KEEP           "yes": a failed test leaves its cluster standing, for `cluster kubectl` and the like
//	WEFT_K8S_NETWORK        "original": the same tests with the original, which some of them fail
//	WEFT_ORIGINAL_IMAGES    archives of the original's images, separated by commas; without them a stand-in with
//	                        its manifest's names runs the image under test
//	WEFT_ORIGINAL_MANIFEST  the original's kube-flannel.yml, to go with its images
package k8s

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/test/k8s/cluster"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	missing := lacking()
	if len(missing) > 0 {
		fmt.Fprintln(os.Stderr, "SKIPPED, this machine lacks:", strings.Join(missing, ", "))
		if os.Getenv("CI") == "true" {
			return 1
		}
		return 0
	}
	if os.Getenv("WEFT_K8S_BUILD") != "no" {
		if err := cluster.Build(ctx, cluster.Cache(), false); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if err := cluster.Down(name); err != nil { // what a killed run has left
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// lacking returns what is needed and absent.
func lacking() []string {
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root")
	}
	for _, p := range []string{"containerd", "ctr", "runc", "nsenter", "nft", "iptables", "pgrep"} {
		if _, err := exec.LookPath(p); err != nil {
			missing = append(missing, p)
		}
	}
	return missing
}

// name is that of every test's cluster: a run has one at a time.
var name = cmp.Or(os.Getenv("WEFT_K8S_NAME"), "k8s")

// kept is the test that has left its cluster standing; no other one can be made.
var kept string

// up makes a cluster that goes away with the test, within the given time for the whole test. When the test
// fails, it shows what there is to see.
func up(t *testing.T, within time.Duration, o cluster.Options, nets ...*network) (context.Context, *cluster.Cluster) {
	t.Helper()
	if kept != "" {
		t.Skipf("SKIPPED: %s has left its cluster standing", kept)
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	t.Cleanup(cancel)
	o.Name = name
	for _, i := range []string{"pod", "coredns"} {
		o.Images = append(o.Images, cluster.Image(cluster.Cache(), i))
	}
	for _, n := range nets {
		o.Images = append(o.Images, n.images...)
		o.ReferencePlugins = o.ReferencePlugins || n.plugins
	}
	began := time.Now()
	c, err := cluster.Up(ctx, o)
	t.Cleanup(func() {
		if t.Failed() && c != nil {
			report(t, c)
			if os.Getenv("WEFT_K8S_KEEP") == "yes" {
				kept = t.Name()
				t.Log("the cluster is left standing")
				return
			}
		}
		if err := cluster.Down(name); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nets {
		must(t, n.alias(ctx, c))
	}
	t.Logf("cluster up in %v", time.Since(began).Round(100*time.Millisecond))
	return ctx, c
}

// report shows the state of a cluster that a test has failed on.
func report(t *testing.T, c *cluster.Cluster) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, args := range [][]string{
		{"get", "nodes,pods", "-A", "-o", "wide"},
		{"get", "events", "-A", "--field-selector=type=Warning", "--sort-by=.lastTimestamp"},
		{"-n", flannelNamespace, "logs", "-l", "app=flannel", "--tail=15", "--prefix", "--max-log-requests=10"},
	} {
		out, err := c.Kubectl(ctx, args...)
		if err != nil {
			out += err.Error()
		}
		t.Logf("kubectl %s\n%s", strings.Join(args, " "), lastLines(out, 60))
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// long skips a test that `go test -short` leaves out.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: it takes long, and -short is given")
	}
}

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until f returns nil and says how long that took.
func eventually(ctx context.Context, t *testing.T, within time.Duration, what string, f func() error) time.Duration {
	t.Helper()
	began := time.Now()
	if err := cluster.Eventually(ctx, within, f); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return time.Since(began)
}

// kubectl runs kubectl; a failure ends the test.
func kubectl(ctx context.Context, t *testing.T, c *cluster.Cluster, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// cached returns a file of the cache, or skips the test.
func cached(t *testing.T, file, how string) string {
	t.Helper()
	path := cluster.Cache() + "/" + file
	if info, err := os.Stat(path); err != nil || info.Size() == 0 {
		netnstest.Unavailable(t, "%s (%s)", path, how)
	}
	return path
}
