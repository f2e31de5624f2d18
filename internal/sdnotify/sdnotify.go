// Package sdnotify tells systemd how the service is doing (sd_notify(3), Type=notify).
package sdnotify

import (
	"fmt"
	"net"
	"strings"
	"time"
)

// A Notifier is the value of NOTIFY_SOCKET: a path, or an abstract socket beginning with @. The empty
// Notifier tells nobody, which is no error: the service does not run under systemd.
type Notifier string

// Ready says that start-up is complete.
func (n Notifier) Ready() error { return n.send("READY=1") }

// Stopping says that the service is shutting down.
func (n Notifier) Stopping() error { return n.send("STOPPING=1") }

// Status sets the line that `systemctl status` shows.
func (n Notifier) Status(text string) error {
	// A line is a field: text with a newline in it could set other ones.
	return n.send("STATUS=" + strings.NewReplacer("\n", " ", "\r", " ").Replace(text))
}

// sendTimeout bounds the wait for a receiver that does not read its queue.
const sendTimeout = time.Second

// send dials for every message: they are few, and systemd may have been re-executed since the last one.
// Package net turns a leading @ into the zero byte of an abstract address (unix(7)).
func (n Notifier) send(message string) error {
	if n == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: string(n), Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	if _, err := conn.Write([]byte(message)); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}
