package lab

import (
	"fmt"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Launch starts a program on the node that is neither agent nor pod: a container runtime, say. It is
// known under name until it has ended, and Down ends it before the node's namespaces.
func (n *Node) Launch(name string, cmd *exec.Cmd) error {
	if _, running := n.Program(name); running {
		return fmt.Errorf("%s is running already", name)
	}
	if _, err := start(cmd, n.Do, n.programFile(name)); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	return nil
}

// Program returns the process number, outside, of a program that Launch started, and whether it still runs.
func (n *Node) Program(name string) (pid int, running bool) {
	p, running := recorded(n.programFile(name))
	return p.PID, running
}

// Kill ends a program that Launch started without giving it a chance to say anything.
func (n *Node) Kill(name string) error {
	p, running := recorded(n.programFile(name))
	if !running {
		return nil
	}
	gone, err := p.signal(unix.SIGKILL, killWait)
	if err == nil && !gone {
		err = fmt.Errorf("process %d survives SIGKILL", p.PID)
	}
	if err != nil {
		return fmt.Errorf("kill %s: %w", name, err)
	}
	return nil
}

func (n *Node) programFile(name string) string { return n.file("process-" + name + ".json") }
