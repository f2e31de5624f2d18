package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/lease/storehealth"
)

// networkUnavailable is the condition that cloud providers set on a new Node; the node controller keeps pods
// away until it is false.
const networkUnavailable = "NetworkUnavailable"

// keepCondition says in the Node's conditions that the network is there: once after the start when the node
// is ready, as the original does, and again whenever somebody else says otherwise or the Node is a new one.
func (s *Store) keepCondition(ctx context.Context) error {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	const op = "set node condition " + networkUnavailable
	again := storehealth.Pause{First: time.Second, Last: time.Minute} // between writes that others provoke, or that are refused
	retry := storehealth.Pause{First: firstRetry, Last: lastRetry}
	told := false
	for {
		n, changed, err := s.own.wait(ctx)
		if err != nil {
			return err
		}
		if n == nil || told && n.network == "False" {
			if err := await(ctx, changed, -1); err != nil {
				return err
			}
			continue
		}
		after, err := s.patchNode(ctx, n.name, condition(time.Now()))
		if err != nil {
			s.health.Failed(ctx, op, fmt.Errorf("node %s: %w", n.name, err))
		} else {
			told = true
			s.health.Worked(op)
			s.own.see(after)
			retry.Reset()
		}
		pause := &again
		if err != nil && transient(err) {
			pause = &retry
		}
		if err := storehealth.Sleep(ctx, max(pause.Next(), retryAfter(err))); err != nil {
			return err
		}
	}
}

// condition returns the patch that says that the network is there.
func condition(now time.Time) []byte {
	at := now.UTC().Format(time.RFC3339)
	return fmt.Appendf(nil, `{"status":{"conditions":[{"type":%q,"status":"False","lastHeartbeatTime":%q,"lastTransitionTime":%q,`+
		`"reason":"FlannelIsUp","message":"Flannel is running on this node"}]}}`, networkUnavailable, at, at)
}

// warn makes an Event of a reason why the node gets no lease, once per reason, for whoever runs kubectl
// describe node. The rights that flannel's manifest grants do not include this: then it is tried once.
func (s *Store) warn(ctx context.Context, n *node, reason error) {
	s.mu.Lock()
	skip := n == nil || s.mute || s.warned == reason.Error()
	if n != nil {
		s.warned = reason.Error()
	}
	s.mu.Unlock()
	if skip {
		return
	}
	body, err := json.Marshal(event(n, reason.Error(), time.Now()))
	if err != nil {
		panic(err) // strings
	}
	_, err = s.do(ctx, call{
		method: http.MethodPost, path: "api/v1/namespaces/default/events", body: body, bodyType: "application/json",
	}, maxObject)
	if err != nil {
		s.log.Debug("no Event could be made", "err", err)
		s.mu.Lock()
		if s.mute = isCode(err, http.StatusForbidden, http.StatusUnauthorized); !s.mute {
			s.warned = "" // the next attempt at the lease makes it
		}
		s.mu.Unlock()
	}
}

// event returns an Event about node n. Those about Nodes stand in the namespace default.
func event(n *node, message string, now time.Time) any {
	at := now.UTC().Format(time.RFC3339)
	return map[string]any{
		"apiVersion": "v1", "kind": "Event",
		"metadata":       map[string]any{"generateName": strings.TrimRight(n.name[:min(len(n.name), 200)], ".-") + ".", "namespace": "default"},
		"involvedObject": map[string]any{"apiVersion": "v1", "kind": "Node", "name": n.name, "uid": n.name}, // as the kubelet does
		"type":           "Warning", "reason": "NoPodSubnet", "message": message[:min(len(message), 1000)],
		"source":         map[string]any{"component": "flanneld", "host": n.name},
		"firstTimestamp": at, "lastTimestamp": at, "count": 1,
	}
}
