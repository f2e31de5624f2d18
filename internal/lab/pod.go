package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// A Pod is a network namespace on a node, attached by the CNI plugins of the node's conflist.
type Pod struct {
	Name string
	Node *Node
	Addr family.Pair[netip.Addr] // as the plugins reported; zero: none

	gateways []netip.Addr // as the plugins reported to AddPod
}

// podDevice is the name of a pod's device, as every runtime calls it.
const podDevice = "eth0"

// AddPod makes a pod the way a container runtime does: a network namespace, then every plugin of the
// conflist in turn.
func (n *Node) AddPod(ctx context.Context, name string) (*Pod, error) {
	if !nameForm.MatchString(name) {
		return nil, fmt.Errorf("pod name %q: letters, digits and inner hyphens only, 63 at most", name)
	}
	if _, err := n.lab.Pod(name); err == nil {
		return nil, fmt.Errorf("a pod is called %q already", name)
	}
	p := &Pod{Name: name, Node: n}
	// A thread cannot go back from the new namespace, so the plugins are called from another one.
	if err := n.Do(func() error { return makeNet(p.netns()) }); err != nil {
		return nil, fmt.Errorf("pod %s: %w", name, err)
	}
	err := n.Do(func() error { return p.attach(ctx) })
	if err == nil {
		err = p.awaitGateway()
	}
	if err == nil {
		err = writeJSON(n.file("pods", name+".json"), p.Addr)
	}
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", name, errors.Join(err, p.Delete(ctx)))
	}
	return p, nil
}

// attach calls the plugins with ADD, on a thread inside the node.
func (p *Pod) attach(ctx context.Context) error {
	list, err := libcni.NetworkConfFromFile(confFile)
	if err != nil {
		return fmt.Errorf("%s: %w", confFile, err)
	}
	result, err := p.cni().AddNetworkList(ctx, list, p.runtime())
	if err != nil {
		return fmt.Errorf("CNI ADD: %w", err)
	}
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return fmt.Errorf("CNI result: %w", err)
	}
	for _, ip := range r.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return fmt.Errorf("CNI result: address %v", ip.Address)
		}
		*p.Addr.Ref(family.Of(a.Unmap())) = a.Unmap()
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok {
			p.gateways = append(p.gateways, gw.Unmap())
		}
	}
	return nil
}

// awaitGateway waits until the pod reaches its node. The kernel lets packets through a new bridge or veth up
// to a second late (see awaitLink), which in a cluster passes unnoticed while the container starts.
func (p *Pod) awaitGateway() error {
	for _, gw := range p.gateways {
		deadline := time.Now().Add(30 * time.Second)
		for {
			_, err := Ping(p, gw, 100*time.Millisecond)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("its gateway does not answer: %w", err)
			}
		}
	}
	return nil
}

// Delete calls the plugins with DEL and removes the pod's namespace. It carries on past a failure.
func (p *Pod) Delete(ctx context.Context) error {
	return p.Node.Do(func() error {
		var errs []error
		list, err := libcni.NetworkConfFromFile(confFile)
		if err == nil {
			err = p.cni().DelNetworkList(ctx, list, p.runtime())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("CNI DEL: %w", err))
		}
		if err := unix.Unmount(p.netns(), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p.netns(), err))
		}
		return errors.Join(append(errs, remove(p.netns()), remove(p.Node.file("pods", p.Name+".json")))...)
	})
}

// Check calls the plugins with CHECK.
func (p *Pod) Check(ctx context.Context) error {
	return p.Node.Do(func() error {
		list, err := libcni.NetworkConfFromFile(confFile)
		if err != nil {
			return err
		}
		return p.cni().CheckNetworkList(ctx, list, p.runtime())
	})
}

func (p *Pod) cni() *libcni.CNIConfig { return libcni.NewCNIConfig([]string{pluginDir}, nil) }

func (p *Pod) runtime() *libcni.RuntimeConf {
	id := sha256.Sum256([]byte(p.Node.lab.Options.Name + "/" + p.Name)) // as long as a runtime's IDs
	return &libcni.RuntimeConf{
		ContainerID: hex.EncodeToString(id[:]),
		NetNS:       p.netns(),
		IfName:      podDevice,
		Args:        [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "lab"}, {"K8S_POD_NAME", p.Name}},
	}
}

// netns is where the node sees the pod's namespace.
func (p *Pod) netns() string { return filepath.Join(netnsDir, p.Name) }

// Do calls f on a thread in the pod's network namespace and the node's other namespaces.
func (p *Pod) Do(f func() error) error {
	return p.Node.Do(func() error {
		if err := enterNet(p.netns()); err != nil {
			return err
		}
		return f()
	})
}

// Exec runs a program in the pod and returns what it prints on standard output.
func (p *Pod) Exec(ctx context.Context, name string, args ...string) (string, error) {
	return execute(ctx, p.Do, name, args...)
}

// Addrs returns the addresses that the pod has, IPv4 first.
func (p *Pod) Addrs() []netip.Addr { return valid(p.Addr) }

// Pods returns the pods of the node, ordered by name.
func (n *Node) Pods() ([]*Pod, error) {
	files, err := filepath.Glob(n.file("pods", "*.json")) // sorted
	if err != nil {
		return nil, err
	}
	var pods []*Pod
	for _, f := range files {
		p := &Pod{Name: strings.TrimSuffix(filepath.Base(f), ".json"), Node: n}
		if err := readJSON(f, &p.Addr); err != nil {
			return nil, err
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// Pods returns all pods of the lab, node by node.
func (l *Lab) Pods() ([]*Pod, error) {
	var all []*Pod
	for _, n := range l.Nodes {
		pods, err := n.Pods()
		if err != nil {
			return nil, err
		}
		all = append(all, pods...)
	}
	return all, nil
}

// Pod returns the pod called name, which may be written NODE/POD.
func (l *Lab) Pod(name string) (*Pod, error) {
	pods, err := l.Pods()
	if err != nil {
		return nil, err
	}
	for _, p := range pods {
		if p.Name == name || p.Node.Name+"/"+p.Name == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no pod is called %q: %w", name, os.ErrNotExist)
}
