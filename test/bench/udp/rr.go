package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	rrPort = 5300
	rrSize = 64
)

// roundTrips sends one small message at a time over one TCP connection and waits for it to come back. Both
// ends block in system calls on threads of their own: the runtime's poller would be part of the figure.
func roundTrips(_ context.Context, n *network, d time.Duration) error {
	var listener int
	err := n.to.Do(func() (err error) {
		listener, err = listen()
		return err
	})
	if err != nil {
		return err
	}
	echoed := make(chan error, 1)
	go func() { echoed <- echo(listener) }()
	var took []time.Duration
	err = n.from.Do(func() (err error) {
		took, err = ask(n.to.Addr.V4.As4(), d)
		return err
	})
	if err != nil {
		_ = unix.Shutdown(listener, unix.SHUT_RDWR) // so that echo ends
	}
	if e := <-echoed; err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if len(took) == 0 {
		return fmt.Errorf("no round trip in %s", d)
	}
	slices.Sort(took)
	n.add("TCP_RR median", float64(took[len(took)/2].Nanoseconds())/1000)
	n.add("TCP_RR 99 %", float64(took[len(took)*99/100].Nanoseconds())/1000)
	return nil
}

func listen() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
		if err = unix.Bind(fd, &unix.SockaddrInet4{Port: rrPort}); err == nil {
			if err = unix.Listen(fd, 1); err == nil {
				return fd, nil
			}
		}
	}
	_ = unix.Close(fd)
	return -1, err
}

// echo answers one connection and closes the listener.
func echo(listener int) error {
	defer unix.Close(listener)
	fd, _, err := unix.Accept(listener)
	if err != nil {
		return os.NewSyscallError("accept", err)
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	buf := make([]byte, rrSize)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		if _, err := unix.Write(fd, buf[:n]); err != nil {
			return err
		}
	}
}

func ask(to [4]byte, d time.Duration) ([]time.Duration, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: rrPort, Addr: to}); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	buf := make([]byte, rrSize)
	var took []time.Duration
	for end := time.Now().Add(d); time.Now().Before(end); {
		began := time.Now()
		if _, err := unix.Write(fd, buf); err != nil {
			return nil, err
		}
		for got := 0; got < rrSize; {
			n, err := unix.Read(fd, buf)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return nil, err
			}
			got += n
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}
