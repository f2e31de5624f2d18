package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	rbac "k8s.io/api/rbac/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weftnet/weft/internal/lab"
)

// A Cluster is a running cluster.
type Cluster struct {
	Options Options
	Nodes   []*Node // the control plane's first
	Client  *kubernetes.Clientset

	lab *lab.Lab
}

// poll is how often the harness looks whether something that it waits for has happened.
const poll = 100 * time.Millisecond

// patience is for what takes seconds, on a machine that is busy.
const patience = 4 * time.Minute

// Up makes a cluster and returns when all nodes have registered; they become Ready with a pod network. What a
// failed Up leaves is for Down to remove.
func Up(ctx context.Context, o Options) (*Cluster, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	weft := o.program("weft")
	l, err := lab.Up(ctx, lab.Options{Name: o.Name, Base: Base, Segments: o.Segments, Family: o.Family,
		Weft: weft, Flanneld: weft, Flannel: weft, NoEtcd: true, NoAgents: true})
	if err != nil {
		return nil, err
	}
	c := assemble(o, l)
	if err := os.MkdirAll(c.file(), 0o755); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.WriteFile(c.file("options.json"), raw, 0o644), c.makePKI()); err != nil {
		return nil, err
	}
	if c.Client, err = c.client(); err != nil {
		return nil, err
	}
	err = c.EachNode(func(n *Node) error {
		if slices.Contains(o.Idle, n.Name) {
			return nil
		}
		return n.Start(ctx)
	})
	if err != nil {
		return c, err
	}
	return c, c.awaitNodes(ctx)
}

// Open returns a cluster that another process made.
func Open(name string) (*Cluster, error) {
	l, err := lab.Open(Base, name)
	if err != nil {
		return nil, err
	}
	c := assemble(Options{Name: name}, l)
	raw, err := os.ReadFile(c.file("options.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &c.Options); err != nil {
		return nil, err
	}
	c.Client, err = c.client()
	return c, err
}

func assemble(o Options, l *lab.Lab) *Cluster {
	c := &Cluster{Options: o, lab: l}
	for _, n := range l.Nodes {
		c.Nodes = append(c.Nodes, &Node{Node: n, cluster: c})
	}
	return c
}

// Down removes the cluster called name, even one that was only half made. It is no error if there is none.
func Down(name string) error {
	err := lab.Down(Base, name)
	if errors.Is(err, lab.ErrNone) {
		err = nil
	}
	return errors.Join(err, dropCgroups(cgroupParent+name))
}

// Names lists the clusters that are there.
func Names() ([]string, error) { return lab.Names(Base) }

// Down removes the cluster.
func (c *Cluster) Down() error { return Down(c.Options.Name) }

// Node returns the node called name.
func (c *Cluster) Node(name string) (*Node, error) {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("no node is called %q", name)
}

// Router is the place between the segments, from where nodes are reached as from outside.
func (c *Cluster) Router() lab.Place { return c.lab }

// OnRouter runs a program on the router.
func (c *Cluster) OnRouter(ctx context.Context, name string, args ...string) (string, error) {
	return c.lab.Exec(ctx, name, args...)
}

func (c *Cluster) controlPlane() *Node { return c.Nodes[0] }

func (c *Cluster) server() string {
	return "https://" + c.controlPlane().Addrs()[0].String() + ":6443"
}

// file returns the path of a file of the cluster. The lab's directory goes as a whole.
func (c *Cluster) file(elem ...string) string {
	return filepath.Join(append([]string{Base, c.Options.Name, "k8s"}, elem...)...)
}

func (c *Cluster) kubeconfig(user string) string { return c.file("pki", user+".kubeconfig") }

// Config returns the administrator's access to the API server, for clients in this process.
func (c *Cluster) Config() (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig(adminUser))
	if err != nil {
		return nil, err
	}
	cfg.Dial = c.controlPlane().Dial // out of this machine's network, into that of the node
	cfg.QPS, cfg.Burst = 500, 1000
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	return cfg, nil
}

func (c *Cluster) client() (*kubernetes.Clientset, error) {
	cfg, err := c.Config()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(cfg)
}

// Kubectl runs kubectl as the administrator.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.kubectl(ctx, "", args...)
}

// Apply hands a manifest to kubectl.
func (c *Cluster) Apply(ctx context.Context, manifest string) error {
	_, err := c.kubectl(ctx, manifest, "apply", "-f", "-")
	return err
}

// Delete deletes what a manifest names, and waits.
func (c *Cluster) Delete(ctx context.Context, manifest string) error {
	_, err := c.kubectl(ctx, manifest, "delete", "--ignore-not-found", "-f", "-")
	return err
}

func (c *Cluster) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	args = append([]string{"--kubeconfig=" + c.kubeconfig(adminUser), "--cache-dir=" + c.file("kubectl-cache")}, args...)
	return c.controlPlane().run(ctx, stdin, c.Options.program("kubectl"), args...)
}

// EachNode calls f for all nodes at once.
func (c *Cluster) EachNode(f func(*Node) error) error {
	errs := make([]error, len(c.Nodes))
	var wg sync.WaitGroup
	for i, n := range c.Nodes {
		wg.Go(func() {
			if err := f(n); err != nil {
				errs[i] = fmt.Errorf("node %s: %w", n.Name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// awaitNodes waits until the API server works and all nodes have registered.
func (c *Cluster) awaitNodes(ctx context.Context) error {
	err := Eventually(ctx, patience, func() error {
		_, err := c.Client.RbacV1().ClusterRoles().Get(ctx, "system:node-proxier", meta.GetOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("API server: %w\n%s", err, c.controlPlane().LogTail("kube-apiserver", 20))
	}
	_, err = c.Client.RbacV1().ClusterRoleBindings().Create(ctx, &rbac.ClusterRoleBinding{
		ObjectMeta: meta.ObjectMeta{Name: "weft-test:kube-proxy"},
		RoleRef:    rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: "system:node-proxier"},
		Subjects:   []rbac.Subject{{APIGroup: rbac.GroupName, Kind: rbac.UserKind, Name: "system:kube-proxy"}},
	}, meta.CreateOptions{})
	if err != nil {
		return err
	}
	return c.EachNode(func(n *Node) error {
		if slices.Contains(c.Options.Idle, n.Name) {
			return nil
		}
		return n.AwaitRegistered(ctx)
	})
}

// Eventually calls f until it returns nil.
func Eventually(ctx context.Context, within time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w", within, err)
		case <-time.After(poll):
		}
	}
}

// dropCgroups removes a cgroup and those below it from every hierarchy, once their processes are gone.
func dropCgroups(path string) error {
	return Eventually(context.Background(), patience, func() error {
		tops, err := filepath.Glob("/sys/fs/cgroup/*" + path)
		if err != nil {
			return err
		}
		var errs []error
		for _, top := range append(tops, "/sys/fs/cgroup"+path) {
			var dirs []string
			err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, p)
				}
				return err
			})
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
			for _, d := range slices.Backward(dirs) {
				errs = append(errs, os.Remove(d))
			}
		}
		return errors.Join(errs...)
	})
}

// tail returns the last lines of a file.
func tail(file string, lines int) string {
	raw, err := os.ReadFile(file)
	if err != nil {
		return "(no log: " + err.Error() + ")"
	}
	all := strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n") + "\n(whole log: " + file + ")"
}
