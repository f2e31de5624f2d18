// Package machine is the first process of a node: it lays out the node's files, starts its programs, starts
// them again when they end, and reaps whatever is left to it.
//
// It runs in the namespaces of a lab's node (network, mounts, host name) and in new ones for processes,
// mounts and IPC. When it ends, the kernel ends every process of the node, as a power cut would.
package machine

import "time"

// A Spec says what a node consists of. It is read from a JSON file.
type Spec struct {
	Name     string
	Mounts   []Mount
	Sysctls  map[string]string // by path below /proc/sys; one that is absent is left out
	Cgroup   string            // made in every hierarchy, with all processors and memory nodes
	Shields  map[string]string // files below /proc that programs write to without effect, and what they read there
	Programs []Program
	Control  string // directory for what Command does
}

// A Mount is one call of mount(2). The target is made if absent.
type Mount struct {
	Source, Target, Type, Data string
	Flags                      uintptr
}

// A Program is kept running.
type Program struct {
	Name  string
	Argv  []string
	Env   []string
	Log   string   // its output is appended to this file
	After []string // files, sockets included, that must be there before it is started
}

// restartAfter keeps a program that cannot start from using up the processor.
const restartAfter = time.Second

// poll is how often files that somebody waits for are looked for.
const poll = 50 * time.Millisecond
