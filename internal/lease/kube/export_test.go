package kube

import (
	"time"

	"github.com/weftnet/weft/internal/lease"
)

// Encode returns the annotations of l, without the prefix.
func Encode(l lease.Lease) (map[string]*string, error) { return encode(l) }

// Quick returns c with short times.
func Quick(c Config) Config {
	c.RequestTimeout, c.rewriteGap = 3*time.Second, 50*time.Millisecond
	return c
}

// NodeOfToken returns the node that a token is bound to.
func NodeOfToken(token string) string { return nodeOfToken(token) }
