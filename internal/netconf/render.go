package netconf

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"time"

	"github.com/weftnet/weft/internal/secret"
)

// rendered is a Config in the spelling and order of the manual.
type rendered struct {
	EnableIPv4, EnableIPv6, EnableNFTables bool

	DisableProbes bool `json:",omitempty"`

	Network   netip.Prefix `json:",omitzero"`
	SubnetLen int          `json:",omitempty"`
	SubnetMin netip.Addr   `json:",omitzero"`
	SubnetMax netip.Addr   `json:",omitzero"`

	AdditionalNetworks []netip.Prefix `json:",omitempty"`

	IPv6Network   netip.Prefix `json:",omitzero"`
	IPv6SubnetLen int          `json:",omitempty"`
	IPv6SubnetMin netip.Addr   `json:",omitzero"`
	IPv6SubnetMax netip.Addr   `json:",omitzero"`

	IPv6AdditionalNetworks []netip.Prefix `json:",omitempty"`

	Backend json.RawMessage
}

// Render returns c as net-conf.json with every default written out: Parse of it gives c again. It holds
// secrets in clear, unless they were hidden by Redacted.
func Render(c Config) []byte {
	v4, v6 := c.Network.V4, c.Network.V6
	return marshal(rendered{
		EnableIPv4: v4.Enabled(), EnableIPv6: v6.Enabled(), EnableNFTables: c.NFTables,
		DisableProbes: c.NoProbes,
		Network:       v4.Prefix, SubnetLen: v4.SubnetLen, SubnetMin: v4.Min, SubnetMax: v4.Max,
		AdditionalNetworks: v4.Additional.Prefixes(),
		IPv6Network:        v6.Prefix, IPv6SubnetLen: v6.SubnetLen, IPv6SubnetMin: v6.Min, IPv6SubnetMax: v6.Max,
		IPv6AdditionalNetworks: v6.Additional.Prefixes(),
		Backend:                renderBackend(c.Backend),
	}, "  ")
}

// Redacted returns c with "(hidden)" in place of its secrets, for people to look at.
func (c Config) Redacted() Config {
	hide := func(s secret.Text) secret.Text { return secret.New(s.String()) }
	switch b := c.Backend.(type) {
	case WireGuard:
		b.PSK = hide(b.PSK)
		c.Backend = b
	case IPsec:
		b.PSK = hide(b.PSK)
		c.Backend = b
	case TencentVPC:
		b.AccessKeyID, b.AccessKeySecret = hide(b.AccessKeyID), hide(b.AccessKeySecret)
		c.Backend = b
	}
	return c
}

func renderBackend(b Backend) json.RawMessage {
	var options any = b
	switch b := b.(type) {
	case WireGuard:
		options = rawWireGuard{b.ListenPort, b.ListenPortV6, b.MTU, b.PSK.Reveal(), int(b.Keepalive / time.Second), b.Mode}
	case IPsec:
		options = rawIPsec{b.PSK.Reveal(), b.UDPEncap, b.ESPProposal}
	case TencentVPC:
		options = rawTencentVPC{b.AccessKeyID.Reveal(), b.AccessKeySecret.Reveal()}
	}
	first := bytes.TrimSuffix(marshal(struct{ Type string }{b.Type()}, ""), []byte("}\n"))
	rest := bytes.TrimPrefix(marshal(options, ""), []byte("{"))
	if len(rest) > len("}\n") {
		first = append(first, ',')
	}
	return append(first, rest...)
}

// marshal encodes plain structs, which cannot fail, and leaves <, > and & in commands readable.
func marshal(v any, indent string) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		panic(err)
	}
	return b.Bytes()
}
