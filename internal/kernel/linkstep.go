package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel/rtnl"
	"github.com/weftnet/weft/internal/state"
)

// A linkStep makes, changes, renames, remakes or deletes a link.
type linkStep struct {
	op       state.Op
	name     string
	have     device
	want     state.Link // as stored; Prune empty
	from     string     // what it is called, if it is to be renamed
	recreate bool       // delete and make anew, with all that hangs on it
}

func (s *linkStep) kind() string { return "link" }

func (s *linkStep) change() state.Change {
	c := state.Change{Op: s.op, Kind: s.kind(), Object: s.name}
	switch {
	case s.op == state.Add:
		c.Want = words(attributes(device{Link: s.want, Up: true}))
	case s.op == state.Remove:
		c.Have = words(attributes(s.have))
	default:
		have, want := attributes(s.have), attributes(device{Link: s.want, Up: true})
		if s.from != "" {
			c.Object, have, want = s.from, append([]string{"name " + s.from}, have...), append([]string{"name " + s.name}, want...)
		}
		c.Have, c.Want = differing(have, want)
		if s.recreate {
			c.Want = "made anew: " + c.Want
		}
	}
	return c
}

// attributes prints a link much as ip -d link does. Two links of one kind have the same number of them, in
// the same order.
func attributes(d device) []string {
	a := []string{
		"kind " + d.Kind, fmt.Sprintf("mtu %d", d.MTU), "address " + d.MAC.String(), fmt.Sprintf("alias %q", d.Owner),
		either(d.Up, "up", "down"), either(d.Port, "part of another device", ""),
	}
	if d.Kind != kindVXLAN {
		return a
	}
	x := d.VXLAN
	return append(a, fmt.Sprintf("id %d", x.VNI), "dev "+cmp.Or(x.Parent, "none"),
		either(x.Port != 0, fmt.Sprintf("dstport %d", x.Port), "dstport default"),
		either(x.Local.IsValid(), "local "+x.Local.String(), "local none"),
		either(x.GBP, "gbp", "nogbp"), either(x.Learning, "learning", "nolearning"), d.Odd)
}

func either(which bool, yes, no string) string {
	if which {
		return yes
	}
	return no
}

// differing returns the attributes that are not the same, side by side.
func differing(have, want []string) (string, string) {
	var h, w []string
	for i := range min(len(have), len(want)) {
		if have[i] != want[i] {
			h, w = append(h, have[i]), append(w, want[i])
		}
	}
	return words(h), words(w)
}

func words(s []string) string {
	return strings.Join(slices.DeleteFunc(s, func(w string) bool { return w == "" }), " ")
}

func (s *linkStep) run(ctx context.Context, k *Kernel, h have) error {
	parent := h.links[s.want.VXLAN.Parent].Index
	switch {
	case s.op == state.Remove:
		return k.deleteLink(s.have.Index)
	case s.op == state.Add:
		return k.createLink(s.name, s.want, parent)
	case !s.recreate:
		err := k.changeLink(s, parent)
		// Older kernels cannot change the lower device or the local address.
		if !errors.Is(err, unix.EOPNOTSUPP) || s.have.VXLAN == s.want.VXLAN {
			return err
		}
	}
	k.log.InfoContext(ctx, "link made anew", "dev", s.name, "because", mustRecreate(s.have, s.want))
	if err := k.deleteLink(s.have.Index); err != nil {
		return err
	}
	return k.createLink(s.name, s.want, parent)
}

func (k *Kernel) createLink(name string, l state.Link, parent int32) error {
	var b rtnl.Batch
	b.Begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, make([]byte, unix.SizeofIfInfomsg))
	b.String(unix.IFLA_IFNAME, name)
	if l.MTU > 0 {
		b.Uint32(unix.IFLA_MTU, uint32(l.MTU))
	}
	if l.MAC != (state.MAC{}) {
		b.Bytes(unix.IFLA_ADDRESS, l.MAC[:])
	}
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.String(unix.IFLA_INFO_KIND, l.Kind)
		b.Nest(unix.IFLA_INFO_DATA, func() { newVXLAN(&b, l.VXLAN, parent) })
	})
	if err := k.exec(&b); err != nil {
		return err
	}
	// The kernel takes no alias when it makes a device, only afterwards.
	b.Reset()
	b.Begin(unix.RTM_NEWLINK, 0, linkHeader(0, true))
	b.String(unix.IFLA_IFNAME, name)
	if l.Owner != "" {
		b.Bytes(unix.IFLA_IFALIAS, []byte(l.Owner))
	}
	return k.exec(&b)
}

