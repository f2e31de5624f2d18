package kube

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weftnet/weft/internal/lease"
)

// A script answers the requests for Nodes one by one, but for howFar: the failures that a real API server will not produce
// on demand. When it is at its end, requests hang until the test ends.
type script struct {
	t     *testing.T
	done  chan struct{}
	mu    sync.Mutex // guards what follows
	steps []step
	asked []string
}

type step func(t *testing.T, w http.ResponseWriter, hang <-chan struct{})

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	q.Del("timeoutSeconds")
	q.Del("allowWatchBookmarks")
	s.mu.Lock()
	s.asked = append(s.asked, q.Encode())
	var next step = hang
	if q.Encode() == howFar {
		next = page("1000", "more", peer(1, "5"))
	} else if len(s.steps) > 0 {
		next, s.steps = s.steps[0], s.steps[1:]
	}
	s.mu.Unlock()
	next(s.t, w, s.done)
}

// requests returns the queries so far.
func (s *script) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func hang(_ *testing.T, w http.ResponseWriter, done <-chan struct{}) {
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	<-done
}

// says answers a watch with frames and leaves it open.
func says(frames ...func(*testing.T) []byte) step {
	return func(t *testing.T, w http.ResponseWriter, done <-chan struct{}) {
		ends(frames...)(t, w, done)
		_ = http.NewResponseController(w).Flush()
		<-done
	}
}

// ends answers a watch with frames and ends it in order.
func ends(frames ...func(*testing.T) []byte) step {
	return func(t *testing.T, w http.ResponseWriter, _ <-chan struct{}) {
		for _, f := range frames {
			_, _ = w.Write(f(t))
		}
		_ = http.NewResponseController(w).Flush()
	}
}

// refuses answers with a Status.
func refuses(code int, header ...string) step {
	return func(t *testing.T, w http.ResponseWriter, _ <-chan struct{}) {
		if len(header) == 2 {
			w.Header().Set(header[0], header[1])
		}
		w.WriteHeader(code)
		_, _ = w.Write(envelope(t, "Status", marshal(t, &metav1.Status{Code: int32(code), Message: "no"})))
	}
}

// page answers a list.
func page(version, next string, items ...corev1.Node) step {
	return func(t *testing.T, w http.ResponseWriter, _ <-chan struct{}) {
		l := corev1.NodeList{ListMeta: metav1.ListMeta{ResourceVersion: version, Continue: next}, Items: items}
		_, _ = w.Write(envelope(t, "NodeList", marshal(t, &l)))
	}
}

// peer returns a Node that takes part.
func peer(n int, version string) corev1.Node {
	return corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%d", n), ResourceVersion: version, Annotations: map[string]string{
			"flannel.alpha.coreos.com/kube-subnet-manager": "true", "flannel.alpha.coreos.com/backend-type": "host-gw",
			"flannel.alpha.coreos.com/public-ip": fmt.Sprintf("192.0.2.%d", n),
		}},
		Spec: corev1.NodeSpec{PodCIDR: fmt.Sprintf("10.244.%d.0/24", n)},
	}
}

func change(kind string, o corev1.Node) func(*testing.T) []byte {
	return func(t *testing.T) []byte { return frame(t, kind, envelope(t, "Node", marshal(t, &o))) }
}

func added(n int, version string) func(*testing.T) []byte { return change("ADDED", peer(n, version)) }

func bookmark(version string) func(*testing.T) []byte {
	return change("BOOKMARK", corev1.Node{ObjectMeta: metav1.ObjectMeta{ResourceVersion: version}})
}

// complete is the bookmark that ends a streamed list.
func complete(version string) func(*testing.T) []byte {
	return change("BOOKMARK", corev1.Node{ObjectMeta: metav1.ObjectMeta{ResourceVersion: version, Annotations: map[string]string{initialEvents: "true"}}})
}

func gone(t *testing.T) []byte {
	return frame(t, "ERROR", envelope(t, "Status", marshal(t, &metav1.Status{Code: 410, Message: "too old resource version"})))
}

const (
	listing  = "resourceVersionMatch=NotOlderThan&sendInitialEvents=true&watch=true"
	firstFew = "limit=200"
	howFar   = "limit=1" // asked after a break, before a watch goes on
)

func from(version string) string { return "resourceVersion=" + version + "&watch=true" }

