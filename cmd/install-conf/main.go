// Command install-conf is what the image has in place of a shell and its tools. The name that it is called
// by chooses what it does:
//
//	install-conf SOURCE TARGET            copy a file, as the original's init container does
//	install-conf --after FILE ...         install a CNI configuration once FILE exists
//	cp [-f] SOURCE TARGET                 copy a file: the original's other init container
//	pause                                 do nothing until told to end
//
// A copy goes through a temporary file in the target's folder, so that a reader never sees half of it and a
// program that is running can be replaced. It has the source's mode.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/cniconf"
)

func main() {
	if err := run(filepath.Base(os.Args[0]), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, filepath.Base(os.Args[0])+": "+err.Error())
		os.Exit(1)
	}
}

func run(name string, args []string) error {
	switch name {
	case "pause":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, os.Interrupt, unix.SIGTERM)
		<-stop
		return nil
	case "cp":
		fs := flag.NewFlagSet(name, flag.ContinueOnError)
		fs.Bool("f", true, "replace the target, which is always done")
		if err := fs.Parse(args); err != nil {
			return err
		}
		return copyOne(fs.Args())
	}
	return installConf(name, args)
}

func installConf(name string, args []string) error {
	var f cniconf.Files
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.StringVar(&f.After, "after", "", "do nothing unless this file exists, and nothing to a target that others have edited")
	fs.StringVar(&f.Record, "record", "", "with --after: where to keep what was installed last")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if f.After == "" {
		return copyOne(fs.Args())
	}
	if fs.NArg() != 2 {
		return errors.New("want SOURCE and TARGET")
	}
	f.Source, f.Target = fs.Arg(0), fs.Arg(1)
	_, err := f.Sync()
	return err
}

// copyOne copies args[0] to args[1], or into it if that is a folder.
func copyOne(args []string) (err error) {
	if len(args) != 2 {
		return errors.New("want SOURCE and TARGET")
	}
	source, target := args[0], args[1]
	if info, err := os.Stat(target); err == nil && info.IsDir() {
		target = filepath.Join(target, filepath.Base(source))
	}
	from, err := os.Open(source)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", source)
	}
	tmp, err := os.CreateTemp(filepath.Dir(target), "."+filepath.Base(target)+".tmp*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	_, err = io.Copy(tmp, from)
	if err == nil {
		err = tmp.Chmod(info.Mode().Perm())
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), target)
}
