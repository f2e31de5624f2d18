package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weftnet/weft/internal/lab"
)

// A Node is one machine of the cluster.
type Node struct {
	*lab.Node
	cluster *Cluster
}

// process1 is what the lab knows the node's process 1 as.
const process1 = "machine"

// Start switches the machine on: process 1, containerd, the images, kubelet.
func (n *Node) Start(ctx context.Context) error {
	if err := os.MkdirAll(n.file("log"), 0o755); err != nil {
		return err
	}
	if err := n.prepareDisk(); err != nil {
		return err
	}
	spec, err := n.spec()
	if err != nil {
		return err
	}
	raw, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(n.file("machine.json"), raw, 0o644), n.writeConfigs()); err != nil {
		return err
	}
	log, err := os.OpenFile(n.Log(process1), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(n.cluster.Options.program("machine"), n.file("machine.json"))
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = newNamespaces()
	if err := n.Launch(process1, cmd); err != nil {
		return err
	}
	images := append([]string{filepath.Join(n.cluster.Options.Cache, "images", "pause.tar")}, n.cluster.Options.Images...)
	if err := n.Load(ctx, images...); err != nil {
		return err
	}
	_, err = n.Exec(ctx, "touch", loaded)
	return err
}

// Process1 returns the number, outside, of the node's process 1, and whether it runs.
func (n *Node) Process1() (pid int, running bool) { return n.Program(process1) }

// prepareDisk makes what must be there before anything is mounted: the files of the node's own.
func (n *Node) prepareDisk() error {
	dirs := []string{"/var/lib/kubelet", "/var/lib/containerd", "/etc/kubernetes"}
	for _, dir := range dirs {
		if err := os.MkdirAll(n.Path(dir), 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"log/pods", "log/containers"} {
		if err := os.MkdirAll(filepath.Join(n.file("own/var"), dir), 0o755); err != nil {
			return err
		}
	}
	plugins := filepath.Join(n.file("own/opt/cni"), "bin")
	if err := os.MkdirAll(plugins, 0o755); err != nil {
		return err
	}
	// The lab's conflist: on a node of Kubernetes, whoever makes the pod network brings it.
	confs, err := filepath.Glob(n.Path("/etc/cni/net.d/*"))
	if err != nil {
		return err
	}
	first := n.file("prepared")
	if _, err := os.Stat(first); err == nil {
		return n.writeResolv() // a second start: what the pod network has left is its own
	}
	for _, c := range confs {
		if err := os.Remove(c); err != nil {
			return err
		}
	}
	if n.cluster.Options.ReferencePlugins {
		if out, err := exec.Command("cp", "-a", "/usr/lib/cni/.", plugins).CombinedOutput(); err != nil {
			return fmt.Errorf("copy plugins: %w: %s", err, out)
		}
	}
	return errors.Join(n.writeResolv(), os.WriteFile(first, nil, 0o644))
}

func (n *Node) writeResolv() error {
	return os.WriteFile(n.Path(resolv), []byte("# nothing outside the cluster\n"), 0o644)
}

// Load imports image archives into the node's containerd, which may be starting still.
func (n *Node) Load(ctx context.Context, archives ...string) error {
	err := Eventually(ctx, patience, func() error {
		if _, running := n.Process1(); !running {
			return fmt.Errorf("the machine is off; %s", tail(n.Log(process1), 5))
		}
		_, err := n.Exec(ctx, "ctr", "--address", socket, "version")
		return err
	})
	if err != nil {
		return fmt.Errorf("containerd: %w\n%s", err, n.LogTail("containerd", 10))
	}
	for _, a := range archives {
		if _, err := n.Exec(ctx, "ctr", "--address", socket, "-n", "k8s.io", "images", "import", a); err != nil {
			return fmt.Errorf("image %s: %w", a, err)
		}
	}
	return nil
}

// Tag gives an image that has been loaded another name besides.
func (n *Node) Tag(ctx context.Context, name, alias string) error {
	_, err := n.Exec(ctx, "ctr", "--address", socket, "-n", "k8s.io", "images", "tag", "--force", name, alias)
	return err
}

// PowerOff ends everything that runs on the node, as a power cut does.
func (n *Node) PowerOff() error {
	// Process 1 is outside its own namespace an ordinary process; what is inside ends with it.
	if err := n.Kill(process1); err != nil {
		return err
	}
	return dropCgroups(n.cgroup())
}

// PowerCycle switches the node off without warning, and on again. What is not on its disk is gone.
func (n *Node) PowerCycle(ctx context.Context) error {
	if err := n.PowerOff(); err != nil {
		return err
	}
	if err := n.Reboot(); err != nil {
		return err
	}
	return n.Start(ctx)
}

// Exec runs a program on the node, among its other processes, and returns its standard output.
func (n *Node) Exec(ctx context.Context, name string, args ...string) (string, error) {
	return n.ExecInput(ctx, "", name, args...)
}

// ExecInput is Exec with standard input.
func (n *Node) ExecInput(ctx context.Context, stdin, name string, args ...string) (string, error) {
	pid, running := n.Process1()
	if !running {
		return "", fmt.Errorf("node %s is off", n.Name)
	}
	args = append([]string{"-t", strconv.Itoa(pid), "-n", "-m", "-u", "-i", "-p", name}, args...)
	return run(ctx, stdin, func(f func() error) error { return f() }, "nsenter", args...)
}

// run runs a program in the node's network only.
func (n *Node) run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	return run(ctx, stdin, n.Do, name, args...)
}

