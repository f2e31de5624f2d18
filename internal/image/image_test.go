package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const name = "registry.example/weft:v1.2.3"

func spec(t *testing.T, arch string) Spec {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("program for "+arch), 0o700); err != nil {
		t.Fatal(err)
	}
	return Spec{
		Arch: arch, Created: time.Unix(1700000000, 0).UTC(), Entrypoint: []string{"/opt/bin/agent"}, Path: []string{"/opt/bin", "/bin"},
		Labels: map[string]string{"org.opencontainers.image.version": "v1.2.3"},
		Files:  []File{{Path: "/opt/bin/agent", Source: program}, {Path: "/plugin", Source: program}, {Path: "/bin/cp", Link: "../opt/bin/agent"}},
	}
}

func build(t *testing.T, s Spec) *Image {
	t.Helper()
	img, err := Build(s)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestSameFilesMakeTheSameArchive(t *testing.T) {
	var a, b bytes.Buffer
	if err := WriteArchive(&a, name, build(t, spec(t, "amd64"))); err != nil {
		t.Fatal(err)
	}
	s := spec(t, "amd64") // in another folder, at another time
	s.Files[0], s.Files[2] = s.Files[2], s.Files[0]
	if err := WriteArchive(&b, name, build(t, s)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the archives differ")
	}
}

func TestArchive(t *testing.T) {
	var b bytes.Buffer
	if err := WriteArchive(&b, name, build(t, spec(t, "arm64"))); err != nil {
		t.Fatal(err)
	}
	files := untar(t, &b)
	var top index
	read(t, files["index.json"], &top)
	if len(top.Manifests) != 1 {
		t.Fatalf("%d manifests", len(top.Manifests))
	}
	want := map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "v1.2.3"}
	if diff := cmp.Diff(want, top.Manifests[0].Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	m, c, layer := checkImage(t, files, top.Manifests[0])
	wantLayer := map[string]string{
		"bin/": "dir", "bin/cp": "-> ../opt/bin/agent", "opt/": "dir", "opt/bin/": "dir", "opt/bin/agent": "program for arm64", "plugin": "program for arm64",
	}
	if diff := cmp.Diff(wantLayer, layer); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
	if c.Architecture != "arm64" || c.OS != "linux" || c.Config.Entrypoint[0] != "/opt/bin/agent" || c.Config.Env[0] != "PATH=/opt/bin:/bin" {
		t.Errorf("config: %+v", c)
	}
	var docker []dockerManifest
	read(t, files["manifest.json"], &docker)
	wantDocker := []dockerManifest{{blobPath(m.Config.Digest), []string{name}, []string{blobPath(m.Layers[0].Digest)}}}
	if diff := cmp.Diff(wantDocker, docker); diff != "" {
		t.Errorf("manifest.json (-want +got):\n%s", diff)
	}
}

func TestIndexHasEveryPlatform(t *testing.T) {
	arm := spec(t, "arm")
	arm.Variant = "v7"
	var b bytes.Buffer
	if err := WriteIndex(&b, name, []*Image{build(t, spec(t, "amd64")), build(t, arm)}); err != nil {
		t.Fatal(err)
	}
	files := untar(t, &b)
	var top, in index
	read(t, files["index.json"], &top)
	read(t, content(t, files, top.Manifests[0]), &in)
	var platforms []Platform
	for _, m := range in.Manifests {
		platforms = append(platforms, *m.Platform)
		_, c, layer := checkImage(t, files, m)
		if c.Platform != *m.Platform || layer["plugin"] != "program for "+c.Architecture {
			t.Errorf("%+v is the image of %+v with %q", *m.Platform, c.Platform, layer["plugin"])
		}
	}
	want := []Platform{{Architecture: "amd64", OS: "linux"}, {Architecture: "arm", OS: "linux", Variant: "v7"}}
	if diff := cmp.Diff(want, platforms); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSBOM(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	if out, err := exec.Command("go", "build", "-o", program, "../../cmd/install-conf").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s := spec(t, "amd64")
	s.Files = []File{{Path: "/opt/bin/agent", Source: program}, {Path: "/bin/cp", Link: "../opt/bin/agent"}}
	img := build(t, s)
	raw, err := SBOM(name, s, img)
	if err != nil {
		t.Fatal(err)
	}
	var doc spdx
	read(t, raw, &doc)
	ids := map[string]bool{doc.ID: true}
	purls := map[string]bool{}
	for _, p := range doc.Packages {
		if ids[p.ID] {
			t.Errorf("%s twice", p.ID)
		}
		ids[p.ID] = true
		for _, r := range p.References {
			purls[r.Locator] = true
		}
	}
	for _, r := range doc.Relationships {
		if !ids[r.From] || !ids[r.To] {
			t.Errorf("relationship %+v of nothing", r)
		}
	}
	found := false
	for p := range purls {
		found = found || strings.HasPrefix(p, "pkg:golang/golang.org/x/sys@v")
	}
	if !found {
		t.Errorf("x/sys is missing in %v", purls)
	}
}

// checkImage checks every digest and size below a manifest and returns what is there.
func checkImage(t *testing.T, files map[string][]byte, d Descriptor) (manifest, config, map[string]string) {
	t.Helper()
	var m manifest
	read(t, content(t, files, d), &m)
	var c config
	read(t, content(t, files, m.Config), &c)
	z, err := gzip.NewReader(bytes.NewReader(content(t, files, m.Layers[0])))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{digest(raw)}, c.RootFS.DiffIDs); diff != "" {
		t.Errorf("diff_ids (-want +got):\n%s", diff)
	}
	layer := map[string]string{}
	for name, content := range untar(t, bytes.NewReader(raw)) {
		layer[name] = string(content)
	}
	return m, c, layer
}

func content(t *testing.T, files map[string][]byte, d Descriptor) []byte {
	t.Helper()
	raw := files[blobPath(d.Digest)]
	if digest(raw) != d.Digest || int64(len(raw)) != d.Size {
		t.Fatalf("%s of %d bytes: found %s of %d", d.Digest, d.Size, digest(raw), len(raw))
	}
	return raw
}

// untar returns files by name; folders are "dir" and links "-> target".
func untar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s belongs to %d:%d", h.Name, h.Uid, h.Gid)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			files[h.Name] = []byte("dir")
		case tar.TypeSymlink:
			files[h.Name] = []byte("-> " + h.Linkname)
		default:
			if files[h.Name], err = io.ReadAll(tr); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func read(t *testing.T, raw []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
}
