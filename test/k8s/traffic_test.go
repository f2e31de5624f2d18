package k8s

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
	"github.com/weftnet/weft/test/k8s/cluster"
)

// Ports of the test's pods and services.
const (
	podPort  = 8080
	echoPort = 8081
	hostPort = 18080
	nodePort = 30080
)

// web is one pod per node, each of two containers that know of each other's loopback ports, and its services.
const web = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  updateStrategy: {rollingUpdate: {maxUnavailable: 100%}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      tolerations: [{operator: Exists}]
      containers:
      - name: web
        image: ` + cluster.PodImage + `
        args: [serve]
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        ports: [{containerPort: 8080, hostPort: 18080}]
        readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1}
      - name: beside
        image: ` + cluster.PodImage + `
        args: [listen, "9090"]
        env: [{name: NODE, value: beside}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-nodeport, namespace: default}
spec: {type: NodePort, ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
`

// deployWeb starts the pods and waits until they serve.
func deployWeb(ctx context.Context, t *testing.T, c *cluster.Cluster) map[string]*cluster.Pod {
	t.Helper()
	must(t, c.Apply(ctx, web))
	kubectl(ctx, t, c, "rollout", "status", "daemonset/web", "--timeout=240s")
	return webPods(ctx, t, c)
}

func webPods(ctx context.Context, t *testing.T, c *cluster.Cluster) map[string]*cluster.Pod {
	t.Helper()
	pods, err := c.Pods(ctx, "default", "app=web")
	must(t, err)
	return pods
}

// get asks a web server from the given place and returns its answer.
func get(ctx context.Context, at lab.Place, addr netip.Addr, port int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	address := net.JoinHostPort(addr.String(), strconv.Itoa(port))
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return cluster.Dial(ctx, at, network, address)
	}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return "", err
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(raw)), err
}

// backends asks a service until every pod has answered, then some more: from then on every question has an answer.
// kube-proxy is up to a second or two behind the pods.
func backends(ctx context.Context, t *testing.T, what string, at lab.Place, addr netip.Addr, port, pods int) {
	t.Helper()
	seen := map[string]int{}
	ask := func() error {
		answer, err := get(ctx, at, addr, port)
		if err == nil {
			node, _, _ := strings.Cut(answer, " ")
			seen[node]++
		}
		return err
	}
	var last error
	for began := time.Now(); len(seen) < pods; {
		if err := ask(); err != nil {
			last = err
		}
		if time.Since(began) > 3*time.Minute {
			t.Errorf("%s: answers from %v, want %d pods; last error: %v", what, seen, pods, last)
			return
		}
	}
	for i := range 10 * pods {
		if err := ask(); err != nil {
			t.Errorf("%s: question %d: %v", what, i, err)
			return
		}
	}
}

// pingAll wants every pod to reach every other one, and itself, at every address.
func pingAll(t *testing.T, pods map[string]*cluster.Pod) {
	t.Helper()
	var wg sync.WaitGroup
	for _, from := range pods {
		for _, to := range pods {
			for _, a := range to.Addrs {
				wg.Go(func() {
					if _, err := lab.Ping(from, a, 30*time.Second); err != nil {
						t.Errorf("pod on %s to pod on %s (%s): %v", from.Node.Name, to.Node.Name, a, err)
					}
				})
			}
		}
	}
	wg.Wait()
}

// traffic is pings and connections between pods that must survive something.
type traffic struct {
	probes  map[string]*lab.Probe
	streams map[string]*stream
}

// startTraffic pings between all pods at 100 Hz and keeps one TCP connection per direction busy.
func startTraffic(ctx context.Context, t *testing.T, pods map[string]*cluster.Pod) *traffic {
	t.Helper()
	tr := &traffic{probes: map[string]*lab.Probe{}, streams: map[string]*stream{}}
	for _, from := range pods {
		for _, to := range pods {
			if from == to {
				continue
			}
			for _, a := range to.Addrs {
				name := fmt.Sprintf("%s to %s (%s)", from.Node.Name, to.Node.Name, a)
				p, err := lab.StartProbe(from, a, 10*time.Millisecond)
				must(t, err)
				tr.probes[name] = p
				s, err := startStream(ctx, from, a)
				must(t, err)
				tr.streams[name] = s
			}
		}
	}
	tr.flowing(ctx, t)
	return tr
}

// flowing waits until every probe has been answered some more.
func (tr *traffic) flowing(ctx context.Context, t *testing.T) {
	t.Helper()
	for name, p := range tr.probes {
		n := p.Answered()
		eventually(ctx, t, time.Minute, name, func() error {
			if p.Answered() < n+10 {
				return errors.New("no answers")
			}
			return nil
		})
	}
}

// wantNoLoss ends the traffic: not one ping lost, not one connection broken.
func (tr *traffic) wantNoLoss(t *testing.T) {
	t.Helper()
	var mu sync.Mutex // guards sent
	var wg sync.WaitGroup
	sent := 0
	for name, p := range tr.probes {
		wg.Go(func() {
			loss := p.Stop()
			mu.Lock()
			defer mu.Unlock()
			sent += loss.Sent
			if loss.Lost > 0 {
				t.Errorf("pings %s: %v", name, loss)
			}
		})
	}
	wg.Wait()
	var echoed int64
	for name, s := range tr.streams {
		n, err := s.stop()
		echoed += n
		if err != nil {
			t.Errorf("connection %s: %v", name, err)
		}
	}
	t.Logf("%d pings on %d paths, %d connections with %d exchanges", sent, len(tr.probes), len(tr.streams), echoed)
}

// A stream is one TCP connection on which a line goes out and comes back, over and over.
type stream struct {
	conn net.Conn
	quit chan struct{}
	done chan struct{}
	n    int64 // exchanges; read after done
	err  error // the same
}

// pause lies between exchanges: a connection that carries 100 lines a second is busy and not in the way.
const pause = 10 * time.Millisecond

func startStream(ctx context.Context, from lab.Place, to netip.Addr) (*stream, error) {
	conn, err := cluster.Dial(ctx, from, "tcp", net.JoinHostPort(to.String(), strconv.Itoa(echoPort)))
	if err != nil {
		return nil, err
	}
	s := &stream{conn: conn, quit: make(chan struct{}), done: make(chan struct{})}
	go s.run()
	return s, nil
}

func (s *stream) run() {
	defer close(s.done)
	defer s.conn.Close()
	for {
		select {
		case <-s.quit:
			return
		case <-time.After(pause):
		}
		out := fmt.Appendf(nil, "%020d\n", s.n)
		in := make([]byte, len(out))
		if s.err = s.conn.SetDeadline(time.Now().Add(time.Minute)); s.err != nil {
			return
		}
		if _, s.err = s.conn.Write(out); s.err != nil {
			return
		}
		if _, s.err = io.ReadFull(s.conn, in); s.err != nil {
			return
		}
		if string(in) != string(out) {
			s.err = fmt.Errorf("sent %q, got %q", out, in)
			return
		}
		s.n++
	}
}

// stop ends the stream and returns how many exchanges there were.
func (s *stream) stop() (int64, error) {
	close(s.quit)
	<-s.done
	return s.n, s.err
}
