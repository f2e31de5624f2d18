package cni

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weftnet/weft/internal/netnstest"
)

const (
	criSocket = "/run/containerd/containerd.sock"
	podImage  = "weft.test/pod:1"
)

// containerd and runc run real pod sandboxes with an otherwise empty CNI directory, after "flannel install".
func TestContainerdRunsPods(t *testing.T) {
	if !asNode(t) {
		return
	}
	netnstest.Need(t, "containerd", "containerd")
	netnstest.Need(t, "runc", "runc")
	netnstest.Need(t, "unshare", "util-linux")
	n := newNode(t, dualEnv)
	client := outside(t)
	bin, conf := t.TempDir(), t.TempDir()
	out, err := exec.Command(pluginPath, "install", "--bin-dir", bin, "--conf-dir", conf).CombinedOutput()
	if err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	log := startContainerd(t, bin, conf)
	defer func() {
		if t.Failed() {
			t.Logf("containerd:\n%s", log())
		}
	}()
	importImage(t)
	a := runSandbox(t, "a", 8080)
	b := runSandbox(t, "b", 8081)
	for i, addr := range sandboxAddresses(t, a) {
		eventually(t, fmt.Sprintf("pod a answers at %s", addr), func() bool {
			_, err := ask(here, "tcp", netip.AddrPortFrom(addr, 80))
			return err == nil
		})
		if got, err := read(netip.AddrPortFrom(addr, 81)); got != "127.0.0.1" {
			t.Errorf("localhost inside the pod (address %d): %q, %v", i, got, err)
		}
	}
	for port, want := range map[uint16]string{8080: "192.0.2.2", 8081: "192.0.2.2"} {
		var seen netip.Addr
		eventually(t, fmt.Sprintf("hostPort %d answers", port), func() (ok bool) {
			seen, err = ask(client.do, "tcp", netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port))
			return err == nil
		})
		if seen.String() != want {
			t.Errorf("hostPort %d from outside: the pod sees %s", port, seen)
		}
	}
	for _, id := range []string{a, b} {
		cri(t, "StopPodSandbox", protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), id))
		cri(t, "RemovePodSandbox", protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), id))
	}
	n.wantClean()
}

// startContainerd runs a containerd of the test's own, in a process namespace that goes with it. It returns
// what reads its log.
func startContainerd(t *testing.T, bin, conf string) func() string {
	t.Helper()
	dir := t.TempDir()
	config := fmt.Sprintf(`version = 2
root = "/run/containerd-root"
state = "/run/containerd"
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        NoPivotRoot = true
`, criSocket, podImage, bin, conf)
	path, logPath := filepath.Join(dir, "config.toml"), filepath.Join(dir, "log")
	must(t, os.WriteFile(path, []byte(config), 0o600))
	logFile, err := os.Create(logPath)
	must(t, err)
	cmd := exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "containerd", "--config", path)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	runtime.LockOSThread() // the parent that Pdeathsig means is this thread
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); logFile.Close() })
	log := func() string { raw, _ := os.ReadFile(logPath); return string(raw) }
	deadline := time.Now().Add(60 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, err := invokeCRI(ctx, "Version", nil)
		cancel()
		if err == nil {
			return log
		}
		if time.Now().After(deadline) {
			t.Fatalf("containerd does not answer: %v\n%s", err, log())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// importImage makes the image of one program and gives it to containerd.
func importImage(t *testing.T) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "podserver")
	build := exec.Command("go", "build", "-o", program, "github.com/weftnet/weft/test/cni/podserver")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	content, err := os.ReadFile(program)
	must(t, err)
	layer := archive(t, map[string][]byte{"podserver": content})
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/podserver"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	must(t, err)
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{podImage}, "Layers": []string{"layer.tar"}}})
	must(t, err)
	path := filepath.Join(t.TempDir(), "image.tar")
	image := archive(t, map[string][]byte{"manifest.json": manifest, "config.json": config, "layer.tar": layer})
	must(t, os.WriteFile(path, image, 0o600))
	netnstest.Command(t, "ctr", "--address", criSocket, "--namespace", "k8s.io", "images", "import", "--no-unpack", path)
}

func archive(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}))
		_, err := w.Write(content)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// runSandbox starts a pod with one hostPort and returns its id. The messages are those of the Container
// Runtime Interface, runtime/v1/api.proto.
func runSandbox(t *testing.T, name string, hostPort uint64) string {
	t.Helper()
	text := func(b []byte, field protowire.Number, s string) []byte {
		return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
	}
	message := func(b []byte, field protowire.Number, m []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), m)
	}
	number := func(b []byte, field protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
	}
	metadata := text(text(text(nil, 1, name), 2, "uid-"+name), 3, "default")
	port := number(number(number(nil, 1, 0), 2, 80), 3, hostPort)
	config := message(text(text(message(nil, 1, metadata), 2, name), 3, t.TempDir()), 5, port)
	config = message(config, 8, nil)
	answer := cri(t, "RunPodSandbox", message(nil, 1, config))
	_, _, n := protowire.ConsumeTag(answer)
	id, _ := protowire.ConsumeString(answer[n:])
	return id
}

// sandboxAddresses reads the addresses of a pod where IPAM keeps them.
func sandboxAddresses(t *testing.T, id string) []netip.Addr {
	t.Helper()
	entries, err := os.ReadDir(ipamDir)
	must(t, err)
	var addrs []netip.Addr
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join(ipamDir, e.Name()))
		if a, parseErr := netip.ParseAddr(e.Name()); parseErr == nil && err == nil && strings.HasPrefix(string(raw), id) {
			addrs = append(addrs, a)
		}
	}
	if len(addrs) != 2 {
		t.Fatalf("sandbox %s has addresses %s", id, addrs)
	}
	return addrs
}

func cri(t *testing.T, method string, request []byte) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	answer, err := invokeCRI(ctx, method, request)
	if err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	return answer
}

// invokeCRI makes one call of the Container Runtime Interface with messages as they are on the wire.
func invokeCRI(ctx context.Context, method string, request []byte) ([]byte, error) {
	conn, err := grpc.NewClient("unix://"+criSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var answer []byte
	err = conn.Invoke(ctx, "/runtime.v1.RuntimeService/"+method, &request, &answer, grpc.ForceCodec(wire{}))
	return answer, err
}

// wire is the codec for messages that are encoded already.
type wire struct{}

func (wire) Name() string                      { return "proto" }
func (wire) Marshal(v any) ([]byte, error)     { return *v.(*[]byte), nil }
func (wire) Unmarshal(raw []byte, v any) error { *v.(*[]byte) = bytes.Clone(raw); return nil }

func read(from netip.AddrPort) (string, error) {
	c, err := net.DialTimeout("tcp", from.String(), 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	raw, err := io.ReadAll(c)
	return string(raw), err
}
