package kube_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/etcdserver"
)

const patience = time.Minute

// The accounts that the API server of the tests knows: one that may do all, and flannel's.
const (
	adminToken   = "admin-token"
	flannelToken = "flannel-token"
	flannelUser  = "system:serviceaccount:kube-flannel:flannel"
)

// An apiServer is a real kube-apiserver on loopback with an etcd of its own.
type apiServer struct {
	url  string
	http *http.Client
	dir  string
}

// startAPIServer starts one for the test.
func startAPIServer(t *testing.T, flags ...string) *apiServer {
	t.Helper()
	program := os.Getenv("WEFT_KUBE_APISERVER")
	if program == "" {
		program = cmp.Or(os.Getenv("WEFT_K8S_CACHE"), "/var/cache/weft-k8s") + "/bin/kube-apiserver" // where make e2e-k8s leaves it
	}
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("WEFT_KUBE_APISERVER") == "" {
			t.Skip("SKIPPED: no kube-apiserver; make e2e-k8s builds one and runs this")
		}
		t.Fatalf("WEFT_KUBE_APISERVER: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	etcd, err := etcdserver.Start(ctx, etcdserver.Options{
		DataDir: t.TempDir(), ListenClient: []string{"http://127.0.0.1:0"}, ListenPeer: []string{"http://127.0.0.1:0"}, Volatile: true,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)

	dir, port := t.TempDir(), freePort(t)
	a := &apiServer{
		url: fmt.Sprintf("https://127.0.0.1:%d", port), dir: dir,
		http: &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 16}},
	}
	write(t, a.file("tokens.csv"), adminToken+`,admin,1,"system:masters"`+"\n"+flannelToken+","+flannelUser+`,2,"system:serviceaccounts"`+"\n")
	write(t, a.file("sa.key"), newKey(t))
	log, err := os.Create(a.file("log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, append([]string{
		"--etcd-servers=" + etcd.Endpoints()[0], "--cert-dir=" + dir, fmt.Sprintf("--secure-port=%d", port), "--bind-address=127.0.0.1",
		"--service-cluster-ip-range=10.96.0.0/16", "--token-auth-file=" + a.file("tokens.csv"), "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + a.file("sa.key"),
		"--service-account-signing-key-file=" + a.file("sa.key"), "--disable-admission-plugins=ServiceAccount",
		"--watch-cache=true", "--profiling=false",
	}, flags...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() {
		exited <- cmd.Wait()
		close(exited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
	})
	a.waitReady(t, exited)
	return a
}

func (a *apiServer) file(name string) string { return filepath.Join(a.dir, name) }

func (a *apiServer) waitReady(t *testing.T, exited <-chan error) {
	t.Helper()
	deadline := time.Now().Add(3 * time.Minute) // alone it takes five seconds
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if code, _ := a.try(t, http.MethodGet, "/readyz", adminToken, nil); code == http.StatusOK {
			return
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(a.file("log"))
			t.Fatalf("kube-apiserver is not ready; its log ends with\n%s", text[max(0, len(text)-3000):])
		}
		select {
		case <-tick.C:
		case err := <-exited:
			text, _ := os.ReadFile(a.file("log"))
			t.Fatalf("kube-apiserver: %v\n%s", err, text[max(0, len(text)-3000):])
		}
	}
}

// try makes a request and returns the status code, 0 for no answer, and the body.
func (a *apiServer) try(t testing.TB, method, path, token string, body []byte) (int, []byte) {
	req, err := http.NewRequestWithContext(context.Background(), method, a.url+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/strategic-merge-patch+json")
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil
	}
	return resp.StatusCode, text
}

// do makes a request as the administrator; v is sent as JSON unless it is nil or a string, which is sent as it is.
func (a *apiServer) do(t testing.TB, method, path string, v any) []byte {
	t.Helper()
	var body []byte
	if s, ok := v.(string); ok {
		body = []byte(s)
	} else if v != nil {
		var err error
		if body, err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
	}
	code, text := a.try(t, method, path, adminToken, body)
	if code < 200 || code > 299 {
		t.Fatalf("%s %s: %d %s", method, path, code, text)
	}
	return text
}

