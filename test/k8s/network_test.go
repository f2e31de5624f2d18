package k8s

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/manifest"
	"github.com/weftnet/weft/test/k8s/cluster"
)

// Names that the manifest has in common with the original's.
const (
	flannelNamespace = "kube-flannel"
	daemonSet        = "daemonset/kube-flannel-ds"
	configMap        = "kube-flannel-cfg"
)

// A network is a pod network that can be installed.
type network struct {
	name     string
	images   []string // archives
	aliases  []string // names that the manifest has for our image
	plugins  bool     // needs the reference CNI plugins on the nodes
	manifest func(netConf string) (string, error)
}

// netConf returns net-conf.json for the cluster's ranges.
func netConf(o cluster.Options, backend string) string {
	conf := map[string]any{"Network": "10.244.0.0/16", "Backend": json.RawMessage(backend)}
	if o.Family == "dual" {
		conf["EnableIPv6"], conf["IPv6Network"] = true, "fd00:10:244::/56"
	}
	if len(o.PodCIDRs) > 0 {
		conf["Network"] = o.PodCIDRs[0]
	}
	if o.Proxy == "nftables" {
		conf["EnableNFTables"] = true
	}
	raw, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		panic(err) // maps of strings
	}
	return string(raw)
}

// tested is the network that the tests are about.
func tested(t *testing.T) *network {
	t.Helper()
	if os.Getenv("WEFT_K8S_NETWORK") == "original" {
		return original(t)
	}
	return ours(t)
}

// ours is weft, as its manifest installs it.
func ours(t *testing.T) *network {
	t.Helper()
	return &network{name: "weft", images: []string{imageArchive(t)}, manifest: func(netConf string) (string, error) {
		out, err := manifest.Install(manifest.Options{Values: manifest.Values{"netConf": netConf}})
		return string(out), err
	}}
}

// original is the original, if its images are at hand, and otherwise our image in a manifest of its form and
// with its names.
func original(t *testing.T) *network {
	t.Helper()
	images := os.Getenv("WEFT_ORIGINAL_IMAGES")
	if images == "" {
		return &network{name: "stand-in for the original", images: []string{imageArchive(t)},
			aliases: []string{originalImage, originalPlugin}, plugins: true, manifest: standIn}
	}
	file := os.Getenv("WEFT_ORIGINAL_MANIFEST")
	if file == "" {
		t.Fatal("WEFT_ORIGINAL_IMAGES is set and WEFT_ORIGINAL_MANIFEST is not")
	}
	return &network{name: "the original", images: strings.Split(images, ","), plugins: true, manifest: func(netConf string) (string, error) {
		raw, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		return replaceNetConf(string(raw), netConf)
	}}
}

// replaceNetConf puts another net-conf.json into a manifest, where it is a literal block scalar.
func replaceNetConf(manifest, netConf string) (string, error) {
	const key = "  net-conf.json: |\n"
	before, rest, ok := strings.Cut(manifest, key)
	if !ok {
		return "", fmt.Errorf("the manifest has no net-conf.json")
	}
	for strings.HasPrefix(rest, "    ") {
		_, rest, _ = strings.Cut(rest, "\n")
	}
	return before + key + indent(netConf) + rest, nil
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ") + "\n"
}

// imageOnce builds the image under test once per run.
var imageOnce = sync.OnceValues(buildImage)

// imageArchive returns the archive of the image under test.
func imageArchive(t *testing.T) string {
	t.Helper()
	file, err := imageOnce()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// Names of the original's images, for the stand-in.
const (
	originalImage  = "ghcr.io/flannel-io/flannel:v0.28.9"
	originalPlugin = "ghcr.io/flannel-io/flannel-cni-plugin:v1.9.1-flannel3"
)

// buildImage makes the image as `make image` does, for this machine's architecture.
func buildImage() (string, error) {
	if file := os.Getenv("WEFT_K8S_IMAGE"); file != "" {
		return filepath.Abs(file)
	}
	dist := filepath.Join(cluster.Cache(), "dist")
	cmd := exec.Command("go", "run", "./tools/image", "-arch", runtime.GOARCH, "-o", dist)
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("image: %w\n%s", err, out)
	}
	name, err := manifest.Image()
	if err != nil {
		return "", err
	}
	_, version, _ := strings.Cut(name, ":")
	return filepath.Join(dist, "weft-"+version+"-linux-"+runtime.GOARCH+".tar"), nil
}

// alias gives the image under test the network's other names, on every node that is switched on.
func (n *network) alias(ctx context.Context, c *cluster.Cluster) error {
	if len(n.aliases) == 0 {
		return nil
	}
	name, err := manifest.Image()
	if err != nil {
		return err
	}
	for _, node := range running(c) {
		for _, a := range n.aliases {
			if err := node.Tag(ctx, name, a); err != nil {
				return err
			}
		}
	}
	return nil
}

// install applies the network's manifest.
func (n *network) install(ctx context.Context, t *testing.T, c *cluster.Cluster, netConf string) {
	t.Helper()
	text, err := n.manifest(netConf)
	must(t, err)
	must(t, c.Apply(ctx, text))
}

// installed applies the manifest and waits until the network runs everywhere and every node is Ready.
func (n *network) installed(ctx context.Context, t *testing.T, c *cluster.Cluster, netConf string) {
	t.Helper()
	began := time.Now()
	n.install(ctx, t, c, netConf)
	rolledOut(ctx, t, c)
	must(t, c.EachNode(func(node *cluster.Node) error {
		if _, running := node.Process1(); !running {
			return nil
		}
		return node.AwaitReady(ctx, 4*time.Minute)
	}))
	t.Logf("%s: all nodes Ready %v after the manifest", n.name, time.Since(began).Round(100*time.Millisecond))
}

// rolledOut waits until every agent is of the newest version and ready.
func rolledOut(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	t.Helper()
	kubectl(ctx, t, c, "-n", flannelNamespace, "rollout", "status", daemonSet, "--timeout=240s")
}
