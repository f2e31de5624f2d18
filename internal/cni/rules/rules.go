// Package rules keeps the plugin's firewall rules, in tables of their own that nobody else writes:
//
//	table ip weft-cni                  and the same for ip6
//	  chain prerouting   nat           packets to an address of this node: go to hostports
//	  chain output       nat           the same for packets of this node's own processes
//	  chain hostports                  per mapping: to the pod, client address kept
//	  chain postrouting  nat           per mapping: masquerade what could not find its way back;
//	                                   per pod with ipMasq: masquerade what leaves the pods' subnet
//	  chain guard        raw           nothing from outside speaks to 127.0.0.0/8
//	table bridge weft-cni
//	  chain prerouting   filter        per pod with macspoofchk: its own MAC only
//
// A rule carries the attachment that it belongs to in its comment; that is how it is found again. Static
// and per-pod rules are never in one chain, so the static ones are written anew each time. What one ADD
// needs comes in one transaction.
//
// The nat chains come right after those of iptables and kube-proxy at the destination, whose own rules
// so win over ours if both claim a port, and right before them at the source.
package rules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// TableName is the name of the plugin's tables.
const TableName = "weft-cni"

// The chains that hold per-pod rules.
const (
	HostPorts   = "hostports"
	PostRouting = "postrouting"
	AntiSpoof   = "prerouting" // of the bridge table
)

// A Label names the attachment that a rule belongs to, and which plugin made the rule.
type Label struct {
	Plugin, Network, ContainerID, IfName string
}

// maxComment is what the nft command accepts (NFTNL_UDATA_COMMENT_MAXLEN).
const maxComment = 128 - 1

// String is the rule's comment. An id that is too long for one is replaced by its hash.
func (l Label) String() string {
	prefix := Prefix(l.Plugin, l.Network)
	s := prefix + l.ContainerID + "/" + l.IfName
	if len(s) > maxComment {
		h := fnv.New128a()
		h.Write([]byte(s))
		s = fmt.Sprintf("%s#%x", prefix, h.Sum(nil))
	}
	return s
}

// Prefix is how the labels of a plugin and a network begin.
func Prefix(plugin, network string) string {
	if len(network) > 64 {
		h := fnv.New128a()
		h.Write([]byte(network))
		network = fmt.Sprintf("#%x", h.Sum(nil))
	}
	return plugin + " " + network + "/"
}

// A Table is one of the plugin's tables.
type Table = nftables.TableFamily

// Tables of an address family, and the bridge's.
const (
	V4     = nftables.TableFamilyIPv4
	V6     = nftables.TableFamilyIPv6
	Bridge = nftables.TableFamilyBridge
)

// Of returns the table of an address family.
func Of(f family.Family) Table {
	if f == family.V4 {
		return V4
	}
	return V6
}

// A Rule is one per-pod rule. Later rules of a chain are looked at first.
type Rule struct {
	Table Table
	Chain string
	Exprs []expr.Any
}

// A Conn talks to nf_tables.
type Conn struct {
	nft   *nftables.Conn
	lists *nl.NetlinkSocket
}

// Open opens a socket in the caller's namespace.
func Open() (*Conn, error) {
	// A transaction goes out in one piece (else EMSGSIZE), and each of its messages is answered (else ENOBUFS).
	buffers := nftables.WithSockOptions(func(s *netlink.Conn) error {
		return errors.Join(s.SetWriteBuffer(16<<20), s.SetReadBuffer(16<<20))
	})
	c, err := nftables.New(nftables.AsLasting(), buffers)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	lists, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("nftables: %w", err), c.CloseLasting())
	}
	return &Conn{nft: c, lists: lists}, nil
}

// Close closes the socket.
func (c *Conn) Close() {
	_ = c.nft.CloseLasting()
	c.lists.Close()
}

// Replace makes rules the only ones with that label, in one transaction.
func (c *Conn) Replace(label Label, rules []Rule) error {
	return again(func() error {
		old, err := c.find(func(comment string) bool { return comment == label.String() })
		if err != nil {
			return err
		}
		c.add(label, rules)
		return c.deleteAnd(old)
	})
}

// add adds the rules, and what they need, to the transaction.
func (c *Conn) add(label Label, rules []Rule) {
	made := map[Table]bool{}
	for _, r := range rules {
		if !made[r.Table] {
			c.skeleton(r.Table)
			made[r.Table] = true
		}
		t := &nftables.Table{Name: TableName, Family: r.Table}
		c.nft.InsertRule(&nftables.Rule{
			Table: t, Chain: &nftables.Chain{Name: r.Chain, Table: t}, Exprs: r.Exprs,
			UserData: userdata.AppendString(nil, userdata.TypeComment, label.String()),
		})
	}
}

