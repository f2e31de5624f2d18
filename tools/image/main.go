// Command image builds weft's container image for each architecture, without a container engine:
//
//	dist/weft-<version>-linux-<arch>.tar         for ctr images import, docker load, skopeo copy
//	dist/weft-<version>-linux-<arch>.spdx.json   what it was linked from
//	dist/weft-<version>.tar                      all architectures as one image
//
// The name and tag are those in deploy/kube-flannel.yml. The same sources and the same Go make the same bytes;
// the time in the image is SOURCE_DATE_EPOCH, or 1970.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/image"
	"github.com/weftnet/weft/internal/manifest"
)

// limit is how much a node may have to fetch.
const limit = 25 << 20

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "image: "+err.Error())
		os.Exit(1)
	}
}

// A target is an architecture as Go and as images have it.
type target struct{ arch, variant, env string }

func targets() []target {
	return []target{
		{"amd64", "", "GOAMD64=v1"}, {"arm64", "", "GOARM64=v8.0"}, {"arm", "v7", "GOARM=7"},
		{"ppc64le", "", "GOPPC64=power8"}, {"riscv64", "", "GORISCV64=rva20u64"}, {"s390x", "", ""},
	}
}

// A builder makes images of one version.
type builder struct {
	name    string // with the tag
	version string
	dist    string
	created time.Time
}

func run(ctx context.Context) error {
	var all []string
	for _, t := range targets() {
		all = append(all, t.arch)
	}
	arches := flag.String("arch", strings.Join(all, ","), "architectures; the index is only made of all of them")
	dist := flag.String("o", "dist", "where to put them")
	flag.Parse()
	name, err := manifest.Image()
	if err != nil {
		return err
	}
	_, version, _ := strings.Cut(name, ":")
	created, err := sourceDate(os.Getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	b := builder{name: name, version: version, dist: *dist, created: created}
	if err := os.MkdirAll(b.dist, 0o755); err != nil {
		return err
	}
	var images []*image.Image
	for arch := range strings.SplitSeq(*arches, ",") {
		i := slices.IndexFunc(targets(), func(t target) bool { return t.arch == arch })
		if i < 0 {
			return fmt.Errorf("-arch: %q is none of %s", arch, strings.Join(all, ", "))
		}
		img, err := b.one(ctx, targets()[i])
		if err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
		images = append(images, img)
	}
	if len(images) < len(all) {
		return nil
	}
	return b.write(".tar", func(w io.Writer) error { return image.WriteIndex(w, b.name, images) })
}

func sourceDate(seconds string) (time.Time, error) {
	if seconds == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(n, 0).UTC(), nil
}

// one builds the programs and the image for one architecture.
func (b builder) one(ctx context.Context, t target) (*image.Image, error) {
	dir, err := os.MkdirTemp("", "weft-image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := b.compile(ctx, t, dir); err != nil {
		return nil, err
	}
	s := image.Spec{
		Arch: t.arch, Variant: t.variant, Created: b.created,
		Entrypoint: []string{"/opt/bin/flanneld"}, Path: []string{"/opt/bin", "/bin"},
		Labels: map[string]string{
			"org.opencontainers.image.title":    "weft",
			"org.opencontainers.image.version":  b.version,
			"org.opencontainers.image.source":   "https://github.com/weftnet/weft",
			"org.opencontainers.image.licenses": "Apache-2.0",
		},
		Files: []image.File{
			{Path: "/flannel", Source: filepath.Join(dir, "flannel")}, // where the original's image for CNI has it
			{Path: "/opt/bin/flanneld", Source: filepath.Join(dir, "flanneld")},
			{Path: "/opt/bin/weft", Source: filepath.Join(dir, "weft")},
			{Path: "/opt/bin/install-conf", Source: filepath.Join(dir, "install-conf")},
			{Path: "/opt/bin/pause", Link: "install-conf"},
			{Path: "/bin/cp", Link: "../opt/bin/install-conf"},
		},
	}
	img, err := image.Build(s)
	if err != nil {
		return nil, err
	}
	fmt.Printf("%s linux/%s: %.1f MiB, %s\n", b.name, t.arch, float64(img.Size())/(1<<20), img.Manifest.Digest)
	if img.Size() > limit {
		return nil, fmt.Errorf("%d bytes are more than the %d that a node may have to fetch", img.Size(), limit)
	}
	sbom, err := image.SBOM(b.name, s, img)
	if err != nil {
		return nil, err
	}
	return img, errors.Join(
		b.write("-linux-"+t.arch+".spdx.json", func(w io.Writer) error { _, err := w.Write(sbom); return err }),
		b.write("-linux-"+t.arch+".tar", func(w io.Writer) error { return image.WriteArchive(w, b.name, img) }),
	)
}

func (b builder) compile(ctx context.Context, t target, dir string) error {
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-tags=node",
		"-ldflags=-s -w -buildid= -X main.release="+b.version+" -X github.com/weftnet/weft/internal/version.release="+b.version,
		"-o", dir+"/", "./cmd/flanneld", "./cmd/flannel", "./cmd/weft", "./cmd/install-conf")
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+t.arch, "GOFLAGS=", "GOEXPERIMENT=")
	if t.env != "" {
		c.Env = append(c.Env, t.env)
	}
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	return c.Run()
}

// write makes a file in dist, whole or not at all.
func (b builder) write(suffix string, content func(io.Writer) error) (err error) {
	name := filepath.Join(b.dist, "weft-"+b.version+suffix)
	f, err := os.Create(name + ".part")
	if err != nil {
		return err
	}
	if err := errors.Join(content(f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), name)
}
