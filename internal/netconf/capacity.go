package netconf

import (
	"fmt"
	"math"
	"math/big"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
)

// Subnets returns how many subnets can be leased from n, at most math.MaxInt64; 0 where the store does not
// cut subnets out of it.
func Subnets(n lease.Network) int64 {
	sum := int64(0)
	for _, part := range n.Parts() {
		sum += min(subnets(part), math.MaxInt64-sum)
	}
	return sum
}

// subnets counts those of one range.
func subnets(n lease.Network) int64 {
	if n.SubnetLen == 0 {
		return 0
	}
	lo, hi := new(big.Int).SetBytes(n.Min.AsSlice()), new(big.Int).SetBytes(n.Max.AsSlice())
	count := hi.Sub(hi, lo)
	count.Rsh(count, uint(n.Prefix.Addr().BitLen()-n.SubnetLen)).Add(count, big.NewInt(1))
	if !count.IsInt64() {
		return math.MaxInt64
	}
	return count.Int64()
}

// Capacity says for people how many nodes and pods n has room for, in a line per range, and one for several together:
// "10.244.0.0/16 in /24s: 255 nodes, 253 pods each".
func Capacity(n lease.Network) []string {
	var lines []string
	for _, part := range n.Parts() {
		lines = append(lines, capacity(part))
	}
	if all := Subnets(n); len(lines) > 1 && all > 0 && all < uncounted {
		lines = append(lines, fmt.Sprintf("%s together: %d nodes", n.Ranges(), all))
	}
	return lines
}

// capacity speaks of one range.
func capacity(n lease.Network) string {
	if n.SubnetLen != 0 {
		return fmt.Sprintf("%s in /%ds: %s, %s each", n.Prefix, n.SubnetLen,
			count(subnets(n), n.SubnetLen-n.Prefix.Bits(), "node"), pods(n))
	}
	// Kubernetes: these are the defaults of kube-controller-manager.
	n.SubnetLen = 24
	if family.Of(n.Prefix.Addr()) == family.V6 {
		n.SubnetLen = 64
	}
	if n.Prefix.Bits() > n.SubnetLen {
		return fmt.Sprintf("%s: cut by kube-controller-manager", n.Prefix)
	}
	more := n.SubnetLen - n.Prefix.Bits()
	return fmt.Sprintf("%s: cut by kube-controller-manager; in /%ds, its default, %s, %s each", n.Prefix, n.SubnetLen,
		count(int64(1)<<min(more, 62), more, "node"), pods(n))
}

// pods counts the addresses of a subnet that pods get: not the network's own, the bridge's, nor in IPv4
// the broadcast address.
func pods(n lease.Network) string {
	host := n.Prefix.Addr().BitLen() - n.SubnetLen
	used := int64(3)
	if n.Prefix.Addr().Is6() {
		used = 2
	}
	return count(int64(1)<<min(host, 62)-used, host, "pod")
}

// uncounted is where nobody counts any more.
const uncounted = 1 << 30

// count prints n things, or about what power of two it is.
func count(n int64, power int, thing string) string {
	switch {
	case n == 1:
		return "1 " + thing
	case n < uncounted:
		return fmt.Sprintf("%d %ss", n, thing)
	}
	return fmt.Sprintf("about 2^%d %ss", power, thing)
}
