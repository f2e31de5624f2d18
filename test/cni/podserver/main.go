// Command podserver is what runs inside the pods of the container runtime test: on port 80 it answers with
// the client's address, on port 81 with what it sees of itself on localhost.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
)

func main() {
	all := map[net.Listener]func(net.Conn) string{}
	for port, answer := range map[string]func(net.Conn) string{":80": client, ":81": self} {
		l, err := net.Listen("tcp", port)
		if err != nil {
			log.Fatal(err)
		}
		all[l] = answer
	}
	for l, answer := range all { // whoever gets an answer on one port can rely on the other
		go serve(l, answer)
	}
	select {}
}

func serve(l net.Listener, answer func(net.Conn) string) {
	for {
		c, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Fprint(c, answer(c))
		c.Close()
	}
}

func client(c net.Conn) string {
	return c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().String()
}

func self(net.Conn) string {
	c, err := net.Dial("tcp", "127.0.0.1:80")
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	raw, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}
