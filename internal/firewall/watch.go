package firewall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/family"
)

// eventBuffer is what may wait in the socket; nft flush ruleset of a large host comes as one burst.
const eventBuffer = 1 << 20

func subscribe() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(c.SetReadBuffer(eventBuffer), c.JoinGroup(unix.NFNLGRP_NFTABLES)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Watch calls wake after every change, by anyone else, to a table or chain that a pass looks at, until ctx
// ends. It never waits for anything but the kernel; wake must not block. It may be called once.
func (f *Firewall) Watch(ctx context.Context, wake func()) error {
	stop := context.AfterFunc(ctx, func() { f.deadline(time.Unix(1, 0)) })
	defer stop()
	overrun := false // events were lost, and not all has been read that was queued then
	for {
		messages, err := f.events.Receive()
		lost := errors.Is(err, unix.ENOBUFS)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !lost:
			return fmt.Errorf("nftables events: %w", err)
		}
		// Some events are lost: any of them may have been ours to see. Until all that is queued has been read the kernel
		// drops whatever comes, without another error, so the end of that is told as well.
		drained := (overrun || lost) && f.drained()
		overrun = (overrun || lost) && !drained
		if lost || drained || slices.ContainsFunc(messages, f.concerns) {
			wake()
		}
	}
}

// drained says whether no event is queued.
func (f *Firewall) drained() bool {
	raw, err := f.events.SyscallConn()
	if err != nil {
		return true
	}
	empty := true
	err = raw.Control(func(fd uintptr) {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		empty = errors.Is(err, unix.EAGAIN)
	})
	return empty || err != nil
}

// deadline sets when Receive gives up. It fails only on a closed socket, which ends Receive too.
func (f *Firewall) deadline(t time.Time) { _ = f.events.SetReadDeadline(t) }

// concerns says whether an event is about something that a pass looks at, and not of our own making.
func (f *Firewall) concerns(m netlink.Message) bool {
	if m.Header.PID == f.conn.portID || m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < 4 {
		return false
	}
	fam := family.V4
	switch m.Data[0] {
	case unix.NFPROTO_IPV4:
	case unix.NFPROTO_IPV6:
		fam = family.V6
	default:
		return false
	}
	// The table is attribute 1 in all of them.
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
		return known(fam, attribute(m.Data[4:], unix.NFTA_TABLE_NAME), nil)
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		chain := attribute(m.Data[4:], unix.NFTA_CHAIN_NAME)
		return known(fam, attribute(m.Data[4:], unix.NFTA_CHAIN_TABLE), &chain)
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		chain := attribute(m.Data[4:], unix.NFTA_RULE_CHAIN)
		return known(fam, attribute(m.Data[4:], unix.NFTA_RULE_TABLE), &chain)
	}
	return false
}

// known says whether a pass looks at a table, or at a chain of it.
func known(f family.Family, table string, chain *string) bool {
	for s := range spotCount {
		p := s.place(f)
		if p.table == table && (chain == nil || *chain == p.chain || *chain == p.base.name) {
			return true
		}
	}
	return false
}

func attribute(attrs []byte, want uint16) string {
	for typ, data := range attributes(attrs) {
		if typ == want {
			return text(data)
		}
	}
	return ""
}
