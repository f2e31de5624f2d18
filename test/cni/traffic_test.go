package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serve answers every TCP connection and every UDP datagram inside the pod with the address that it came
// from, until the test ends. do is how to get inside.
func serve(t testing.TB, do func(func() error) error, at netip.AddrPort) {
	t.Helper()
	must(t, do(func() error {
		l, err := (&net.ListenConfig{Control: reuse}).Listen(context.Background(), "tcp", at.String())
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
				c.Close()
			}
		}()
		u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		t.Cleanup(func() { u.Close() })
		go func() {
			buf := make([]byte, 64)
			for {
				_, from, err := u.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				_, _ = u.WriteToUDPAddrPort([]byte(from.Addr().Unmap().String()), from)
			}
		}()
		return nil
	}))
}

func reuse(_, _ string, c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }), err)
}

// ask connects and returns the client's address as the server sees it.
func ask(do func(func() error) error, network string, to netip.AddrPort) (seen netip.Addr, err error) {
	err = do(func() error {
		c, err := net.DialTimeout(network, to.String(), 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		if network == "udp" {
			if _, err := c.Write([]byte("who am I")); err != nil {
				return err
			}
			buf := make([]byte, 64)
			n, err := c.Read(buf)
			if err != nil {
				return err
			}
			seen, err = netip.ParseAddr(string(buf[:n]))
			return err
		}
		raw, err := io.ReadAll(c)
		if err != nil {
			return err
		}
		seen, err = netip.ParseAddr(string(raw))
		return err
	})
	return seen, err
}

// here is the node itself.
func here(f func() error) error { return f() }
