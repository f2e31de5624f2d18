// Package image makes container images of static binaries without a container engine, byte for byte the same
// from the same files. The formats are few and small (OCI image specification 1.1: a layer is a gzipped tar,
// everything else JSON), so they are written here instead of through a registry client's library.
package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Media types of the OCI image specification.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// A File is a file of the image, executable by all.
type File struct {
	Path   string // in the image, with a leading slash
	Source string // on this machine; empty: Path is a symbolic link
	Link   string // what the link points to
}

// Spec is what an image is made from.
type Spec struct {
	Arch, Variant string // as GOARCH; the variant is "v7" for arm and empty otherwise
	Files         []File
	Entrypoint    []string
	Path          []string          // directories where commands are looked for
	Labels        map[string]string // also annotations of the manifest
	Created       time.Time
}

// An Image is the image for one architecture.
type Image struct {
	Platform Platform
	Manifest Descriptor
	config   Descriptor
	layer    Descriptor
	blobs    []blob
}

// Size returns the size of everything that a node has to fetch.
func (i *Image) Size() int64 { return i.Manifest.Size + i.config.Size + i.layer.Size }

// Platform says what an image runs on.
type Platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

// A Descriptor refers to a blob.
type Descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *Platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type blob struct {
	digest  string
	content []byte
}

type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        Descriptor        `json:"config"`
	Layers        []Descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type config struct {
	Created time.Time `json:"created"`
	Platform
	Config struct {
		Env        []string
		Entrypoint []string
		Labels     map[string]string `json:",omitempty"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	History []history `json:"history"`
}

type history struct {
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
}

// Build makes an image.
func Build(s Spec) (*Image, error) {
	raw, err := tarball(s.Files, s.Created)
	if err != nil {
		return nil, err
	}
	zipped, err := compress(raw)
	if err != nil {
		return nil, err
	}
	img := &Image{Platform: Platform{Architecture: s.Arch, OS: "linux", Variant: s.Variant}}
	img.layer = img.add(typeLayer, zipped)
	c := config{Created: s.Created, Platform: img.Platform, History: []history{{s.Created, "weft"}}}
	c.Config.Env = []string{"PATH=" + strings.Join(s.Path, ":")}
	c.Config.Entrypoint, c.Config.Labels = s.Entrypoint, s.Labels
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", []string{digest(raw)}
	if img.config, err = img.addJSON(typeConfig, c); err != nil {
		return nil, err
	}
	img.Manifest, err = img.addJSON(typeManifest, manifest{
		SchemaVersion: 2, MediaType: typeManifest, Config: img.config, Layers: []Descriptor{img.layer}, Annotations: s.Labels,
	})
	img.Manifest.Platform = &img.Platform
	return img, err
}

func (i *Image) add(mediaType string, content []byte) Descriptor {
	d := Descriptor{MediaType: mediaType, Digest: digest(content), Size: int64(len(content))}
	i.blobs = append(i.blobs, blob{d.Digest, content})
	return d
}

func (i *Image) addJSON(mediaType string, v any) (Descriptor, error) {
	raw, err := json.Marshal(v) // sorts the keys of maps
	return i.add(mediaType, raw), err
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// tarball packs the files and the folders above them, sorted, all of root's and of one time.
func tarball(files []File, created time.Time) ([]byte, error) {
	entries := map[string]File{}
	for _, f := range files {
		entries[f.Path] = f
		for dir := path.Dir(f.Path); dir != "/"; dir = path.Dir(dir) {
			entries[dir+"/"] = File{Path: dir + "/"}
		}
	}
	paths := make([]string, 0, len(entries))
	for p := range entries {
		paths = append(paths, p)
	}
	slices.Sort(paths) // a folder before what is in it
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, p := range paths {
		if err := addEntry(w, entries[p], created); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func addEntry(w *tar.Writer, f File, created time.Time) error {
	h := tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Mode: 0o755, ModTime: created, Format: tar.FormatUSTAR}
	switch {
	case strings.HasSuffix(f.Path, "/"):
		h.Typeflag = tar.TypeDir
	case f.Source == "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
	default:
		h.Typeflag = tar.TypeReg
	}
	if h.Typeflag != tar.TypeReg {
		return w.WriteHeader(&h)
	}
	from, err := os.Open(f.Source)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	h.Size = info.Size()
	if err := w.WriteHeader(&h); err != nil {
		return err
	}
	_, err = io.Copy(w, from)
	return err
}

func compress(raw []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(raw); err != nil {
		return nil, err
	}
	err = w.Close()
	return b.Bytes(), err
}
