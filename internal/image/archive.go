package image

import (
	"archive/tar"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"time"
)

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []Descriptor `json:"manifests"`
}

// dockerManifest is an entry of manifest.json, which Docker before version 25 reads instead of index.json.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// WriteArchive writes an image as an OCI image layout in a tar file, under a name such as
// "ghcr.io/weftnet/weft:v1.0.0": `ctr images import`, `docker load` and `skopeo copy` take it.
func WriteArchive(w io.Writer, name string, img *Image) error {
	top := img.Manifest
	top.Annotations = named(name)
	docker := []dockerManifest{{blobPath(img.config.Digest), []string{name}, []string{blobPath(img.layer.Digest)}}}
	raw, err := json.Marshal(docker)
	if err != nil {
		return err
	}
	return writeLayout(w, top, img.blobs, file{"manifest.json", raw})
}

// WriteIndex writes images for several architectures as one, in the same form.
func WriteIndex(w io.Writer, name string, images []*Image) error {
	in := index{SchemaVersion: 2, MediaType: typeIndex}
	var all Image
	for _, img := range images {
		in.Manifests = append(in.Manifests, img.Manifest)
		all.blobs = append(all.blobs, img.blobs...)
	}
	top, err := all.addJSON(typeIndex, in)
	if err != nil {
		return err
	}
	top.Annotations = named(name)
	return writeLayout(w, top, all.blobs)
}

// named are the annotations by which importers name an image. The second is a tag, by the specification.
func named(name string) map[string]string {
	return map[string]string{
		"io.containerd.image.name":          name,
		"org.opencontainers.image.ref.name": name[strings.LastIndexByte(name, ':')+1:],
	}
}

func blobPath(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

type file struct {
	name    string
	content []byte
}

func writeLayout(w io.Writer, top Descriptor, blobs []blob, extra ...file) error {
	in, err := json.Marshal(index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []Descriptor{top}})
	if err != nil {
		return err
	}
	files := append([]file{{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {"index.json", in}}, extra...)
	for _, b := range blobs {
		files = append(files, file{blobPath(b.digest), b.content})
	}
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	t := tar.NewWriter(w)
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		h := tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if err := t.WriteHeader(&h); err != nil {
			return err
		}
	}
	for _, f := range files {
		h := tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.content)),
			ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if err := t.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := t.Write(f.content); err != nil {
			return err
		}
	}
	return t.Close()
}
