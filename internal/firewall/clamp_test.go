package firewall

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/netnstest"
)

const clamp4 = `
-A FORWARD -m comment --comment "flanneld mss" -j FLANNEL-MSS
-A FLANNEL-MSS -s 10.5.0.0/16 -p tcp -m tcp --tcp-flags SYN,RST SYN -m comment --comment "flanneld mss" -j TCPMSS --clamp-mss-to-pmtu
-A FLANNEL-MSS ! -s 10.5.0.0/16 -d 10.5.0.0/16 -p tcp -m tcp --tcp-flags SYN,RST SYN -m comment --comment "flanneld mss" -j TCPMSS --clamp-mss-to-pmtu
`

const clamp6 = `
-A FORWARD -m comment --comment "flanneld mss" -j FLANNEL-MSS
-A FLANNEL-MSS -s fd00:5::/48 -p tcp -m tcp --tcp-flags SYN,RST SYN -m comment --comment "flanneld mss" -j TCPMSS --clamp-mss-to-pmtu
-A FLANNEL-MSS ! -s fd00:5::/48 -d fd00:5::/48 -p tcp -m tcp --tcp-flags SYN,RST SYN -m comment --comment "flanneld mss" -j TCPMSS --clamp-mss-to-pmtu
`

func clamping(m Mode) Policy {
	p := dual(m)
	p.Clamp = true
	return p
}

// TestClampText holds the rules to the letter, as iptables-nft and nft print them.
func TestClampText(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		fw := open(t)
		apply(t, fw, clamping(IPTables))
		settled(t, fw, clamping(IPTables))
		shows(t, "iptables-nft -t mangle -S | grep ^-A", clamp4)
		shows(t, "ip6tables-nft -t mangle -S | grep ^-A", clamp6)
		shows(t, "iptables-nft -t nat -S | grep ^-A", iptables4)
		shows(t, "iptables-nft -t filter -S | grep ^-A", forward4)
	})
	netnstest.Run(t, func(t *testing.T) {
		fw := open(t)
		p := Policy{Mode: NFTables, Clamp: true, Network: dual(NFTables).Network}
		apply(t, fw, p)
		settled(t, fw, p)
		shows(t, "nft list ruleset", `
			table ip flannel-ipv4 {
				comment "rules for flannel-ipv4"
				chain mss {
					comment "chain to clamp the MSS of pods' connections"
					type filter hook forward priority mangle; policy accept;
					ip saddr 10.5.0.0/16 tcp flags syn / syn,rst tcp option maxseg size set rt mtu
					ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 tcp flags syn / syn,rst tcp option maxseg size set rt mtu
				}
			}
			table ip6 flannel-ipv6 {
				comment "rules for flannel-ipv6"
				chain mss {
					comment "chain to clamp the MSS of pods' connections"
					type filter hook forward priority mangle; policy accept;
					ip6 saddr fd00:5::/48 tcp flags syn / syn,rst tcp option maxseg size set rt mtu
					ip6 saddr != fd00:5::/48 ip6 daddr fd00:5::/48 tcp flags syn / syn,rst tcp option maxseg size set rt mtu
				}
			}`)
	})
}

// TestIPTablesWritesTheSameClamp adopts rules that iptables-nft wrote, in whichever encoding it has.
func TestIPTablesWritesTheSameClamp(t *testing.T) {
	need(t)
	netnstest.Run(t, func(t *testing.T) {
		for program, text := range map[string]string{"iptables-nft": clamp4, "ip6tables-nft": clamp6} {
			sh(t, program+" -t mangle -N FLANNEL-MSS")
			for _, l := range lines(text) {
				sh(t, program+" -t mangle "+l)
			}
		}
		p := clamping(IPTables)
		p.Masquerade, p.Forward = false, false
		settled(t, open(t), p)
	})
}

// TestClampComesAndGoes switches it on and off around somebody's rules, in both modes and from one to the other.
func TestClampComesAndGoes(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		sh(t, foreign+`iptables-nft -t mangle -A FORWARD -i lo -j MARK --set-mark 1
			ip6tables-nft -t mangle -N THEIRS; ip6tables-nft -t mangle -P FORWARD ACCEPT
			ip6tables-nft -P FORWARD ACCEPT`)
		fw := open(t)
		apply(t, fw, dual(m))
		without := everything(t)
		if strings.Contains(strings.ToLower(without), "mss") {
			t.Errorf("there although it is off:\n%s", without)
		}
		for _, p := range []Policy{clamping(m), clamping(1 - m), clamping(m), dual(m)} {
			apply(t, fw, p)
			settled(t, fw, p)
			if on := strings.Contains(everything(t), "TCPMSS") || strings.Contains(everything(t), "maxseg"); on != p.Clamp {
				t.Errorf("%s, clamping %v: %v", p.Mode, p.Clamp, on)
			}
		}
		if diff := cmp.Diff(without, everything(t)); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
		apply(t, fw, clamping(m))
		if _, err := fw.Cleanup(context.Background(), false); err != nil {
			t.Fatal(err)
		}
		if s := everything(t); strings.Contains(strings.ToLower(s), "flannel-") || strings.Contains(s, "TCPMSS") {
			t.Errorf("left behind:\n%s", s)
		}
	})
}

// TestClampGoesWithItsTable leaves no table mangle that was not there.
func TestClampGoesWithItsTable(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		fw := open(t)
		apply(t, fw, clamping(m))
		if _, err := fw.Cleanup(context.Background(), false); err != nil {
			t.Fatal(err)
		}
		shows(t, "nft list ruleset", "")
	})
}

