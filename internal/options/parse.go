package options

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A UsageError is a command line that cannot be read: an unknown flag, a missing value, a stray word. The
// process exits with status 2.
type UsageError struct{ problem string }

func (e *UsageError) Error() string { return e.problem + " (flanneld --help lists the flags)" }

// Parse reads the command line (without the program's name) and the environment. Problems with values
// come all at once, each naming its flag or variable; among them may be a *UsageError. With --help the
// usage goes to stderr and the error is flag.ErrHelp.
func Parse(args []string, getenv func(string) string, stderr io.Writer) (Options, error) {
	var o Options
	groups := table(&o)
	fs := flag.NewFlagSet("flanneld", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // its complaints come back as errors, in our words
	given := map[string]*values{}
	for _, g := range groups {
		for _, f := range g.flags {
			given[f.name] = &values{bool: f.bool}
			fs.Var(given[f.name], f.name, f.usage)
		}
	}
	var errs []error
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		printUsage(stderr, groups)
		return Options{}, flag.ErrHelp
	case err != nil:
		errs = append(errs, &UsageError{inOurWords(err)})
	case fs.NArg() > 0:
		errs = append(errs, &UsageError{strayWord(fs.Arg(0))})
	}
	for _, g := range groups {
		for _, f := range g.flags {
			errs = append(errs, o.read(f, given[f.name].list, getenv)...)
		}
	}
	errs = append(errs, o.finish(getenv)...)
	if _, unread := errors.AsType[*UsageError](errors.Join(errs...)); o.Version && !unread {
		return Options{Version: true}, nil // whatever else is wrong
	}
	if len(errs) > 0 {
		return Options{}, errors.Join(errs...)
	}
	return o, nil
}

// inOurWords says what the flag package could not read.
func inOurWords(err error) string {
	if name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
		return "unknown flag --" + name
	}
	return err.Error()
}

// strayWord explains the usual cause, "--ip-masq true". The original stops reading there and ignores all
// flags after it without a word.
func strayWord(word string) string {
	if word == "true" || word == "false" {
		return fmt.Sprintf("%q is not a flag: switches are written --flag=%s", word, word)
	}
	return fmt.Sprintf("%q is not a flag", word)
}

// values collects what a flag is given and never fails, so that the flag package reads on to the end.
type values struct {
	list []string
	bool bool
}

func (v *values) String() string     { return "" }
func (v *values) Set(s string) error { v.list = append(v.list, s); return nil }
func (v *values) IsBoolFlag() bool   { return v.bool }

// read sets one option: from the command line, else from the environment, else to its default.
func (o *Options) read(f flagSpec, given []string, getenv func(string) string) []error {
	name := "--" + f.name
	for _, env := range f.env() {
		if v := getenv(env); len(given) == 0 && v != "" {
			name, given = env, []string{v}
		}
	}
	if !f.repeatable && len(given) > 1 {
		given = given[len(given)-1:] // as the flag package has it: the last one wins
	}
	if f.repeatable {
		given = slices.DeleteFunc(given, func(v string) bool { return v == "" })
	}
	if len(given) == 0 {
		if f.def == "" {
			return nil
		}
		name, given = "default of --"+f.name, []string{f.def}
	} else {
		o.Given = append(o.Given, Setting{name, f.shown(given)})
		if f.ignored != "" {
			o.Notes = append(o.Notes, name+" has no effect: "+f.ignored)
		}
	}
	var errs []error
	for _, v := range given {
		if err := f.set(v); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errs
}