func newVXLAN(b *rtnl.Batch, x state.VXLAN, parent int32) {
	b.Uint32(unix.IFLA_VXLAN_ID, uint32(x.VNI))
	if x.Port != 0 {
		b.Uint16BE(unix.IFLA_VXLAN_PORT, uint16(x.Port))
	}
	if parent != 0 {
		b.Uint32(unix.IFLA_VXLAN_LINK, uint32(parent))
	}
	localAddress(b, x.Local)
	b.Bool(unix.IFLA_VXLAN_LEARNING, x.Learning)
	if x.GBP {
		b.Bytes(unix.IFLA_VXLAN_GBP, nil)
	}
	b.Bool(unix.IFLA_VXLAN_UDP_CSUM, true)
	b.Bool(unix.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, false)
	b.Bool(unix.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, false)
}

func localAddress(b *rtnl.Batch, a netip.Addr) {
	switch {
	case a.Is4():
		b.Addr(unix.IFLA_VXLAN_LOCAL, a)
	case a.Is6():
		b.Addr(unix.IFLA_VXLAN_LOCAL6, a)
	}
}

// changeLink changes in place what differs, and brings the link up.
func (k *Kernel) changeLink(s *linkStep, parent int32) error {
	var b rtnl.Batch
	d, l := s.have, s.want
	if d.VXLAN != l.VXLAN { // in a message of its own: the kernel refuses an MTU beside it
		b.Begin(unix.RTM_NEWLINK, 0, linkHeader(d.Index, false))
		b.Nest(unix.IFLA_LINKINFO, func() {
			b.String(unix.IFLA_INFO_KIND, l.Kind)
			b.Nest(unix.IFLA_INFO_DATA, func() { changedVXLAN(&b, d.VXLAN, l.VXLAN, parent) })
		})
	}
	b.Begin(unix.RTM_NEWLINK, 0, linkHeader(d.Index, true))
	if s.from != "" {
		b.String(unix.IFLA_IFNAME, s.name)
	}
	if d.MTU != l.MTU {
		b.Uint32(unix.IFLA_MTU, uint32(l.MTU))
	}
	if d.MAC != l.MAC {
		b.Bytes(unix.IFLA_ADDRESS, l.MAC[:])
	}
	if d.Owner != l.Owner {
		b.Bytes(unix.IFLA_IFALIAS, []byte(l.Owner))
	}
	if d.Port {
		b.Uint32(unix.IFLA_MASTER, 0)
	}
	return k.exec(&b)
}

func changedVXLAN(b *rtnl.Batch, have, want state.VXLAN, parent int32) {
	b.Uint32(unix.IFLA_VXLAN_ID, uint32(want.VNI))
	if have.Parent != want.Parent && parent != 0 {
		b.Uint32(unix.IFLA_VXLAN_LINK, uint32(parent))
	}
	if have.Local != want.Local {
		localAddress(b, want.Local)
	}
	if have.Learning != want.Learning {
		b.Bool(unix.IFLA_VXLAN_LEARNING, want.Learning)
	}
}

func (k *Kernel) deleteLink(index int32) error {
	var b rtnl.Batch
	b.Begin(unix.RTM_DELLINK, 0, linkHeader(index, false))
	err := k.exec(&b)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// exec sends a few requests and returns the first refusal.
func (k *Kernel) exec(b *rtnl.Batch) error {
	var first error
	err := k.conn.Exec(b, func(_ int, err error) {
		if first == nil {
			first = err
		}
	}, nil)
	return errors.Join(err, first)
}

// linkHeader is struct ifinfomsg.
func linkHeader(index int32, up bool) []byte {
	h := make([]byte, unix.SizeofIfInfomsg)
	put32(h[4:], uint32(index))
	if up {
		put32(h[8:], unix.IFF_UP)
		put32(h[12:], unix.IFF_UP)
	}
	return h
}
