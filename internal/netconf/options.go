package netconf

import (
	"encoding/base64"
	"slices"
	"time"

	"github.com/weftnet/weft/internal/secret"
)

func (p *parser) between(key string, v, lo, hi int) {
	if v < lo || v > hi {
		p.problem("Backend."+key, "%d must be from %d to %d", v, lo, hi)
	}
}

// port checks a UDP port. zero says what 0 means, "" that it means nothing.
func (p *parser) port(key string, v int, zero string) {
	if v < 0 || v > 65535 || v == 0 && zero == "" {
		or := ""
		if zero != "" {
			or = ", or 0: " + zero
		}
		p.problem("Backend."+key, "%d is not a port (1 to 65535%s)", v, or)
	}
}

func decodeAlloc(*parser, []member) Backend  { return Alloc{} }
func decodeHostGW(*parser, []member) Backend { return HostGW{} }

func decodeExtension(p *parser, ms []member) Backend {
	var b Extension
	p.object("Backend.", ms, &b)
	return b
}

func decodeIPIP(p *parser, ms []member) Backend {
	var b IPIP
	p.object("Backend.", ms, &b)
	return b
}

func decodeUDP(p *parser, ms []member) Backend {
	b := UDP{Port: 8285}
	p.object("Backend.", ms, &b)
	p.port("Port", b.Port, "")
	p.between("Queues", b.Queues, 0, 64)
	return b
}

type rawTencentVPC struct{ AccessKeyID, AccessKeySecret string }

func decodeTencentVPC(p *parser, ms []member) Backend {
	var raw rawTencentVPC
	p.object("Backend.", ms, &raw)
	return TencentVPC{AccessKeyID: secret.New(raw.AccessKeyID), AccessKeySecret: secret.New(raw.AccessKeySecret)}
}

type rawIPsec struct {
	PSK         string
	UDPEncap    bool
	ESPProposal string
}

func decodeIPsec(p *parser, ms []member) Backend {
	raw := rawIPsec{ESPProposal: "aes128gcm16-sha256-prfsha256-ecp256"}
	p.object("Backend.", ms, &raw)
	if len(raw.PSK) < 96 {
		p.problem("Backend.PSK", "has %d characters: at least 96 are needed", len(raw.PSK))
	}
	if raw.ESPProposal == "" {
		p.problem("Backend.ESPProposal", "empty: leave it out for the default")
	}
	return IPsec{PSK: secret.New(raw.PSK), UDPEncap: raw.UDPEncap, ESPProposal: raw.ESPProposal}
}

type rawWireGuard struct {
	ListenPort, ListenPortV6, MTU int
	PSK                           string
	PersistentKeepaliveInterval   int // seconds
	Mode                          string
}

func decodeWireGuard(p *parser, ms []member) Backend {
	raw := rawWireGuard{ListenPort: 51820, ListenPortV6: 51821, Mode: "separate"}
	p.object("Backend.", ms, &raw)
	p.port("ListenPort", raw.ListenPort, "")
	p.port("ListenPortV6", raw.ListenPortV6, "")
	p.between("PersistentKeepaliveInterval", raw.PersistentKeepaliveInterval, 0, 65535)
	if modes := []string{"separate", "auto", "ipv4", "ipv6"}; !slices.Contains(modes, raw.Mode) {
		p.problem("Backend.Mode", "%q is no mode: one of %s", clip(raw.Mode), list(modes))
	}
	if key, err := base64.StdEncoding.DecodeString(raw.PSK); raw.PSK != "" && (err != nil || len(key) != 32) {
		p.problem("Backend.PSK", "is not 32 bytes in base64, as wg genpsk prints them")
	}
	return WireGuard{
		ListenPort: raw.ListenPort, ListenPortV6: raw.ListenPortV6, MTU: raw.MTU, PSK: secret.New(raw.PSK),
		Keepalive: time.Duration(raw.PersistentKeepaliveInterval) * time.Second, Mode: raw.Mode,
	}
}

func decodeVXLAN(p *parser, ms []member) Backend {
	b := VXLAN{VNI: 1}
	p.object("Backend.", ms, &b)
	p.between("VNI", b.VNI, 0, 1<<24-1)
	p.port("Port", b.Port, "the kernel's choice, 8472")
	p.windows(b, ms)
	return b
}

// windows warns of what Windows nodes refuse, where a key that only they read shows that there are some.
func (p *parser) windows(b VXLAN, ms []member) {
	if !slices.ContainsFunc(ms, func(m member) bool {
		_, ok := match(m.key, []string{"Name", "MacPrefix"})
		return ok
	}) {
		return
	}
	if b.VNI < 4096 {
		p.warn("Backend.VNI", "%d: Windows nodes need 4096 or more", b.VNI)
	}
	if b.Port != 4789 {
		p.warn("Backend.Port", "%d: Windows nodes need 4789", b.Port)
	}
	if b.DirectRouting {
		p.warn("Backend.DirectRouting", "must be off for Windows nodes")
	}
	if b.GBP {
		p.warn("Backend.GBP", "must be off for Windows nodes")
	}
}
