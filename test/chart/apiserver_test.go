package chart

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const adminToken = "admin-of-the-test"

// A server is a real API server with nothing but an etcd behind it.
type server struct {
	url     string
	client  *http.Client
	program string // kubectl
}

// tool returns the path of a program of Kubernetes: one that make e2e-k8s has built, or one in PATH.
func tool(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(cmp.Or(os.Getenv("WEFT_K8S_CACHE"), "/var/cache/weft-k8s"), "bin", name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("%v: make e2e-k8s builds it", err)
	default:
		t.Skipf("SKIPPED: %v: make e2e-k8s builds it", err)
	}
	return path
}

// startServer runs a real API server.
func startServer(t *testing.T) *server {
	t.Helper()
	program := os.Getenv("WEFT_KUBE_APISERVER")
	if program == "" {
		program = tool(t, "kube-apiserver")
	}
	kubectl := tool(t, "kubectl")
	dir := t.TempDir()
	key := serviceAccountKey(t, dir)
	tokens := filepath.Join(dir, "tokens.csv")
	if err := os.WriteFile(tokens, []byte(adminToken+",admin,admin,system:masters\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	client, peer := freePort(t), freePort(t)
	start(t, filepath.Join(dir, "etcd.log"), "../../bin/weft", "etcd", "--data-dir="+filepath.Join(dir, "etcd"),
		"--listen-client=http://"+client, "--listen-peer=http://"+peer)
	address := freePort(t)
	_, port, _ := net.SplitHostPort(address)
	log := filepath.Join(dir, "kube-apiserver.log")
	start(t, log, program, "--etcd-servers=http://"+client, "--bind-address=127.0.0.1", "--advertise-address=192.0.2.1", "--secure-port="+port,
		"--cert-dir="+filepath.Join(dir, "certs"), "--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+key,
		"--service-account-signing-key-file="+key, "--authorization-mode=RBAC", "--token-auth-file="+tokens,
		"--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged")
	s := &server{url: "https://" + address, program: kubectl, client: &http.Client{Timeout: 20 * time.Second,
		// The certificate is made by the server for itself, at start.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}}
	if !poll(t, 2*time.Minute, func() bool {
		code, _, err := s.do("GET", "/readyz", adminToken, "", nil)
		return err == nil && code == http.StatusOK
	}) {
		raw, _ := os.ReadFile(log)
		t.Fatalf("not ready; its log ends\n%s", raw[max(0, len(raw)-4000):])
	}
	return s
}

func serviceAccountKey(t *testing.T, dir string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "sa.key")
	block := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile(name, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// freePort returns a port below those that the kernel gives to outgoing connections: one of these could have it before
// the server does.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 15000+mathrand.IntN(15000))
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatal("no free port")
	return ""
}

// start runs a program until the test ends.
func start(t *testing.T, log, program string, args ...string) {
	t.Helper()
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		out.Close()
	})
}

func poll(t *testing.T, patience time.Duration, done func() bool) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(200 * time.Millisecond):
		}
	}
	return true
}

func (s *server) do(method, path, token, contentType string, body []byte) (int, []byte, error) {
	req, err := http.NewRequest(method, s.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, raw, err
}

// must sends an object as the administrator and returns the answer.
func (s *server) must(t *testing.T, method, path, contentType, body string) map[string]any {
	t.Helper()
	code, raw, err := s.do(method, path, adminToken, contentType, []byte(body))
	if err != nil || code >= 300 {
		t.Fatalf("%s %s: %d, %v: %s", method, path, code, err, raw)
	}
	var v map[string]any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func (s *server) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(s.program, append([]string{"--server=" + s.url, "--insecure-skip-tls-verify", "--token=" + adminToken}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// agentToken returns a token as the kubelet of a node gets it for the agent's pod there.
func (s *server) agentToken(t *testing.T, node string) string {
	t.Helper()
	pod := s.must(t, "POST", "/api/v1/namespaces/kube-flannel/pods", "application/json", fmt.Sprintf(
		`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"agent-%[1]s"},"spec":{"nodeName":"%[1]s","serviceAccountName":"flannel","containers":[{"name":"c","image":"i"}]}}`, node))
	uid := pod["metadata"].(map[string]any)["uid"]
	return s.token(t, fmt.Sprintf(`,"boundObjectRef":{"apiVersion":"v1","kind":"Pod","name":"agent-%s","uid":"%s"}`, node, uid))
}

func (s *server) token(t *testing.T, bound string) string {
	t.Helper()
	v := s.must(t, "POST", "/api/v1/namespaces/kube-flannel/serviceaccounts/flannel/token", "application/json",
		`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{"expirationSeconds":3600`+bound+`}}`)
	return v["status"].(map[string]any)["token"].(string)
}
