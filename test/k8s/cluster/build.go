package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/weftnet/weft/test/k8s/archive"
)

// Build makes what clusters are made of in the cache: Kubernetes' programs (with build.sh, which has nothing to
// do if they are there), the harness's own, and images. The working directory must be inside the repository.
func Build(ctx context.Context, cache string, e2e bool) error {
	dir, err := command(ctx, ".", "go", "list", "-m", "-f", "{{.Dir}}", module)
	if err != nil {
		return err
	}
	dir = strings.TrimSpace(dir)
	bin := filepath.Join(cache, "bin")
	script := exec.CommandContext(ctx, filepath.Join(dir, "build", "build.sh"))
	if e2e {
		script.Args = append(script.Args, "e2e")
	}
	script.Stderr = os.Stderr // what is being built; it may take minutes
	script.Env = append(os.Environ(), "WEFT_K8S_CACHE="+cache)
	if err := script.Run(); err != nil {
		return fmt.Errorf("build Kubernetes: %w", err)
	}
	if _, err := command(ctx, dir, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin+"/", "./cmd/..."); err != nil {
		return err
	}
	root := filepath.Dir(filepath.Dir(dir))
	if _, err := command(ctx, root, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin+"/", "./cmd/weft"); err != nil {
		return err
	}
	return packImages(cache)
}

const module = "github.com/weftnet/weft/test/k8s"

// Names of the harness's own images. A tag other than "latest" keeps the kubelet from asking a registry.
const (
	PodImage = "weft.invalid/pod:1"
	DNSImage = "weft.invalid/coredns:1"
)

// Image returns the path of one of the harness's own images: pause, pod, coredns.
func Image(cache, name string) string { return filepath.Join(cache, "images", name+".tar") }

func packImages(cache string) error {
	if err := os.MkdirAll(filepath.Join(cache, "images"), 0o755); err != nil {
		return err
	}
	for name, tag := range map[string]string{"pause": PauseImage, "pod": PodImage, "coredns": DNSImage} {
		img := archive.Image{Names: []string{tag}, Entrypoint: []string{"/" + name}}
		if err := img.Add(filepath.Join(cache, "bin", name), "/"+name); err != nil {
			return err
		}
		if err := img.Save(Image(cache, name)); err != nil {
			return err
		}
	}
	return nil
}

func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	var errout bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stderr = dir, &errout
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, errout.Bytes())
	}
	return string(out), nil
}