func run(ctx context.Context, stdin string, do func(func() error) error, name string, args ...string) (string, error) {
	var out, errout bytes.Buffer
	err := do(func() error {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = "/", &out, &errout
		cmd.Stdin = strings.NewReader(stdin)
		cmd.WaitDelay = time.Second
		return cmd.Run()
	})
	if err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, bytes.TrimSpace(errout.Bytes()))
	}
	return out.String(), nil
}

// Signal sends a signal to one of the node's programs: kubelet, containerd, kube-proxy, and so on. A program
// that ends is started again.
func (n *Node) Signal(ctx context.Context, program, signal string) error {
	raw, err := os.ReadFile(n.Path(filepath.Join(control, program+".pid")))
	if err != nil {
		return err
	}
	_, err = n.Exec(ctx, "kill", "-"+signal, string(raw))
	return err
}

// Restart ends one of the node's programs, gently, and waits until another one runs.
func (n *Node) Restart(ctx context.Context, program string) error {
	file := n.Path(filepath.Join(control, program+".pid"))
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := n.Signal(ctx, program, "TERM"); err != nil {
		return err
	}
	return Eventually(ctx, patience, func() error {
		now, err := os.ReadFile(file)
		if err == nil && string(now) == string(old) {
			err = fmt.Errorf("%s has not ended yet", program)
		}
		return err
	})
}

// Hold ends one of the node's programs and keeps it from being started again until Release.
func (n *Node) Hold(ctx context.Context, program string) error {
	if err := os.WriteFile(n.Path(filepath.Join(control, program+".stop")), nil, 0o644); err != nil {
		return err
	}
	return n.Signal(ctx, program, "KILL")
}

// Release undoes Hold.
func (n *Node) Release(program string) error {
	return os.Remove(n.Path(filepath.Join(control, program+".stop")))
}

// AwaitRegistered waits until the API server knows the node.
func (n *Node) AwaitRegistered(ctx context.Context) error {
	err := Eventually(ctx, patience, func() error {
		_, err := n.cluster.Client.CoreV1().Nodes().Get(ctx, n.Name, meta.GetOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, n.LogTail("kubelet", 20))
	}
	return nil
}

// AwaitReady waits until the node is Ready, which it says at the earliest when it has a pod network.
func (n *Node) AwaitReady(ctx context.Context, within time.Duration) error {
	return Eventually(ctx, within, func() error {
		node, err := n.cluster.Client.CoreV1().Nodes().Get(ctx, n.Name, meta.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == core.NodeReady && c.Status == core.ConditionTrue {
				return nil
			} else if c.Type == core.NodeReady {
				err = errors.New(c.Message)
			}
		}
		return fmt.Errorf("node %s is not Ready: %w", n.Name, err)
	})
}

// Log returns the path of a program's log.
func (n *Node) Log(program string) string { return n.file("log", program+".log") }

// LogTail returns the last lines of a program's log.
func (n *Node) LogTail(program string, lines int) string { return tail(n.Log(program), lines) }

func (n *Node) file(elem ...string) string {
	return n.cluster.file(append([]string{n.Name}, elem...)...)
}
