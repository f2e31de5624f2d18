package cluster

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/test/k8s/machine"
)

// Paths inside a node.
const (
	socket  = "/run/containerd/containerd.sock"
	control = "/run/machine-control"
	loaded  = control + "/loaded" // kubelet waits for it
	resolv  = "/run/resolv.conf"
)

// spec returns what the node's process 1 makes and runs.
func (n *Node) spec() (machine.Spec, error) {
	containerd, err := exec.LookPath("containerd")
	if err != nil {
		return machine.Spec{}, err
	}
	mounts, err := n.mounts()
	if err != nil {
		return machine.Spec{}, err
	}
	s := machine.Spec{
		Name: n.Name, Mounts: mounts, Cgroup: n.cgroup(), Control: control,
		Sysctls: map[string]string{
			"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
			"net/bridge/bridge-nf-call-iptables": "1", "net/bridge/bridge-nf-call-ip6tables": "1",
		},
		// The kubelet sets these for the whole machine.
		Shields: map[string]string{
			"/proc/sys/vm/overcommit_memory": "1", "/proc/sys/vm/panic_on_oom": "0",
			"/proc/sys/kernel/panic": "10", "/proc/sys/kernel/panic_on_oops": "1",
		},
	}
	s.Programs = append(s.Programs, machine.Program{Name: "containerd", Argv: []string{containerd, "--config", n.file("containerd.toml")}})
	if n == n.cluster.controlPlane() {
		programs, err := n.cluster.controlPrograms()
		if err != nil {
			return s, err
		}
		s.Programs = append(s.Programs, programs...)
	}
	s.Programs = append(s.Programs, n.kubelet())
	if n.cluster.Options.Proxy != "none" {
		s.Programs = append(s.Programs, machine.Program{Name: "kube-proxy", After: []string{loaded},
			Argv: []string{n.cluster.Options.program("kube-proxy"), "--config", n.file("proxy.yaml")}})
	}
	for i := range s.Programs {
		s.Programs[i].Log = n.Log(s.Programs[i].Name)
	}
	return s, nil
}

func (n *Node) kubelet() machine.Program {
	var addrs []string
	for _, a := range n.Addrs() {
		addrs = append(addrs, a.String())
	}
	return machine.Program{Name: "kubelet", After: []string{socket, loaded}, Argv: []string{
		n.cluster.Options.program("kubelet"),
		"--config=" + n.file("kubelet.yaml"), "--kubeconfig=" + n.cluster.kubeconfig("node-"+n.Name),
		"--hostname-override=" + n.Name, "--node-ip=" + strings.Join(addrs, ","), "--v=2",
	}}
}

// mounts are the node's own directories, over what the lab has laid out.
func (n *Node) mounts() ([]machine.Mount, error) {
	mounts := []machine.Mount{{Source: "proc", Target: "/proc", Type: "proc"}}
	groups, err := cgroupMounts()
	if err != nil {
		return nil, err
	}
	mounts = append(mounts, groups...)
	for _, dir := range []string{"/var/log", "/opt/cni"} {
		own := filepath.Join(n.file("own"), dir)
		if err := os.MkdirAll(own, 0o755); err != nil {
			return nil, err
		}
		mounts = append(mounts, machine.Mount{Source: own, Target: dir, Flags: unix.MS_BIND})
	}
	if n == n.cluster.controlPlane() {
		// Not on a disk: quick, and gone afterwards.
		mounts = append(mounts, machine.Mount{Source: "etcd", Target: etcdDir, Type: "tmpfs", Data: "size=3g,mode=700"})
	}
	return mounts, nil
}

// cgroupMounts are this machine's cgroup hierarchies, for a /sys that has none.
func cgroupMounts() ([]machine.Mount, error) {
	raw, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var out []machine.Mount
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[1], "/sys/fs/cgroup") {
			continue
		}
		m := machine.Mount{Source: f[0], Target: f[1], Type: f[2]}
		switch m.Type {
		case "tmpfs":
			m.Data = "mode=755"
		case "cgroup":
			m.Data = hierarchy(f[3])
		case "cgroup2":
		default:
			continue
		}
		out = append(out, m)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no cgroups below /sys/fs/cgroup")
	}
	return out, nil
}

