package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// run starts another plugin out of CNI_PATH, with the environment of this call, and returns what it
// prints. An error that it prints is returned as it is.
func run(plugin, verb, path string, stdin []byte) ([]byte, error) {
	return runEnv(plugin, verb, path, stdin, os.Environ())
}

// runEnv is run with another environment.
func runEnv(plugin, verb, path string, stdin []byte, env []string) ([]byte, error) {
	program, err := find(plugin, path)
	if err != nil {
		return nil, err
	}
	var out, stderr bytes.Buffer
	for range 5 {
		out.Reset()
		stderr.Reset()
		cmd := exec.Command(program)
		cmd.Env = append(env[:len(env):len(env)], "CNI_COMMAND="+verb)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &stderr
		// ETXTBSY: an installer is writing the program at this moment.
		if err = cmd.Run(); !errors.Is(err, unix.ETXTBSY) {
			break
		}
	}
	if err == nil {
		return out.Bytes(), nil
	}
	var printed types.Error
	if json.Unmarshal(out.Bytes(), &printed) == nil && printed.Msg != "" {
		return nil, &printed
	}
	return nil, fmt.Errorf("plugin %s: %w: %s", plugin, err, strings.TrimSpace(stderr.String()+out.String()))
}

func find(plugin, path string) (string, error) {
	if plugin == "" || plugin != filepath.Base(plugin) || plugin == "." || plugin == ".." {
		return "", types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("%q is not the name of a plugin", plugin), "")
	}
	for _, dir := range filepath.SplitList(path) {
		program := filepath.Join(dir, plugin)
		if info, err := os.Stat(program); dir != "" && err == nil && info.Mode().IsRegular() {
			return program, nil
		}
	}
	return "", types.NewError(types.ErrInvalidNetworkConfig,
		fmt.Sprintf("plugin %q is in none of %q: install it there", plugin, path), "")
}
