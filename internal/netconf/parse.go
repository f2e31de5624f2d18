package netconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/weftnet/weft/internal/family"
)

// A Store says who hands out subnets, which decides what of a network must be given and what is computed.
type Store uint8

// The stores. With etcd, subnets are cut out of the network here. With Kubernetes they come with the Node
// objects: lengths, first and last subnet are decoded and have no meaning.
const (
	Etcd Store = iota
	Kubernetes
)

func (s Store) String() string {
	if s == Kubernetes {
		return "Kubernetes"
	}
	return "etcd"
}

// document is the top level as it is written. Values that have a form of their own stay raw until their
// family is known.
type document struct {
	EnableIPv4, EnableIPv6, EnableNFTables    bool
	DisableProbes                             bool
	Network, SubnetMin, SubnetMax             json.RawMessage
	IPv6Network, IPv6SubnetMin, IPv6SubnetMax json.RawMessage
	SubnetLen, IPv6SubnetLen                  uint
	AdditionalNetworks                        json.RawMessage
	IPv6AdditionalNetworks                    json.RawMessage
	Backend                                   json.RawMessage
}

// Parse returns the configuration that raw describes, with defaults filled in. An error is Problems: all
// there are. Warnings come with or without an error.
func Parse(raw []byte, s Store) (Config, Warnings, error) {
	p := &parser{store: s}
	c := p.config(raw)
	if len(p.problems) > 0 {
		return Config{}, p.warnings, p.problems
	}
	return c, p.warnings, nil
}

func (p *parser) config(raw []byte) Config {
	var whole json.RawMessage
	if err := json.Unmarshal(raw, &whole); err != nil {
		p.problem("", "not JSON: %s", position(raw, err))
		return Config{}
	}
	ms, err := members(whole)
	if err != nil {
		p.problem("", "%s: the configuration is one object, {\"Network\": ...}", err)
		return Config{}
	}
	doc := document{EnableIPv4: true}
	for _, key := range p.object("", ms, &doc) {
		p.unknownTop(key)
	}
	if !doc.EnableIPv4 && !doc.EnableIPv6 {
		p.problem("EnableIPv4", "IPv4 and IPv6 are both off: at least one must be on")
	}
	if !doc.EnableIPv4 && doc.EnableIPv6 && p.store == Etcd {
		p.warn("EnableIPv4", "off: leases go to a part of etcd of our own, as the original's begin with an IPv4 subnet; nodes that run the original cannot take part")
	}
	c := Config{NFTables: doc.EnableNFTables, NoProbes: doc.DisableProbes}
	c.Network.V4 = p.network(rawNetwork{
		family: family.V4, enabled: doc.EnableIPv4, prefix: doc.Network, additional: doc.AdditionalNetworks,
		len: doc.SubnetLen, min: doc.SubnetMin, max: doc.SubnetMax,
	})
	c.Network.V6 = p.network(rawNetwork{
		family: family.V6, enabled: doc.EnableIPv6, prefix: doc.IPv6Network, additional: doc.IPv6AdditionalNetworks,
		len: doc.IPv6SubnetLen, min: doc.IPv6SubnetMin, max: doc.IPv6SubnetMax,
	})
	c.Backend = p.backend(doc.Backend, family.Pair[bool]{V4: doc.EnableIPv4, V6: doc.EnableIPv6})
	return c
}

// position adds line and column to what encoding/json says of a text that is not JSON.
func position(raw []byte, err error) string {
	var e *json.SyntaxError
	if !errors.As(err, &e) || e.Offset == 0 {
		return err.Error()
	}
	before := raw[:min(int(e.Offset)-1, len(raw))]
	line := bytes.Count(before, []byte("\n")) + 1
	column := len(before) - bytes.LastIndexByte(before, '\n')
	return fmt.Sprintf("line %d, column %d: %s", line, column, e)
}

func (p *parser) unknownTop(key string) {
	if name, ok := match(key, backendKeys()); ok {
		p.warn(key, "ignored here: %s belongs into Backend", name)
	} else if name, ok := near(key, fieldNames(document{})); ok {
		p.warn(key, "unknown, ignored: perhaps %s is meant", name)
	}
}
