package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Run is the life of process 1. It returns when it is told to end, or when the node cannot be set up.
func Run(specFile string, log *slog.Logger) error {
	raw, err := os.ReadFile(specFile)
	if err != nil {
		return err
	}
	var spec Spec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return fmt.Errorf("%s: %w", specFile, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := spec.setUp(); err != nil {
		return err
	}
	s := &supervisor{spec: spec, log: log, running: map[int]*job{}}
	for _, p := range spec.Programs {
		s.jobs = append(s.jobs, &job{Program: p})
	}
	return s.loop(ctx)
}

// A job is a program and what is known of its process.
type job struct {
	Program
	pid  int       // 0: not running
	next time.Time // not to be started before
}

type supervisor struct {
	spec    Spec
	log     *slog.Logger
	jobs    []*job
	running map[int]*job
}

// loop starts what should run and reaps what has ended. Process 1 inherits orphans, so it waits for any
// child and not for those it knows.
func (s *supervisor) loop(ctx context.Context) error {
	child := make(chan os.Signal, 1)
	signal.Notify(child, unix.SIGCHLD)
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		s.reap()
		for _, j := range s.jobs {
			if err := s.tend(j); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-child:
		case <-tick.C:
		}
	}
}

func (s *supervisor) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if pid <= 0 || err != nil {
			return
		}
		j := s.running[pid]
		if j == nil {
			continue
		}
		delete(s.running, pid)
		j.pid, j.next = 0, time.Now().Add(restartAfter)
		s.log.Info("program ended", "name", j.Name, "code", status.ExitStatus(), "signal", int(status.Signal()))
	}
}

// tend starts a job that is not running and should be.
func (s *supervisor) tend(j *job) error {
	if j.pid != 0 || time.Now().Before(j.next) || exists(filepath.Join(s.spec.Control, j.Name+".stop")) {
		return nil
	}
	for _, f := range j.After {
		if !exists(f) {
			return nil
		}
	}
	log, err := os.OpenFile(j.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	pid, err := syscall.ForkExec(j.Argv[0], j.Argv, &syscall.ProcAttr{
		Dir: "/", Env: append(os.Environ(), j.Env...),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", j.Name, err)
	}
	j.pid, s.running[pid] = pid, j
	s.log.Info("program started", "name", j.Name, "pid", pid)
	return os.WriteFile(filepath.Join(s.spec.Control, j.Name+".pid"), []byte(strconv.Itoa(pid)), 0o644)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return !errors.Is(err, os.ErrNotExist)
}