// Remove deletes the rules whose comment matches. No table is fine.
func (c *Conn) Remove(match func(comment string) bool) error {
	return again(func() error {
		old, err := c.find(match)
		if err != nil {
			return err
		}
		for some := range slices.Chunk(old, 256) { // there may be thousands, and nobody needs them to go at once
			if err := c.deleteAnd(some); err != nil {
				return err
			}
		}
		return nil
	})
}

// again repeats what another process was quicker with: a rule that it has deleted since it was listed makes
// the whole transaction fail, and so does a chain that is still in use because a jump to it was not listed.
func again(f func() error) (err error) {
	for range 20 {
		if err = f(); !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	return err
}

func (c *Conn) deleteAnd(old []*nftables.Rule) error {
	for _, r := range old {
		if err := c.nft.DelRule(r); err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
	}
	if err := c.nft.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// Count returns how many rules each label has.
func (c *Conn) Count() (map[string]int, error) {
	n := map[string]int{}
	all, err := c.find(func(string) bool { return true })
	for _, r := range all {
		comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		n[comment]++
	}
	return n, err
}

// find lists the per-pod rules that match.
func (c *Conn) find(match func(comment string) bool) ([]*nftables.Rule, error) {
	var found []*nftables.Rule
	for _, place := range []struct {
		table Table
		chain string
	}{{V4, HostPorts}, {V4, PostRouting}, {V6, HostPorts}, {V6, PostRouting}, {Bridge, AntiSpoof}} {
		rules, err := c.list(place.table, place.chain)
		if absent(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list nftables rules: %w", err)
		}
		for _, r := range rules {
			comment, ok := userdata.GetString(r.UserData, userdata.TypeComment)
			if ok && match(strings.TrimRight(comment, "\x00")) {
				found = append(found, r)
			}
		}
	}
	return found, nil
}

// list dumps a chain of ours: handles and comments. The kernel hands a long one over in pieces and finds
// its place again by counting, so when a rule goes meanwhile, another one is left out. It says so
// (NLM_F_DUMP_INTR), which the nftables package does not hear, and the list is made anew.
func (c *Conn) list(table Table, chain string) ([]*nftables.Rule, error) {
	for range 1000 {
		req := c.request(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, table)
		req.AddData(nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(TableName)))
		req.AddData(nl.NewRtAttr(unix.NFTA_RULE_CHAIN, nl.ZeroTerminated(chain)))
		msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		if errors.Is(err, nl.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return nil, err
		}
		t := &nftables.Table{Name: TableName, Family: table}
		rules := make([]*nftables.Rule, 0, len(msgs))
		for _, m := range msgs {
			r := &nftables.Rule{Table: t, Chain: &nftables.Chain{Name: chain, Table: t}}
			if len(m) < nl.SizeofNfgenmsg {
				continue
			}
			attrs, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
			if err != nil {
				return nil, err
			}
			for _, a := range attrs {
				switch a.Attr.Type & nl.NLA_TYPE_MASK {
				case unix.NFTA_RULE_HANDLE:
					r.Handle = binary.BigEndian.Uint64(a.Value)
				case unix.NFTA_RULE_USERDATA:
					r.UserData = a.Value
				}
			}
			rules = append(rules, r)
		}
		return rules, nil
	}
	return nil, nl.ErrDumpInterrupted
}

func (c *Conn) request(message, flags int, table Table) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|message, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: c.lists}}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(table)})
	return req
}

// absent says whether err means that a table or chain is not there, or that the kernel has no such family.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

// skeleton adds the table, its chains and the static rules to the transaction.
func (c *Conn) skeleton(table Table) {
	t := c.nft.AddTable(&nftables.Table{Name: TableName, Family: table})
	if table == Bridge {
		c.base(t, AntiSpoof, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300)
		return
	}
	c.base(t, PostRouting, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 100-5)
	c.nft.AddChain(&nftables.Chain{Name: HostPorts, Table: t})
	for name, hook := range map[string]*nftables.ChainHook{
		"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput,
	} {
		chain := c.base(t, name, nftables.ChainTypeNAT, hook, -100+5)
		c.nft.FlushChain(chain)
		var except []expr.Any
		if table == V6 {
			// The answer could not come back: rt6_need_strict wants a packet to ::1 to come in on lo.
			except = NotTo(Loopback6)
		}
		c.nft.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: join(except, ToThisNode(), []expr.Any{Jump(HostPorts)})})
	}
	if table == V4 {
		// route_localnet, which hostPorts on 127.0.0.1 need, would let neighbours in as well (CVE-2020-8558).
		guard := c.base(t, "guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300)
		c.nft.FlushChain(guard)
		c.nft.AddRule(&nftables.Rule{Table: t, Chain: guard, Exprs: join(NotFromLoopback(), To(Loopback4), Drop())})
	}
}

func (c *Conn) base(t *nftables.Table, name string, kind nftables.ChainType, hook *nftables.ChainHook, priority int32) *nftables.Chain {
	return c.nft.AddChain(&nftables.Chain{
		Name: name, Table: t, Type: kind, Hooknum: hook, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(priority)),
	})
}