// hierarchy returns those of a version 1 mount's options that say which hierarchy it is.
func hierarchy(options string) string {
	var keep []string
	for o := range strings.SplitSeq(options, ",") {
		switch o {
		case "rw", "ro", "relatime", "noatime", "nosuid", "nodev", "noexec", "xattr", "clone_children":
		default:
			if !strings.HasPrefix(o, "release_agent=") {
				keep = append(keep, o)
			}
		}
	}
	return strings.Join(keep, ",")
}

// cgroup is the parent of the cgroups of the node's pods.
func (n *Node) cgroup() string { return cgroupParent + n.cluster.Options.Name + "/" + n.Name }

const (
	cgroupParent = "/weft-"
	etcdDir      = "/run/etcd"
	etcdURL      = "http://127.0.0.1:2379"
)

// controlPrograms are the programs of the control plane.
func (c *Cluster) controlPrograms() ([]machine.Program, error) {
	o := c.Options
	pki := func(file string) string { return c.file("pki", file) }
	addr := c.controlPlane().Addrs()[0].String()
	programs := []machine.Program{{Name: "etcd", Argv: []string{o.program("weft"), "etcd", "--data-dir=" + etcdDir}}}
	programs = append(programs, machine.Program{Name: "kube-apiserver", Argv: []string{o.program("kube-apiserver"),
		"--advertise-address=" + addr, "--secure-port=6443", "--etcd-servers=" + etcdURL,
		"--tls-cert-file=" + pki(apiCert+".crt"), "--tls-private-key-file=" + pki(apiCert+".key"),
		"--client-ca-file=" + pki("ca.crt"),
		"--kubelet-client-certificate=" + pki(kubeletClient+".crt"), "--kubelet-client-key=" + pki(kubeletClient+".key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + pki("sa.pub"), "--service-account-signing-key-file=" + pki("sa.key"),
		"--service-cluster-ip-range=" + o.serviceCIDR(),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
	}})
	programs = append(programs, machine.Program{Name: "kube-controller-manager", Argv: []string{o.program("kube-controller-manager"),
		"--kubeconfig=" + c.kubeconfig(controllerUser), "--leader-elect=false",
		"--allocate-node-cidrs", "--cluster-cidr=" + o.podCIDR(), "--service-cluster-ip-range=" + o.serviceCIDR(),
		"--root-ca-file=" + pki("ca.crt"), "--service-account-private-key-file=" + pki("sa.key"),
		"--cluster-signing-cert-file=" + pki("ca.crt"), "--cluster-signing-key-file=" + pki("ca.key"),
		"--use-service-account-credentials",
	}})
	programs = append(programs, machine.Program{Name: "kube-scheduler", Argv: []string{o.program("kube-scheduler"),
		"--kubeconfig=" + c.kubeconfig(schedulerUser), "--leader-elect=false"}})
	return programs, nil
}

// writeConfigs writes the configuration files of the node's programs.
func (n *Node) writeConfigs() error {
	o := n.cluster.Options
	taints := "[]"
	if n == n.cluster.controlPlane() {
		taints = "[{key: node-role.kubernetes.io/control-plane, effect: NoSchedule}]"
	}
	files := map[string]string{
		"containerd.toml": fmt.Sprintf(containerdConfig, socket, PauseImage),
		"kubelet.yaml":    fmt.Sprintf(kubeletConfig, socket, n.cgroup(), n.cluster.file("pki", "ca.crt"), o.DNS(), resolv, taints),
		"proxy.yaml":      fmt.Sprintf(proxyConfig, cmp.Or(o.Proxy, "nftables"), o.podCIDR(), n.Name, n.cluster.kubeconfig(proxyUser)),
	}
	for name, content := range files {
		if err := os.WriteFile(n.file(name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// OOM scores below one's own need CAP_SYS_RESOURCE, which not every machine grants: hence
// restrict_oom_score_adj here and oomScoreAdj in the kubelet's.
const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
`

// A search domain in resolvConf would reach pods, and CoreDNS refuses names outside its zones.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://%s
cgroupDriver: cgroupfs
cgroupRoot: %s
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: [pods]
oomScoreAdj: 0
maxOpenFiles: 20000
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %s}
authorization: {mode: Webhook}
clusterDomain: cluster.local
clusterDNS: [%s]
resolvConf: %s
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi, nodefs.available: 1%%, imagefs.available: 1%%}
nodeStatusUpdateFrequency: 5s
registerWithTaints: %s
`

// The sizes of conntrack's table belong to the machine and cannot be set from a network namespace: 0 leaves
// them alone.
const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
clusterCIDR: %s
hostnameOverride: %s
clientConnection: {kubeconfig: %s}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`
