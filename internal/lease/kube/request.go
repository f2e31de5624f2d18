package kube

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/weftnet/weft/internal/lease/storehealth"
)

const (
	protobuf       = "application/vnd.kubernetes.protobuf"
	strategicMerge = "application/strategic-merge-patch+json"

	maxObject = 8 << 20   // etcd holds no object larger than 1.5 MB
	maxPage   = 256 << 20 // of a list; a page has pageSize objects
	maxStatus = 64 << 10  // of a refusal
)

// renewGap is the least time between two readings of the credentials.
const renewGap = 30 * time.Second

const (
	firstRetry = 200 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// An APIError is a refusal by the API server.
type APIError struct {
	Code       int    // HTTP status
	Message    string // the server's own words
	retryAfter time.Duration
}

func (e *APIError) Error() string {
	text := http.StatusText(e.Code)
	if e.Message != "" {
		return fmt.Sprintf("%d %s: %s", e.Code, text, e.Message)
	}
	return fmt.Sprintf("%d %s", e.Code, text)
}

// isCode says whether err is a refusal with one of the HTTP status codes.
func isCode(err error, codes ...int) bool {
	e, ok := errors.AsType[*APIError](err)
	if !ok {
		return false
	}
	for _, c := range codes {
		if e.Code == c {
			return true
		}
	}
	return false
}

// transient says whether trying the same again may mend err. What the server says for good (no such right, not
// valid) does not count; it may still be tried again when something changes.
func transient(err error) bool {
	e, refused := errors.AsType[*APIError](err)
	return !refused || e.Code >= 500 || e.Code == http.StatusTooManyRequests || e.Code == http.StatusRequestTimeout ||
		e.Code == http.StatusConflict
}

// A call is one request.
type call struct {
	method, path string
	query        url.Values
	body         []byte
	bodyType     string
	accept       string        // protobuf if empty
	within       time.Duration // that do waits; the request timeout if 0
}

// send sends c and returns the response once its header is there and says 2xx.
func (s *Store) send(ctx context.Context, c call) (*http.Response, error) {
	u := s.base.JoinPath(c.path)
	u.RawQuery = c.query.Encode()
	req, err := http.NewRequestWithContext(ctx, c.method, u.String(), bytes.NewReader(c.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", protobuf)
	if c.accept != "" {
		req.Header.Set("Accept", c.accept)
	}
	if c.bodyType != "" {
		req.Header.Set("Content-Type", c.bodyType)
	}
	resp, err := s.client.Load().Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // its text holds the whole URL
		}
		s.renew(err)
		return nil, because(ctx, err)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		defer resp.Body.Close()
		return nil, because(ctx, refusal(resp))
	}
	return resp, nil
}

// renew reads the credentials again when the API server's certificate is not trusted: a cluster that has a new
// authority gives its pods the new file, and nobody restarts us for it.
func (s *Store) renew(err error) {
	if _, untrusted := errors.AsType[*tls.CertificateVerificationError](err); !untrusted {
		return
	}
	last, now := s.renewed.Load(), time.Now().Unix()
	if now-last < int64(renewGap/time.Second) || !s.renewed.CompareAndSwap(last, now) {
		return
	}
	if _, client, err := connect(s.cfg); err == nil {
		s.client.Swap(client).CloseIdleConnections()
	}
}

// because returns why ctx ended, if it has, since err is only a consequence then.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// refusal reads what the server says in a response that is no success.
func refusal(resp *http.Response) error {
	e := &APIError{Code: resp.StatusCode}
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 {
		e.retryAfter = min(time.Duration(n)*time.Second, time.Minute)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxStatus))
	if err != nil {
		return e
	}
	if raw, err := unwrap(body); err == nil {
		if st, err := decodeStatus(raw); err == nil {
			e.Message = st.message
		}
	} else {
		e.Message = printable(body, 200)
	}
	return e
}

// printable returns the beginning of b as text for a log line.
func printable(b []byte, n int) string {
	b = bytes.TrimSpace(b[:min(len(b), n)])
	return string(bytes.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return ' '
		}
		return r
	}, b))
}

// do makes one request and returns the message in the response, of at most limit bytes.
func (s *Store) do(ctx context.Context, c call, limit int64) ([]byte, error) {
	within := cmp.Or(c.within, s.cfg.RequestTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("no answer within %s", within))
	defer cancel()
	resp, err := s.send(ctx, c)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, because(ctx, err)
	case int64(len(body)) > limit:
		return nil, fmt.Errorf("the answer is longer than %d bytes", limit)
	}
	if c.accept != "" {
		return body, nil
	}
	return unwrap(body)
}

// retry calls f until it works, fails with what trying again does not mend, or ctx ends.
func (s *Store) retry(ctx context.Context, op string, f func(context.Context) error) error {
	p := storehealth.Pause{First: firstRetry, Last: lastRetry}
	for {
		err := f(ctx)
		if err == nil {
			s.health.Worked(op)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !transient(err) {
			return err
		}
		s.health.Failed(ctx, op, err)
		if err := storehealth.Sleep(ctx, max(p.Next(), retryAfter(err))); err != nil {
			return err
		}
	}
}

// retryAfter returns how long the server wants to be left alone.
func retryAfter(err error) time.Duration {
	if e, ok := errors.AsType[*APIError](err); ok {
		return e.retryAfter
	}
	return 0
}

// patchNode patches the status subresource of the own Node, which is all that flannel's account may write.
// It goes for annotations too.
func (s *Store) patchNode(ctx context.Context, name string, patch []byte) (*node, error) {
	raw, err := s.do(ctx, call{
		method: http.MethodPatch, path: "api/v1/nodes/" + name + "/status", body: patch, bodyType: strategicMerge,
	}, maxObject)
	if err != nil {
		return nil, err
	}
	return decodeNode(raw, s.keys)
}

// findNode returns the name of the own Node, which may take asking for the pod that this is.
func (s *Store) findNode(ctx context.Context) (string, error) {
	if s.cfg.NodeName != "" {
		return s.cfg.NodeName, nil
	}
	const op = "look up the pod for the name of its node"
	p := storehealth.Pause{First: firstRetry, Last: lastRetry}
	for {
		name, err := s.podNode(ctx)
		switch {
		case err == nil && name != "":
			s.health.Worked(op)
			s.log.Info("name of this node", "node", name, "pod", s.cfg.PodNamespace+"/"+s.cfg.PodName)
			s.own.setName(name)
			return name, nil
		case err == nil:
			err = errors.New("the pod is on no node yet")
		}
		s.health.Failed(ctx, op, err)
		s.own.setTrouble(fmt.Errorf("name of this node: pod %s/%s: %w", s.cfg.PodNamespace, s.cfg.PodName, err))
		if err := storehealth.Sleep(ctx, max(p.Next(), retryAfter(err))); err != nil {
			return "", err
		}
	}
}

func (s *Store) podNode(ctx context.Context) (string, error) {
	raw, err := s.do(ctx, call{
		method: http.MethodGet, path: "api/v1/namespaces/" + url.PathEscape(s.cfg.PodNamespace) + "/pods/" + url.PathEscape(s.cfg.PodName),
	}, maxObject)
	if err != nil {
		return "", err
	}
	return decodePodNode(raw)
}
