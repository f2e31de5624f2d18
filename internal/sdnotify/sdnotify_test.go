package sdnotify

import (
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

func listen(t *testing.T, address string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestMessagesArriveAsSystemdReadsThem(t *testing.T) {
	sockets := map[string]string{
		"path":     filepath.Join(t.TempDir(), "notify"),
		"abstract": "@weft-sdnotify-test-" + strconv.FormatInt(time.Now().UnixNano(), 36),
	}
	messages := []struct {
		want string
		send func(Notifier) error
	}{
		{"READY=1", Notifier.Ready},
		{"STOPPING=1", Notifier.Stopping},
		{"STATUS=3 peers", func(n Notifier) error { return n.Status("3 peers") }},
		{"STATUS=a READY=1", func(n Notifier) error { return n.Status("a\nREADY=1") }},
	}
	for name, socket := range sockets {
		t.Run(name, func(t *testing.T) {
			conn := listen(t, socket)
			for _, m := range messages {
				if err := m.send(Notifier(socket)); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 256)
				n, err := conn.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				if got := string(buf[:n]); got != m.want {
					t.Errorf("got %q, want %q", got, m.want)
				}
			}
		})
	}
}

func TestWithoutASocketNobodyIsTold(t *testing.T) {
	if err := Notifier("").Ready(); err != nil {
		t.Error(err)
	}
}

func TestASocketThatIsGoneIsAnError(t *testing.T) {
	if err := Notifier(filepath.Join(t.TempDir(), "gone")).Ready(); err == nil {
		t.Error("no error")
	}
}
