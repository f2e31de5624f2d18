package cluster

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A Pod is a running pod, which also is a place for the lab's probes.
type Pod struct {
	Namespace, Name string
	Node            *Node
	Addrs           []netip.Addr // in the order that Kubernetes has them

	netns string // path, as this process sees it
}

// Pods returns the running pods that a label selector selects, by the names of their nodes.
func (c *Cluster) Pods(ctx context.Context, namespace, selector string) (map[string]*Pod, error) {
	list, err := c.Client.CoreV1().Pods(namespace).List(ctx, meta.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, err
	}
	out := map[string]*Pod{}
	for _, p := range list.Items {
		if p.DeletionTimestamp != nil || p.Status.Phase != core.PodRunning {
			continue
		}
		pod, err := c.pod(p)
		if err != nil {
			return nil, fmt.Errorf("pod %s: %w", p.Name, err)
		}
		out[p.Spec.NodeName] = pod
	}
	return out, nil
}

func (c *Cluster) pod(p core.Pod) (*Pod, error) {
	n, err := c.Node(p.Spec.NodeName)
	if err != nil {
		return nil, err
	}
	pod := &Pod{Namespace: p.Namespace, Name: p.Name, Node: n}
	for _, ip := range p.Status.PodIPs {
		a, err := netip.ParseAddr(ip.IP)
		if err != nil {
			return nil, err
		}
		pod.Addrs = append(pod.Addrs, a)
	}
	if len(p.Status.ContainerStatuses) == 0 {
		return nil, fmt.Errorf("no container has been started")
	}
	_, id, ok := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "containerd://")
	if !ok {
		return nil, fmt.Errorf("container %q", p.Status.ContainerStatuses[0].ContainerID)
	}
	// containerd's shim writes the process number, which is one of the node's.
	raw, err := os.ReadFile(n.Path(filepath.Join("/run/containerd/io.containerd.runtime.v2.task/k8s.io", id, "init.pid")))
	if err != nil {
		return nil, err
	}
	outer, running := n.Process1()
	if !running {
		return nil, fmt.Errorf("node %s is off", n.Name)
	}
	pod.netns = filepath.Join("/proc", strconv.Itoa(outer), "root/proc", strings.TrimSpace(string(raw)), "ns/net")
	return pod, nil
}

// Do calls f on a thread inside the pod's network namespace.
func (p *Pod) Do(f func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime discards the thread
		errc <- func() error {
			fd, err := unix.Open(p.netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("pod %s: %w", p.Name, err)
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter pod %s: %w", p.Name, err)
			}
			return f()
		}()
	}()
	return <-errc
}

// Exec runs a program in the first container of the pod, through the API server and the kubelet.
func (p *Pod) Exec(ctx context.Context, argv ...string) (string, error) {
	args := append([]string{"exec", "-n", p.Namespace, p.Name, "--"}, argv...)
	return p.Node.cluster.Kubectl(ctx, args...)
}

// Dial connects from a place to an address with a port; names are not resolved.
func Dial(ctx context.Context, at interface{ Do(func() error) error }, network, address string) (conn net.Conn, err error) {
	err = at.Do(func() error {
		// With an address, no name, the socket is made by this thread.
		conn, err = (&net.Dialer{Timeout: 15 * time.Second}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}
