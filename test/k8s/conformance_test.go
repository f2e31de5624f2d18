package k8s

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/netnstest"
	"github.com/weftnet/weft/test/k8s/cluster"
)

// TestConformance runs Kubernetes' own conformance tests of the network. All pass.
func TestConformance(t *testing.T) {
	long(t)
	for tool, pkg := range cluster.Tools {
		netnstest.Need(t, tool, pkg)
	}
	if os.Getenv("WEFT_K8S_BUILD") != "no" {
		must(t, cluster.Build(t.Context(), cluster.Cache(), true))
	}
	for _, f := range []string{"bin/e2e.test", "bin/ginkgo", "bin/agnhost"} {
		cached(t, f, "test/k8s/build/build.sh e2e")
	}
	images, err := cluster.PackTestImages(t.Context(), cluster.Cache())
	must(t, err)
	net := tested(t)
	o := cluster.Options{Images: images}
	ctx, c := up(t, 40*time.Minute, o, net)
	net.installed(ctx, t, c, netConf(o, `{"Type": "vxlan"}`))
	must(t, c.StartDNS(ctx))
	began := time.Now()
	out, err := c.RunTests(ctx, `\[sig-network\].*\[Conformance\]`, `^$`, filepath.Join(t.ArtifactDir(), "conformance"))
	ran := regexp.MustCompile(`Ran (\d+) of`).FindStringSubmatch(out)
	if len(ran) == 0 {
		t.Fatalf("no tests ran: %v\n%s", err, lastLines(out, 60))
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, lastLines(out, 200))
	}
	t.Logf("%s conformance tests passed in %v", ran[1], time.Since(began).Round(time.Second))
	if version, err := exec.CommandContext(ctx, filepath.Join(cluster.Cache(), "bin", "kubelet"), "--version").Output(); err == nil {
		t.Logf("%s", version)
	}
}
