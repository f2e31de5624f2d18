package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"github.com/weftnet/weft/test/k8s/archive"
)

// pack makes an image archive of this machine's files. Programs get the shared libraries that they need; of a
// directory everything is taken; PATH=TARGET is a symbolic link.
func pack(args []string) error {
	if len(args) < 4 {
		return errors.New("usage: cluster pack ARCHIVE NAME:TAG ENTRYPOINT ITEM..., each FILE:PATH or PATH=TARGET")
	}
	img := archive.Image{Names: strings.Split(args[1], ","), Entrypoint: []string{args[2]}}
	img.Dir("/tmp", 0o777|fs.ModeSticky)
	for _, item := range args[3:] {
		if to, target, ok := strings.Cut(item, "="); ok {
			img.Link(target, to)
			continue
		}
		from, to, ok := strings.Cut(item, ":")
		if !ok {
			return fmt.Errorf("%q is neither FILE:PATH nor PATH=TARGET", item)
		}
		if err := addTree(&img, from, to); err != nil {
			return err
		}
	}
	return img.Save(args[0])
}

func addTree(img *archive.Image, from, to string) error {
	return filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		if err := img.Add(file, path.Join(to, rel)); err != nil {
			return err
		}
		if f, err := elf.Open(file); err == nil {
			return errors.Join(f.Close(), img.Libraries(file))
		}
		return nil
	})
}