func TestFollow(t *testing.T) {
	for _, c := range []struct {
		name  string
		steps []step
		want  []string // sets of peers seen, in order
		asked []string
	}{
		{"a streamed list, then changes",
			[]step{says(added(1, "5"), added(2, "3"), complete("7"), added(3, "8"), change("DELETED", peer(1, "9")))},
			[]string{"1 2", "1 2 3", "2 3"}, []string{listing}},
		{"nothing is handed over before the list is complete",
			[]step{ends(added(1, "5"), added(2, "6")), says(added(2, "6"), complete("7"))},
			[]string{"2"}, []string{listing, listing}},
		{"changes that come between the list",
			[]step{says(added(1, "5"), added(2, "6"), change("DELETED", peer(1, "7")), complete("7"))},
			[]string{"2"}, []string{listing}},
		{"no peers are a complete list too", []step{says(complete("7"))}, []string{""}, []string{listing}},
		{"a watch that ends in order goes on where it was",
			[]step{ends(added(1, "5"), complete("7"), bookmark("9")), says(added(2, "10"))},
			[]string{"1", "1 2"}, []string{listing, howFar, from("9")}},
		{"servers that do not stream lists",
			[]step{refuses(422), page("7", "more", peer(1, "5")), page("7", "", peer(2, "6")), says(added(3, "8"))},
			[]string{"1 2", "1 2 3"}, []string{listing, firstFew, "continue=more&limit=200", from("7")}},
		{"servers whose etcd cannot tell how far it is",
			[]step{refuses(500), page("7", "", peer(1, "5")), says(added(3, "8"))},
			[]string{"1", "1 3"}, []string{listing, firstFew, from("7")}},
		{"a list that expires while it is read",
			[]step{refuses(422), page("7", "more", peer(1, "5")), refuses(410), says(added(2, "6"), complete("8"))},
			[]string{"2"}, []string{listing, firstFew, "continue=more&limit=200", listing}},
		{"410 Gone to a watch",
			[]step{ends(added(1, "5"), complete("7")), refuses(410), says(added(2, "20"), complete("21"))},
			[]string{"1", "2"}, []string{listing, howFar, from("7"), listing}},
		{"410 Gone in a watch",
			[]step{ends(added(1, "5"), complete("7")), ends(gone), says(added(2, "20"), complete("21"))},
			[]string{"1", "2"}, []string{listing, howFar, from("7"), listing}},
		{"the server was set back to a backup",
			[]step{says(added(1, "500"), complete("700"), bookmark("300")), says(added(2, "20"), complete("301"))},
			[]string{"1", "2"}, []string{listing, listing}},
		{"errors of the server change nothing",
			[]step{refuses(503), ends(added(1, "5"), complete("7")), refuses(500), refuses(429, "Retry-After", "1"), refuses(403), says(added(2, "8"))},
			[]string{"1", "1 2"}, []string{listing, listing, howFar, from("7"), howFar, from("7"), howFar, from("7"), howFar, from("7")}},
		{"rubbish changes nothing",
			[]step{
				ends(added(1, "5"), complete("7")),
				ends(func(*testing.T) []byte { return []byte("<html>a proxy's idea of an answer</html>") }),
				ends(func(t *testing.T) []byte { return frame(t, "ADDED", []byte("{}")) }),
				ends(func(t *testing.T) []byte { return frame(t, "SURPRISE", envelope(t, "Node", nil)) }),
				ends(func(t *testing.T) []byte { return added(2, "8")(t)[:40] }),
				says(added(3, "9")),
			},
			[]string{"1", "1 3"}, []string{listing, howFar, from("7"), howFar, from("7"), howFar, from("7"), howFar, from("7"), howFar, from("7")}},
		{"a server that falls silent in the middle of a list",
			[]step{says(added(1, "5")), says(added(2, "6"), complete("7"))},
			[]string{"2"}, []string{listing, listing}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			play(t, c.steps, c.want, c.asked)
		})
	}
}

