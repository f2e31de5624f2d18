// Package netd looks at the directory that container runtimes take network configurations from. The plugin
// and the agent both link it: it stays free of everything else.
package netd

import (
	"os"
	"path/filepath"
)

// Before returns the network configurations that runtimes prefer to the one named.
func Before(dir, name string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var before []string
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".conf", ".conflist", ".json":
			if e.Name() < name {
				before = append(before, e.Name())
			}
		}
	}
	return before
}
