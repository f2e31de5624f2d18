package firewall

import (
	"bytes"
	"errors"
	"hash/fnv"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// A listing is what a family has in each spot.
type listing struct {
	generation uint32
	spots      [spotCount]found
}

// A found is what there is in one spot.
type found struct {
	table bool
	flags uint32 // of the table
	base  *foundBase
	chain bool
	rules []kernelRule
	jumps []jump

	// What follows the last jump in the base chain: its content as one number, 0 if nothing does, and
	// whether it refuses every packet.
	followers    uint64
	followerEnds bool

	// alone says that the table holds nothing but what is ours and an empty base chain. It is looked for only
	// where ours has to go.
	alone bool

	blocked string // the table and chain of a rule that refuses every packet before our jump
}

// A foundBase is a chain that is hooked, or, with the zero base, one that is not.
type foundBase struct {
	table  string
	base   base
	policy uint32
}

// hooked says whether the base chain sees the packets that it should.
func (h found) hooked(p place) bool {
	return h.base != nil && h.base.base.kind == p.base.kind && h.base.base.hook == p.base.hook
}

// A jump is a rule anywhere in the table that leads to our chain.
type jump struct {
	chain string // where the rule is
	rule  kernelRule
}

// list implements ruleset. It asks for the chains concerned by name: the tables may hold any number of
// others. Only where something of ours has to go is the whole table searched for jumps to it.
func (c *conn) list(f family.Family, want layout) (listing, error) {
	for i := 1; ; i++ {
		l, err := c.listOnce(f, want)
		if !errors.Is(err, errInterrupted) || i == attempts {
			return l, err
		}
	}
}

func (c *conn) listOnce(f family.Family, want layout) (listing, error) {
	var l listing
	var err error
	if l.generation, err = c.generation(); err != nil {
		return l, err
	}
	for s := range spotCount {
		if l.spots[s], err = c.listSpot(f, s, want.spots[s]); err != nil {
			return l, err
		}
	}
	return l, nil
}

func (c *conn) listSpot(f family.Family, s spot, want wanted) (found, error) {
	p := s.place(f)
	var h found
	var err error
	if h.table, h.flags, err = c.table(f, p.table); err != nil || !h.table {
		return h, err
	}
	if h.base, err = c.chain(f, p.table, p.base.name); err != nil {
		return h, err
	}
	if p.own {
		h.chain = h.base != nil
	} else {
		chain, err := c.chain(f, p.table, p.chain)
		if err != nil {
			return h, err
		}
		h.chain = chain != nil
		unwanted := len(want.rules) == 0 || want.ifHooked && !h.hooked(p)
		if err := c.listJumps(f, p, unwanted, &h); err != nil {
			return h, err
		}
		if unwanted && h.chain {
			if h.alone, err = c.alone(f, p); err != nil {
				return h, err
			}
		}
	}
	if h.chain {
		h.rules, err = c.chainRules(protocolFamily(f), p.table, p.chain)
	}
	return h, err
}

// listJumps fills in h.jumps, and what stands around them in the base chain.
func (c *conn) listJumps(f family.Family, p place, unwanted bool, h *found) error {
	if unwanted && !h.chain {
		return nil
	}
	chain := p.base.name
	if unwanted {
		chain = "" // all
	}
	messages, err := c.rules(protocolFamily(f), p.table, chain)
	if err != nil {
		return err
	}
	var after []kernelRule
	for _, m := range messages {
		mayJump := bytes.Contains(m, []byte(p.chain))
		if unwanted && !mayJump {
			continue
		}
		r := parseRule(m)
		if mayJump && r.target() == p.chain {
			h.jumps, after = append(h.jumps, jump{chain: r.chain, rule: r}), nil
			continue
		}
		if !unwanted && len(h.jumps) == 0 && h.blocked == "" && r.refusesAll() {
			h.blocked = p.in(f, p.base.name)
		}
		after = append(after, r)
	}
	if len(h.jumps) > 0 {
		h.followers, h.followerEnds = summary(after)
	}
	return nil
}

func summary(rules []kernelRule) (content uint64, ends bool) {
	if len(rules) == 0 {
		return 0, false
	}
	hash := fnv.New64a()
	for _, r := range rules {
		hash.Write(r.content())
		ends = ends || r.refusesAll()
	}
	return hash.Sum64(), ends
}

// table says whether a table is there, and its flags.
func (c *conn) table(f family.Family, name string) (bool, uint32, error) {
	answers, err := c.ask(protocolFamily(f), unix.NFT_MSG_GETTABLE, 0,
		encode(func(ae *netlink.AttributeEncoder) { ae.String(unix.NFTA_TABLE_NAME, name) }))
	if err != nil || len(answers) == 0 {
		return false, 0, err
	}
	for typ, data := range attributes(answers[0]) {
		if typ == unix.NFTA_TABLE_FLAGS {
			return true, number(data), nil
		}
	}
	return true, 0, nil
}

// chain returns a chain, or nil if it is not there.
func (c *conn) chain(f family.Family, table, name string) (*foundBase, error) {
	answers, err := c.ask(protocolFamily(f), unix.NFT_MSG_GETCHAIN, 0,
		encode(func(ae *netlink.AttributeEncoder) {
			ae.String(unix.NFTA_CHAIN_TABLE, table)
			ae.String(unix.NFTA_CHAIN_NAME, name)
		}))
	if err != nil || len(answers) == 0 {
		return nil, err
	}
	b := parseChain(answers[0])
	return &b, nil
}

// parseChain takes a chain message apart, which starts after the nfgenmsg.
func parseChain(msg []byte) foundBase {
	var b foundBase
	var name string
	for typ, data := range attributes(msg) {
		switch typ {
		case unix.NFTA_CHAIN_TABLE:
			b.table = text(data)
		case unix.NFTA_CHAIN_NAME:
			name = text(data)
		case unix.NFTA_CHAIN_TYPE:
			b.base.kind = text(data)
		case unix.NFTA_CHAIN_POLICY:
			b.policy = number(data)
		case unix.NFTA_CHAIN_HOOK:
			for typ, data := range attributes(data) {
				switch typ {
				case unix.NFTA_HOOK_HOOKNUM:
					b.base.hook = number(data)
				case unix.NFTA_HOOK_PRIORITY:
					b.base.priority = int32(number(data))
				}
			}
		}
	}
	if b.base.kind != "" {
		b.base.name = name
	}
	return b
}

// chainRules returns the rules of one chain.
func (c *conn) chainRules(f byte, table, chain string) ([]kernelRule, error) {
	messages, err := c.rules(f, table, chain)
	if err != nil {
		return nil, err
	}
	rules := make([]kernelRule, len(messages))
	for i, m := range messages {
		rules[i] = parseRule(m)
	}
	return rules, nil
}

// rules dumps the rules of one chain, or of all chains of a table.
func (c *conn) rules(f byte, table, chain string) ([][]byte, error) {
	return c.ask(f, unix.NFT_MSG_GETRULE, netlink.Dump,
		encode(func(ae *netlink.AttributeEncoder) {
			ae.String(unix.NFTA_RULE_TABLE, table)
			if chain != "" {
				ae.String(unix.NFTA_RULE_CHAIN, chain)
			}
		}))
}