func TestClampIsRepaired(t *testing.T) {
	damages := map[Mode][]string{
		IPTables: {
			"iptables-nft -t mangle -F FLANNEL-MSS",
			"iptables-nft -t mangle -D FLANNEL-MSS 1",
			"iptables-nft -t mangle -F FORWARD",
			"iptables-nft -t mangle -F; iptables-nft -t mangle -X",
			"ip6tables-nft -t mangle -A FLANNEL-MSS -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 100",
			"nft delete table ip mangle",
			"nft flush ruleset",
		},
		NFTables: {
			"nft flush chain ip flannel-ipv4 mss",
			"nft flush chain ip6 flannel-ipv6 mss; nft delete chain ip6 flannel-ipv6 mss",
			"nft insert rule ip flannel-ipv4 mss return",
			"nft 'chain ip flannel-ipv4 mss { policy drop; }'",
			"nft flush ruleset",
		},
	}
	modes(t, func(t *testing.T, m Mode) {
		fw, p := open(t), clamping(m)
		apply(t, fw, p)
		whole := everything(t)
		woken := watch(t, fw)
		for _, damage := range damages[m] {
			for len(woken) > 0 {
				<-woken
			}
			sh(t, damage)
			<-woken
			apply(t, fw, p)
			settled(t, fw, p)
			if diff := cmp.Diff(whole, everything(t)); diff != "" {
				t.Errorf("%s (-before +mended):\n%s", damage, diff)
			}
		}
	})
}

// TestClampRefused goes on without it, in one family if only that refuses: masquerading must not suffer.
func TestClampRefused(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		fw, p := open(t), clamping(m)
		text := map[Mode]string{IPTables: "! -s 10.5.0.0/16 -d 10.5.0.0/16 -p tcp", NFTables: "daddr 10.5.0.0/16 tcp flags"}[m]
		fw.rules = refuser{fw.rules, unix.ENOENT, text}
		apply(t, fw, p)
		if changes := apply(t, fw, p); len(changes) != 0 {
			t.Errorf("no rest: %+v", changes)
		}
		s := everything(t)
		if strings.Count(s, "-j TCPMSS")+strings.Count(s, "maxseg") != 2 || !strings.Contains(strings.ToLower(s), "masquerade") {
			t.Errorf("want IPv6 clamping only:\n%s", s)
		}
	})
}

// TestClampedMSS looks at the SYN that arrives. The pods' own MTU is 1500, that of the device between the nodes 1450.
func TestClampedMSS(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		s := newScene(t)
		sh(t, "ip link set rem0 mtu 1450")
		fw := open(t)
		for _, c := range []struct {
			name     string
			from, to host
			dst      string
			off, on  int
		}{
			{"pod to pod of another node", s.pod, s.remote, "10.5.8.2", 1460, 1410},
			{"pod of another node to pod", s.remote, s.pod, "10.5.7.2", 1460, 1410},
			{"outside to pod of another node", s.outside, s.remote, "10.5.8.2", 1460, 1410},
			{"outside to pod", s.outside, s.pod, "10.5.7.2", 1460, 1460},
			{"pod to outside", s.pod, s.outside, "192.0.2.2", 1460, 1460},
			{"IPv6 pod to pod of another node", s.pod, s.remote, "fd00:5:0:8::2", 1440, 1390},
			{"IPv6 pod of another node to pod", s.remote, s.pod, "fd00:5:0:7::2", 1440, 1390},
			{"IPv6 pod to outside", s.pod, s.outside, "2001:db8::2", 1440, 1440},
		} {
			apply(t, fw, dual(m))
			if got := arrivingMSS(t, c.from, c.to, c.dst); got != c.off {
				t.Errorf("%s without clamping: MSS %d, want %d", c.name, got, c.off)
			}
			apply(t, fw, clamping(m))
			if got := arrivingMSS(t, c.from, c.to, c.dst); got != c.on {
				t.Errorf("%s: MSS %d, want %d", c.name, got, c.on)
			}
		}
	})
}

// arrivingMSS connects and returns the MSS in the SYN as the listener gets it (TCP_SAVED_SYN in tcp(7)).
func arrivingMSS(t *testing.T, from, to host, dst string) int {
	t.Helper()
	var l net.Listener
	var err error
	save := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (failed error) {
		err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_SAVE_SYN, 1) })
		if err != nil {
			return err
		}
		return failed
	}}
	to.do(t, func() { l, err = save.Listen(context.Background(), "tcp", net.JoinHostPort(dst, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			accepted <- nil
			return
		}
		defer c.Close()
		accepted <- savedSYN(c)
	}()
	from.do(t, func() {
		var c net.Conn
		if c, err = net.Dial("tcp", l.Addr().String()); err == nil {
			err = c.Close()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	mss, err := mssOf(<-accepted)
	if err != nil {
		t.Fatal(err)
	}
	return mss
}

func savedSYN(c net.Conn) []byte {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil
	}
	b := make([]byte, 256)
	if raw.Control(func(fd uintptr) { err = getsockopt(int(fd), unix.IPPROTO_TCP, unix.TCP_SAVED_SYN, b) }) != nil || err != nil {
		return nil
	}
	return b
}

// mssOf reads an IP header without extensions and a TCP header.
func mssOf(syn []byte) (int, error) {
	if len(syn) < 60 {
		return 0, fmt.Errorf("no SYN was kept: %x", syn)
	}
	tcp := syn[40:]
	if syn[0]>>4 == 4 {
		tcp = syn[4*(syn[0]&15):]
	}
	options := tcp[20 : 4*(tcp[12]>>4)]
	for len(options) >= 4 && options[0] != 0 {
		if options[0] == optionMSS {
			return int(binary.BigEndian.Uint16(options[2:])), nil
		}
		if options[0] == 1 {
			options = options[1:]
			continue
		}
		options = options[options[1]:]
	}
	return 0, fmt.Errorf("no MSS in %x", tcp)
}
