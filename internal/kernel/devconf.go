package kernel

import (
	"cmp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel/rtnl"
)

// devconfAttr returns the attribute (IPV4_DEVCONF_* of linux/ip.h) that a tunable of an IPv4 device has in
// netlink; 0: we know of none.
func devconfAttr(name string) uint16 {
	switch name {
	case "rp_filter":
		return 8
	case "accept_local":
		return 23
	}
	return 0
}

// writeDevconf sets a sysctl of one IPv4 device through netlink, which works where /proc/sys is read-only. It
// returns EROFS for any other.
func writeDevconf(key, value string) error {
	part := strings.Split(key, "/") // net/ipv4/conf/DEVICE/NAME
	n, err := strconv.ParseUint(value, 10, 32)
	if len(part) != 5 || !strings.HasPrefix(key, "net/ipv4/conf/") || devconfAttr(part[4]) == 0 || err != nil {
		return unix.EROFS
	}
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	var b rtnl.Batch
	b.Begin(unix.RTM_NEWLINK, 0, make([]byte, unix.SizeofIfInfomsg))
	b.String(unix.IFLA_IFNAME, part[3])
	b.Nest(unix.IFLA_AF_SPEC, func() {
		b.Nest(unix.AF_INET, func() {
			b.Nest(unix.IFLA_INET_CONF, func() { b.Uint32(devconfAttr(part[4]), uint32(n)) })
		})
	})
	var refused error
	err = c.Exec(&b, func(_ int, err error) { refused = err }, nil)
	return cmp.Or(err, refused)
}
