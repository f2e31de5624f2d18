package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftnet/weft/internal/lab"
)

// A published is what a lease says at one moment, as its peers read it.
type published struct {
	at            time.Time
	node          string // its public address
	kind, data    string // what the original's peers read
	receive, send []string
}

func (p published) String() string {
	if p.node == "" {
		return fmt.Sprintf("%s -- %s", p.at.Format("15:04:05.000"), p.kind)
	}
	return fmt.Sprintf("%s %s shows %q %s, receives on %v, sends on %v", p.at.Format("15:04:05.000"), p.node, p.kind, p.data, p.receive, p.send)
}

// A leaseLog is all that nodes have published.
type leaseLog struct {
	mu  sync.Mutex // guards what follows
	all []published
}

// watchLeases follows the leases in etcd until the test ends.
func watchLeases(ctx context.Context, t *testing.T, l *lab.Lab) *leaseLog {
	t.Helper()
	c, err := l.Etcd().Client()
	must(t, err)
	log := &leaseLog{}
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	t.Cleanup(func() {
		cancel()
		<-done
		must(t, c.Close())
	})
	events := c.Watch(ctx, lab.Prefix+"/subnets/", clientv3.WithPrefix(), clientv3.WithRev(1))
	go func() {
		defer close(done)
		for r := range events {
			for _, e := range r.Events {
				log.add(string(e.Kv.Key), e.Kv.Value)
			}
		}
	}()
	return log
}

func (l *leaseLog) add(key string, value []byte) {
	var v struct {
		PublicIP, BackendType string
		BackendData           json.RawMessage
		Further               struct {
			Receive []struct{ Key string }
			Send    []string
		} `json:"x-weft"`
	}
	if err := json.Unmarshal(value, &v); err != nil {
		l.note(fmt.Sprintf("%s is %q", key, value))
		return
	}
	p := published{at: time.Now(), node: v.PublicIP, kind: v.BackendType, data: string(v.BackendData), send: v.Further.Send}
	for _, r := range v.Further.Receive {
		p.receive = append(p.receive, r.Key)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, p)
}

// note adds something else that happened.
func (l *leaseLog) note(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, published{at: time.Now(), kind: what})
}

// now returns what nodes publish, by public address.
func (l *leaseLog) now() map[string]published {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := map[string]published{}
	for _, p := range l.all {
		now[p.node] = p
	}
	return now
}

// of returns all that a node has published since a moment, and what it had published last before.
func (l *leaseLog) of(node string, since time.Time) []published {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ps []published
	for _, p := range l.all {
		if p.node != node {
			continue
		}
		if p.at.Before(since) {
			ps = ps[:0]
		}
		ps = append(ps, p)
	}
	return ps
}

// between shows what happened between two moments, and how things were before.
func (l *leaseLog) between(begin, end time.Time) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := map[string]published{}
	var during []published
	for _, p := range l.all {
		if p.at.Before(begin) {
			before[p.node] = p
		} else if p.at.Before(end) {
			during = append(during, p)
		}
	}
	delete(before, "") // a note
	var b strings.Builder
	for _, node := range slices.Sorted(maps.Keys(before)) {
		fmt.Fprintf(&b, "%v\n", before[node])
	}
	for _, p := range during {
		fmt.Fprintf(&b, "%v\n", p)
	}
	return b.String()
}
