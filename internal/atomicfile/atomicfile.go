// Package atomicfile replaces small files so that a reader, or a machine that loses power, sees either the
// old content or the new one, whole.
package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Write makes content the content of path and returns whether anything was written: a file that has it
// already is left alone, inode, times and all. The directory is made with mode 0755. A new file has mode
// perm whatever the umask, and is on disk when Write returns.
func Write(path string, content []byte, perm fs.FileMode) (changed bool, err error) {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, content) {
		return false, nil
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return false, err
	}
	if err := fill(tmp, content, perm); err != nil {
		return false, errors.Join(err, os.Remove(tmp.Name()))
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return false, errors.Join(err, os.Remove(tmp.Name()))
	}
	return true, syncDir(dir)
}

// Read returns the content of path, which must be a file of at most limit bytes.
func Read(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("%s: longer than %d bytes", path, limit)
	}
	return raw, nil
}

func fill(f *os.File, content []byte, perm fs.FileMode) error {
	_, err := f.Write(content)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDir puts a rename on disk: fsync(2) of the file does not cover its directory entry.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
