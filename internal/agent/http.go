package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
)

// HealthHandler answers /healthz, /readyz and /metrics. It is up before anything that can wait, and tells
// nothing that a stranger on the network should not know.
func (a *Agent) HealthHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", a.healthz)
	mux.HandleFunc("GET /readyz", a.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{}))
	return mux
}

// SocketHandler answers what weft status and weft plan ask on this host.
func (a *Agent) SocketHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", a.HealthHandler())
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, a.Status(), nil) })
	mux.HandleFunc("GET /plan", func(w http.ResponseWriter, _ *http.Request) {
		changes, err := a.Pending()
		answer(w, changes, err)
	})
	mux.HandleFunc("POST /plan", func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		v, err := a.Preview(raw)
		answer(w, v, err)
	})
	return mux
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone: nobody is left to tell
}

// healthz says whether the loop is alive. A node that waits for its store is alive.
func (a *Agent) healthz(w http.ResponseWriter, _ *http.Request) {
	last := a.Status().LastPass
	if last.IsZero() {
		last = a.made
	}
	if age := time.Since(last); age > 4*a.opts.Resync+time.Minute {
		http.Error(w, fmt.Sprintf("flanneld is stuck: the last pass was %s ago", age.Round(time.Second)),
			http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "flanneld is running")
}

// readyz says whether the data path and the rules are in place now, and what is missing when not.
func (a *Agent) readyz(w http.ResponseWriter, _ *http.Request) {
	st := a.Status()
	if !st.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, "flanneld is not ready yet")
		for _, r := range st.Reasons {
			fmt.Fprintln(w, r)
		}
		return
	}
	fmt.Fprintln(w, "flanneld is ready")
	for _, n := range st.Notes {
		fmt.Fprintln(w, "note: "+n)
	}
}

// Serve answers on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 1 << 14}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// ListenSocket listens on a Unix socket that only its owner may use. A socket that nobody answers on is
// replaced; one that somebody does means that another agent has this subnet file.
func ListenSocket(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("another flanneld answers on %s: stop it, or give this one its own --subnet-file", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// The mode must be right from the start: between bind and chmod anybody could connect.
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	return net.Listen("unix", path)
}