// kubeconfig writes one for the account with the token.
func (a *apiServer) kubeconfig(t testing.TB, url, token string) string {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	write(t, path, fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"x",
		"clusters":[{"name":"x","cluster":{"server":%q,"insecure-skip-tls-verify":true}}],
		"users":[{"name":"x","user":{"token":%q}}],
		"contexts":[{"name":"x","context":{"cluster":"x","user":"x"}}]}`, url, token))
	return path
}

// grant gives flannel's account the rights that its manifest grants, and no other.
func (a *apiServer) grant(t testing.TB) {
	t.Helper()
	a.do(t, http.MethodPost, "/apis/rbac.authorization.k8s.io/v1/clusterroles", `{"metadata":{"name":"flannel"},"rules":[
		{"apiGroups":[""],"resources":["pods"],"verbs":["get"]},
		{"apiGroups":[""],"resources":["nodes"],"verbs":["get","list","watch"]},
		{"apiGroups":[""],"resources":["nodes/status"],"verbs":["patch"]}]}`)
	a.do(t, http.MethodPost, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", `{"metadata":{"name":"flannel"},
		"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"flannel"},
		"subjects":[{"kind":"ServiceAccount","name":"flannel","namespace":"kube-flannel"}]}`)
}

// object is a Node as the tests look at it.
type object struct {
	Metadata struct {
		Name            string            `json:"name"`
		ResourceVersion string            `json:"resourceVersion"`
		Annotations     map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		PodCIDR  string   `json:"podCIDR"`
		PodCIDRs []string `json:"podCIDRs"`
	} `json:"spec"`
	Status struct {
		Conditions []struct{ Type, Status, Reason, Message string } `json:"conditions"`
	} `json:"status"`
}

func (a *apiServer) node(t testing.TB, name string) object {
	t.Helper()
	var o object
	if err := json.Unmarshal(a.do(t, http.MethodGet, "/api/v1/nodes/"+name, nil), &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// createNode makes a Node; without CIDRs it has no subnet.
func (a *apiServer) createNode(t testing.TB, name string, cidrs ...string) {
	t.Helper()
	spec := map[string]any{}
	if len(cidrs) > 0 {
		spec["podCIDR"], spec["podCIDRs"] = cidrs[0], cidrs
	}
	a.do(t, http.MethodPost, "/api/v1/nodes", map[string]any{"metadata": map[string]any{"name": name}, "spec": spec})
}

func (a *apiServer) deleteNode(t testing.TB, name string) {
	t.Helper()
	a.do(t, http.MethodDelete, "/api/v1/nodes/"+name, nil)
}

// annotate writes annotations as somebody else would; nil removes one.
func (a *apiServer) annotate(t testing.TB, name, prefix string, annotations map[string]*string) {
	t.Helper()
	full := map[string]*string{}
	for k, v := range annotations {
		full[prefix+k] = v
	}
	a.do(t, http.MethodPatch, "/api/v1/nodes/"+name, map[string]any{"metadata": map[string]any{"annotations": full}})
}

// setStatus patches the status of a Node as the kubelet does.
func (a *apiServer) setStatus(t testing.TB, name, status string) {
	t.Helper()
	a.do(t, http.MethodPatch, "/api/v1/nodes/"+name+"/status", `{"status":`+status+`}`)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		<-tick.C
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newKey(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

// freePort returns a port below those that the kernel gives to outgoing connections: one of these could have it before
// the server does.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 15000 + mathrand.IntN(15000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// A gate is a TCP proxy that can be shut.
type gate struct {
	net.Listener
	to    string
	state chan gateState // holding its one value guards it
}

type gateState struct {
	shut  bool
	conns map[net.Conn]bool
}

func newGate(t testing.TB, url string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Listener: l, to: strings.TrimPrefix(url, "https://"), state: make(chan gateState, 1)}
	g.state <- gateState{conns: map[net.Conn]bool{}}
	go g.serve()
	t.Cleanup(func() { l.Close(); g.set(true) })
	return g
}

func (g *gate) url() string { return "https://" + g.Addr().String() }

// set shuts the gate, which breaks all connections, or opens it.
func (g *gate) set(shut bool) {
	s := <-g.state
	for c := range s.conns {
		c.Close()
	}
	g.state <- gateState{shut, map[net.Conn]bool{}}
}

func (g *gate) serve() {
	for {
		in, err := g.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", g.to)
		if err != nil {
			in.Close()
			continue
		}
		s := <-g.state
		if s.shut {
			in.Close()
			out.Close()
		} else {
			s.conns[in], s.conns[out] = true, true
			for _, p := range [][2]net.Conn{{in, out}, {out, in}} {
				go func() {
					_, _ = io.Copy(p[0], p[1])
					p[0].Close()
				}()
			}
		}
		g.state <- s
	}
}

// requests returns how many requests of a verb for Nodes the API server has answered.
func (a *apiServer) requests(t testing.TB, verb string) float64 {
	t.Helper()
	total := 0.0
	for line := range strings.Lines(string(a.do(t, http.MethodGet, "/metrics", nil))) {
		if strings.HasPrefix(line, "apiserver_request_total{") && strings.Contains(line, `resource="nodes"`) && strings.Contains(line, `verb="`+verb+`"`) {
			n, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndex(line, " "):]), 64)
			if err != nil {
				t.Fatal(err)
			}
			total += n
		}
	}
	return total
}

// logs is a log that a test reads.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), s)
}
