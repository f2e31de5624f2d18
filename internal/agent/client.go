package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/state"
)

// A Client asks the agent of this host through its socket.
type Client struct {
	http http.Client
}

// NewClient returns a client for the agent that listens on socket.
func NewClient(socket string) *Client {
	return &Client{http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}},
	}}
}

// Status returns the agent's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var st Status
	return st, c.get(ctx, "/status", &st)
}

// Plan returns what the agent would change now.
func (c *Client) Plan(ctx context.Context) ([]state.Change, error) {
	var cs []state.Change
	return cs, c.get(ctx, "/plan", &cs)
}

// Preview returns what a network configuration would change.
func (c *Client) Preview(ctx context.Context, config []byte) (Preview, error) {
	var v Preview
	return v, c.do(ctx, http.MethodPost, "/plan", bytes.NewReader(config), &v)
}

func (c *Client) get(ctx context.Context, path string, v any) error {
	return c.do(ctx, http.MethodGet, path, nil, v)
}

func (c *Client) do(ctx context.Context, method, path string, body io.Reader, v any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://flanneld"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("flanneld: %s", strings.TrimSpace(string(text)))
	}
	return json.Unmarshal(text, v)
}