// play runs Watch against a script and checks the sets that it hands over, and the requests.
func play(t *testing.T, steps []step, want, asked []string) {
	s := &script{t: t, steps: steps, done: make(chan struct{})}
	server := httptest.NewServer(s)
	defer server.Close()
	defer close(s.done)
	store := testStore(t, server.URL)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	sets := make(chan string, 10)
	ended := make(chan error, 1)
	go func() { ended <- store.Watch(ctx, func(ls []lease.Lease) { sets <- peersOf(ls) }) }()
	var got []string
	for len(got) == 0 || got[len(got)-1] != want[len(want)-1] {
		select {
		case set := <-sets:
			got = append(got, set)
		case err := <-ended:
			t.Fatalf("Watch ended: %v; sets %q, requests %q", err, got, s.requests())
		}
	}
	cancel()
	<-ended
	at := 0 // changes that come close together make one set
	for _, set := range got {
		i := slices.Index(want[at:], set)
		if i < 0 {
			t.Fatalf("got sets %q, want %q", got, want)
		}
		at += i
	}
	if r := s.requests(); !slices.Equal(r, asked) {
		t.Errorf("requests\n%q, want\n%q", r, asked)
	}
}

func testStore(t *testing.T, server string) *Store {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	store, err := New(Config{APIURL: u, NodeName: "n1", Prefix: testKeys.prefix}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// What changes between the wake-up and the set being gathered is in that set, and is no reason for another one.
func TestAChangeIsHandedOverOnce(t *testing.T) {
	s := &set{store: testStore(t, "http://127.0.0.1:1"), wake: make(chan struct{}, 1)}
	s.begin()
	s.listed()
	<-s.wake
	s.changed()
	if _, _, ok := s.leases(); !ok || len(s.wake) != 0 {
		t.Errorf("complete %v, and %d further deliveries of the same set", ok, len(s.wake))
	}
}

func peersOf(ls []lease.Lease) string {
	var names []string
	for _, l := range ls {
		names = append(names, strings.TrimPrefix(l.Node, "n"))
	}
	return strings.Join(names, " ")
}

// badGateway is a server that is away, behind a proxy that is not.
type badGateway struct{ requests int }

func (b *badGateway) RoundTrip(r *http.Request) (*http.Response, error) {
	b.requests++
	return &http.Response{StatusCode: http.StatusBadGateway, Header: http.Header{}, Request: r, Body: io.NopCloser(strings.NewReader("<html>no</html>"))}, nil
}

// TestOutage: a server that is away for long ends nothing, and is not asked in a storm.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &badGateway{}
		store := testStore(t, "http://127.0.0.1:1")
		store.client.Store(&http.Client{Transport: server})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if err := store.Run(ctx, func() {}); err != context.DeadlineExceeded {
			t.Errorf("got %v", err)
		}
		if n := server.requests; n < 2 || n > 10 {
			t.Errorf("%d requests in two seconds", n)
		}
		if st := store.Stats(); st.Connected || st.RequestsFailed == 0 {
			t.Errorf("got %+v", st)
		}
	})
}

// TestPlainHTTPGetsNoToken: a pod gives its credentials to an API server over TLS only.
func TestPlainHTTPGetsNoToken(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("a token was sent")
		}
	}))
	defer server.Close()
	t.Setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "6443")
	store := testStore(t, server.URL)
	if _, err := store.do(t.Context(), call{method: http.MethodGet, path: "version", accept: "application/json"}, 1000); err != nil {
		t.Error(err)
	}
}

// TestNewAuthority: a cluster that gets a new certificate authority gives its pods a new file.
func TestNewAuthority(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer server.Close()
	dir := t.TempDir()
	write := func(name, text string) string {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	ca := write("ca.crt", otherAuthority(t))
	kubeconfig := write("kubeconfig", fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"x",
		"clusters":[{"name":"x","cluster":{"server":%q,"certificate-authority":%q}}],
		"users":[{"name":"x","user":{}}],"contexts":[{"name":"x","context":{"cluster":"x","user":"x"}}]}`, server.URL, ca))
	store, err := New(Config{Kubeconfig: kubeconfig, NodeName: "n1", Prefix: testKeys.prefix}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	version := func() error {
		_, err := store.do(t.Context(), call{method: http.MethodGet, path: "version", accept: "application/json"}, 1000)
		return err
	}
	if err := version(); err == nil {
		t.Fatal("a certificate of an unknown authority is trusted")
	}
	write("ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	store.renewed.Store(0) // half a minute later
	if err := version(); err == nil {
		t.Fatal("the file was read again without need")
	}
	if err := version(); err != nil {
		t.Errorf("the new authority is not trusted: %v", err)
	}
}

// otherAuthority returns the certificate of an authority that has signed nothing.
func otherAuthority(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, &c, &c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
