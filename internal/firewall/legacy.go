package firewall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// A legacyTable is what matters here of a table in the old iptables kernel interface, which knows nothing
// of nftables: a packet has to pass both.
type legacyTable struct {
	name        string
	rules       int // beyond those of an empty table
	forwardDrop bool
	flannel     bool // the original's chains are in it
}

// legacyFindings tells what legacy iptables of family f does to pods.
func legacyFindings(f family.Family) []string {
	tables, err := legacyTables(f)
	if err != nil {
		return []string{fmt.Sprintf("cannot tell whether legacy iptables is in use for %s: %v", f, err)}
	}
	command := "iptables-legacy"
	if f == family.V6 {
		command = "ip6tables-legacy"
	}
	var used, remedies []string
	for _, t := range tables {
		if t.rules == 0 && !t.forwardDrop {
			continue
		}
		used = append(used, t.name)
		if t.forwardDrop {
			remedies = append(remedies, fmt.Sprintf("its FORWARD policy is DROP, which no rule in nftables can"+
				" overrule, so pod traffic is refused: run %s -P FORWARD ACCEPT", command))
		}
		if t.flannel {
			remedies = append(remedies, fmt.Sprintf("it still holds chains of flannel in table %s, which go on"+
				" working beside ours and which only %s can remove", t.name, command))
		}
	}
	if len(used) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("legacy iptables has rules for %s (%s) while ours are in nftables, and every packet"+
		" passes both: %s", f, strings.Join(used, ", "), strings.Join(append(remedies, "better, move the host's"+
		" programs to iptables-nft, for example with update-alternatives"), "; "))}
}

// legacyTables reads the tables that are there. One that nobody uses is not asked for: asking would make it.
func legacyTables(f family.Family) ([]legacyTable, error) {
	file := "/proc/thread-self/net/ip_tables_names"
	if f == family.V6 {
		file = "/proc/thread-self/net/ip6_tables_names"
	}
	names, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the kernel has no legacy iptables, or has not loaded it
	}
	if err != nil {
		return nil, err
	}
	present := strings.Fields(string(names))
	slices.Sort(present)
	var tables []legacyTable
	for _, name := range present {
		t, err := readLegacy(f, name)
		if err != nil {
			return nil, fmt.Errorf("table %s: %w", name, err)
		}
		tables = append(tables, t)
	}
	return tables, nil
}

// Socket options of include/uapi/linux/netfilter_ipv4/ip_tables.h, the same for IPv6.
const (
	getInfo    = 64 // IPT_SO_GET_INFO
	getEntries = 65 // IPT_SO_GET_ENTRIES
)

// legacyInfo is struct ipt_getinfo. Hooks are indexed by NF_INET_*, offsets count from the first entry.
type legacyInfo struct {
	Name       [32]byte
	ValidHooks uint32
	HookEntry  [5]uint32
	Underflow  [5]uint32 // of the entry that holds the chain's policy
	Entries    uint32
	Size       uint32
}

// readLegacy asks the kernel for one table, as iptables-legacy does, but on a socket that takes no CAP_NET_RAW:
// CAP_NET_ADMIN is enough to ask on any (do_ipt_get_ctl in net/ipv4/netfilter/ip_tables.c).
func readLegacy(f family.Family, name string) (legacyTable, error) {
	t := legacyTable{name: name}
	domain, level := unix.AF_INET, unix.IPPROTO_IP
	if f == family.V6 {
		domain, level = unix.AF_INET6, unix.IPPROTO_IPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return t, err
	}
	defer unix.Close(fd)
	var info legacyInfo
	copy(info.Name[:], name)
	request := make([]byte, binary.Size(info))
	if _, err := binary.Encode(request, binary.NativeEndian, info); err != nil {
		return t, err
	}
	if err := getsockopt(fd, level, getInfo, request); err != nil {
		return t, err
	}
	if _, err := binary.Decode(request, binary.NativeEndian, &info); err != nil {
		return t, err
	}
	t.rules = int(info.Entries) - emptyEntries(info.ValidHooks)
	entries, err := readEntries(fd, level, info)
	if err != nil {
		return t, err
	}
	t.flannel = bytes.Contains(entries, []byte("FLANNEL-"))
	if name == "filter" {
		t.forwardDrop = policyDrop(f, entries, info.Underflow[unix.NF_INET_FORWARD])
	}
	return t, nil
}

// emptyEntries is how many entries an empty table has: a policy per hook and one that ends the table.
func emptyEntries(hooks uint32) int {
	n := 1
	for ; hooks != 0; hooks &= hooks - 1 {
		n++
	}
	return n
}

// readEntries reads struct ipt_get_entries { char name[32]; u32 size; entries } with the entries aligned to
// eight bytes. The kernel answers EAGAIN when the size is not that of the table any more.
func readEntries(fd, level int, info legacyInfo) ([]byte, error) {
	b := make([]byte, 40+int(info.Size))
	copy(b, info.Name[:])
	binary.NativeEndian.PutUint32(b[32:], info.Size)
	if err := getsockopt(fd, level, getEntries, b); err != nil {
		return nil, err
	}
	return b[40:], nil
}

// policyDrop reads the verdict of the entry at an offset. Before its target, an entry holds the match on the
// IP header (struct ipt_ip, 84 bytes; struct ip6t_ip6, 136), a cache word and the target's offset; the
// verdict comes after the 32 bytes of the target's header.
func policyDrop(f family.Family, entries []byte, at uint32) bool {
	field := 84 + 4
	if f == family.V6 {
		field = 136 + 4
	}
	if int(at)+field+2 > len(entries) {
		return false
	}
	entry := entries[at:]
	verdict := int(binary.NativeEndian.Uint16(entry[field:])) + 32
	if verdict+4 > len(entry) {
		return false
	}
	const drop = -1 // -NF_DROP - 1
	return int32(binary.NativeEndian.Uint32(entry[verdict:])) == drop
}

// getsockopt fills b, which is also the question.
func getsockopt(fd, level, option int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
