// Package archive packs container images out of this machine's files, without a container engine: what
// `docker save` writes, with one layer.
package archive

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// An Image is the content of an image and how it is called.
type Image struct {
	Names      []string // "registry/name:tag"
	Entrypoint []string
	Cmd        []string
	Env        []string

	files map[string]file // by path, without leading slash
}

type file struct {
	source string // on this machine
	text   []byte // the content, if there is no source
	link   string
	dir    bool
	mode   fs.FileMode
}

// Add puts this machine's file from into the image. Symbolic links are followed.
func (i *Image) Add(from, to string) error {
	real, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	info, err := os.Stat(real)
	if err != nil {
		return err
	}
	i.put(to, file{source: real, mode: info.Mode().Perm()})
	return nil
}

// Text puts a file with the given content into the image.
func (i *Image) Text(to, content string) { i.put(to, file{text: []byte(content), mode: 0o644}) }

// Link makes the path to a symbolic link.
func (i *Image) Link(target, to string) { i.put(to, file{link: target, mode: 0o777}) }

// Dir makes an empty directory.
func (i *Image) Dir(dir string, mode fs.FileMode) { i.put(dir, file{dir: true, mode: mode}) }

func (i *Image) put(to string, f file) {
	if i.files == nil {
		i.files = map[string]file{}
	}
	to = strings.Trim(path.Clean(to), "/")
	i.files[to] = f
	for dir := path.Dir(to); dir != "."; dir = path.Dir(dir) {
		if _, ok := i.files[dir]; !ok {
			i.files[dir] = file{dir: true, mode: 0o755}
		}
	}
}

// Save writes the archive, in place of one that is there.
func (i *Image) Save(name string) error {
	layer, err := os.CreateTemp(filepath.Dir(name), ".layer-*")
	if err != nil {
		return err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	sum := sha256.New()
	if err := i.writeLayer(io.MultiWriter(layer, sum)); err != nil {
		return err
	}
	config, manifest, err := i.describe(hex.EncodeToString(sum.Sum(nil)))
	if err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(name), ".image-*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name()) // it has another name by then, if all is well
	defer out.Close()
	w := tar.NewWriter(out)
	if err := addText(w, "manifest.json", manifest); err != nil {
		return err
	}
	if err := addText(w, "config.json", config); err != nil {
		return err
	}
	if err := addFile(w, tar.Header{Name: "layer.tar", Mode: 0o644}, layer.Name()); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.Rename(out.Name(), name)
}

// describe returns the image's configuration and the archive's table of contents.
func (i *Image) describe(layerSum string) (config, manifest []byte, err error) {
	config, err = json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": i.Entrypoint, "Cmd": i.Cmd,
			"Env": append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, i.Env...)},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + layerSum}},
	})
	if err != nil {
		return nil, nil, err
	}
	manifest, err = json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": i.Names, "Layers": []string{"layer.tar"}}})
	return config, manifest, err
}

func (i *Image) writeLayer(to io.Writer) error {
	w := tar.NewWriter(to)
	for _, name := range slices.Sorted(maps.Keys(i.files)) { // a directory before what is in it
		f := i.files[name]
		h := tar.Header{Name: name, Mode: int64(f.mode.Perm()), ModTime: time.Unix(0, 0)}
		if f.mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		var err error
		switch {
		case f.dir:
			h.Typeflag = tar.TypeDir
			err = w.WriteHeader(&h)
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
			err = w.WriteHeader(&h)
		case f.source != "":
			err = addFile(w, h, f.source)
		default:
			h.Size = int64(len(f.text))
			if err = w.WriteHeader(&h); err == nil {
				_, err = w.Write(f.text)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return w.Close()
}

func addText(w *tar.Writer, name string, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := io.Copy(w, bytes.NewReader(content))
	return err
}

func addFile(w *tar.Writer, h tar.Header, source string) error {
	from, err := os.Open(source)
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
