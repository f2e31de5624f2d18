// Command pod is what the pods of the tests run: an image with nothing else in it.
//
//	pod serve               answers on TCP 8080 (HTTP), TCP 8081 and UDP 8081 (echo)
//	pod get URL COUNT       asks so many times, each on a new connection, and prints how often it got which answer
//	pod listen PORT         answers HTTP on 127.0.0.1 only
//	pod resolve NAME...     prints the addresses of each
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pod:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: pod serve|get|listen|resolve")
	}
	switch verb, rest := args[0], args[1:]; {
	case verb == "serve":
		return serve()
	case verb == "get" && len(rest) == 2:
		return get(rest[0], rest[1])
	case verb == "listen" && len(rest) == 1:
		return http.ListenAndServe("127.0.0.1:"+rest[0], http.HandlerFunc(whoami))
	case verb == "resolve":
		return resolve(rest)
	}
	return fmt.Errorf("%q: no such command", args)
}

// whoami answers who was asked (NODE, else the host name) and from where.
func whoami(w http.ResponseWriter, r *http.Request) {
	name := os.Getenv("NODE")
	if name == "" {
		name, _ = os.Hostname() // an empty one shows in the answer
	}
	from, _, _ := net.SplitHostPort(r.RemoteAddr) // the server wrote it
	fmt.Fprintf(w, "%s %s\n", name, from)
}

// serve listens to HTTP last: that the pod is ready is asked there.
func serve() error {
	l, err := net.Listen("tcp", ":8081")
	if err != nil {
		return err
	}
	c, err := net.ListenPacket("udp", ":8081")
	if err != nil {
		return err
	}
	errs := make(chan error, 3)
	go func() { errs <- echoTCP(l) }()
	go func() { errs <- echoUDP(c) }()
	go func() { errs <- http.ListenAndServe(":8080", http.HandlerFunc(whoami)) }()
	return <-errs
}

func echoTCP(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // how a connection ends is its client's business
		}()
	}
}

func echoUDP(c net.PacketConn) error {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		_, _ = c.WriteTo(buf[:n], from) // datagrams may be lost
	}
}

// get prints one line per different answer: how often, and what. An answer that fails is "error: ...".
func get(url, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answers := map[string]int{}
	for range n {
		answers[ask(&client, url)]++
	}
	var lines []string
	for a, n := range answers {
		lines = append(lines, fmt.Sprintf("%d %s", n, a))
	}
	slices.Sort(lines)
	fmt.Println(strings.Join(lines, "\n"))
	return nil
}

func ask(client *http.Client, url string) string {
	r, err := client.Get(url)
	if err != nil {
		return "error: " + err.Error()
	}
	defer r.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(r.Body, 1000))
	if err != nil {
		return "error: " + err.Error()
	}
	return strings.TrimSpace(string(raw))
}

func resolve(names []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, name := range names {
		addrs, err := net.DefaultResolver.LookupHost(ctx, name)
		if err != nil {
			return err
		}
		fmt.Println(name, strings.Join(addrs, " "))
	}
	return nil
}
