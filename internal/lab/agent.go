package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An Agent is the flanneld process of a node. Binary and Args may be changed before each start.
type Agent struct {
	Binary string
	Args   []string // besides those that every agent gets

	node *Node
}

// HealthPort is where agents answer /healthz, /readyz and, if they have it, /metrics on loopback.
const HealthPort = 8081

// pollEvery is how often the lab looks whether something that it waits for has happened.
const pollEvery = 10 * time.Millisecond

const (
	stopGrace = 10 * time.Second
	killWait  = 10 * time.Second

	// busyWait is how long to wait for what takes a second or two, on a machine that is busy.
	busyWait = 30 * time.Second
)

// Start starts the agent and waits until it says that it is ready.
func (a *Agent) Start(ctx context.Context) error {
	if err := a.Launch(); err != nil {
		return err
	}
	return a.WaitReady(ctx)
}

// Launch starts the agent and does not wait for anything.
func (a *Agent) Launch() error {
	if a.Running() {
		return errors.New("the agent is running already")
	}
	log, err := os.OpenFile(a.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	if err := os.WriteFile(a.node.file("flanneld.path"), []byte(a.Binary), 0o644); err != nil {
		return err
	}
	args := append([]string{
		"--etcd-endpoints=" + a.node.lab.etcd.Endpoint(),
		"--ip-masq",
		"--healthz-ip=127.0.0.1",
		fmt.Sprintf("--healthz-port=%d", HealthPort),
	}, a.Args...)
	cmd := exec.Command(a.Binary, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.Env = append(os.Environ(), "NODE_NAME=") // the node's name is its host name
	if _, err := start(cmd, a.node.Do, a.recordFile()); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	return nil
}

// WaitReady waits until the agent says that it is ready. An agent that ends, or is not ready when ctx
// ends, is an error that shows the last lines of its log.
func (a *Agent) WaitReady(ctx context.Context) error {
	for {
		if !a.Running() {
			return fmt.Errorf("the agent has ended; its last lines:\n%s", a.LogTail(15))
		}
		notReady := a.Ready(ctx)
		if notReady == nil {
			return nil
		}
		if sleep(ctx, pollEvery) != nil {
			return fmt.Errorf("the agent is not ready (%w); its last lines:\n%s", notReady, a.LogTail(15))
		}
	}
}

// Ready asks the agent whether it is ready. Nil means yes, an error says why not.
func (a *Agent) Ready(ctx context.Context) error {
	code, body, err := a.Get(ctx, "/readyz")
	if err == nil && code != http.StatusOK {
		err = errors.New(strings.TrimSpace(body))
	}
	return err
}

// Get asks the agent's HTTP server for a path.
func (a *Agent) Get(ctx context.Context, path string) (code int, body string, err error) {
	ctx, cancel := context.WithTimeout(ctx, busyWait)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return a.node.Dial(ctx, network, address)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", HealthPort, path), nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, string(raw), err
}

// Stop ends the agent with SIGTERM and waits until it is gone. One that does not obey is an error, and is
// killed. Stopping an agent that does not run is fine.
func (a *Agent) Stop() error {
	p, running := recorded(a.recordFile())
	if !running {
		return nil
	}
	gone, err := p.signal(unix.SIGTERM, stopGrace)
	if err == nil && !gone {
		err = fmt.Errorf("the agent ignores SIGTERM for %v; its last lines:\n%s", stopGrace, a.LogTail(15))
	}
	return errors.Join(err, a.Kill())
}

// Kill ends the agent with SIGKILL and waits until it is gone.
func (a *Agent) Kill() error {
	p, running := recorded(a.recordFile())
	if !running {
		return nil
	}
	_, err := p.signal(unix.SIGKILL, killWait)
	return err
}

// Restart stops the agent, starts it and waits until it is ready.
func (a *Agent) Restart(ctx context.Context) error {
	if err := a.Stop(); err != nil {
		return err
	}
	return a.Start(ctx)
}

// Running says whether the agent's process exists.
func (a *Agent) Running() bool {
	_, running := recorded(a.recordFile())
	return running
}

// PID returns the agent's process number, 0 if it does not run.
func (a *Agent) PID() int {
	p, running := recorded(a.recordFile())
	if !running {
		return 0
	}
	return p.PID
}

// LogFile is where everything goes that the agents of the node print, one after the other.
func (a *Agent) LogFile() string { return a.node.file("flanneld.log") }

// Log returns what the agents of the node have printed so far.
func (a *Agent) Log() string {
	raw, _ := os.ReadFile(a.LogFile()) // none yet: empty
	return string(raw)
}

// LogTail returns the last lines of the log, indented, and where the log is.
func (a *Agent) LogTail(lines int) string { return logTail(a.LogFile(), lines) }

func (a *Agent) recordFile() string { return a.node.file("process-agent.json") }

// sleep waits, or returns ctx's error if that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
