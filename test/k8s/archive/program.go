package archive

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// libraryDirs are where shared libraries lie, on Debian and on Fedora.
var libraryDirs = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
	"/lib64", "/usr/lib64", "/lib", "/usr/lib",
}

// Program puts a program of this machine into the image, with the shared libraries that it needs.
func (i *Image) Program(name, to string) error {
	from, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	if err := i.Add(from, to); err != nil {
		return err
	}
	return i.Libraries(from)
}

// Libraries puts the shared libraries that an ELF file needs, and those that these need, into the image.
func (i *Image) Libraries(file string) error {
	f, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		raw := make([]byte, p.Filesz-1) // it ends in a zero byte
		if _, err := p.ReadAt(raw, 0); err != nil {
			return err
		}
		if err := i.Add(string(raw), string(raw)); err != nil {
			return err
		}
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, lib := range needed {
		if err := i.library(lib); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

func (i *Image) library(name string) error {
	to := "/usr/lib/" + name
	if _, ok := i.files[to[1:]]; ok {
		return nil
	}
	for _, dir := range libraryDirs {
		from := filepath.Join(dir, name)
		err := i.Add(from, to)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		// Everything is where the loader looks last: /usr/lib, and /lib for old ones.
		return i.Libraries(from)
	}
	return fmt.Errorf("no library %s in %v", name, libraryDirs)
}
