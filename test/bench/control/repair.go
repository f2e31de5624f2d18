package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/lab"
)

// damages is how often each kind of damage is done.
const damages = 40

// repairs measures how long it takes from a change in etcd, or from damage in the kernel, to the state that
// should be.
func (b *bench) repairs(ctx context.Context) error {
	fmt.Printf("| change, with %d peers | p50 | p99 | worst |\n| --- | --- | --- | --- |\n", b.peers)
	time.Sleep(time.Second) // after the start, as after any change
	row := func(name string, do func(i int) (func() bool, error)) error {
		var ds []time.Duration
		for i := range damages {
			d, err := b.time(ctx, i, do)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			ds = append(ds, d)
		}
		slices.Sort(ds)
		fmt.Printf("| %s | %v | %v | %v |\n", name, ms(quantile(ds, 0.5)), ms(quantile(ds, 0.99)), ms(ds[len(ds)-1]))
		return nil
	}
	client, err := b.lab.Etcd().Client()
	if err != nil {
		return err
	}
	defer client.Close()
	for _, r := range []struct {
		name string
		do   func(int) (func() bool, error)
	}{
		{"a lease in etcd, to its route", func(i int) (func() bool, error) { return b.join(ctx, client, i) }},
		{"route deleted", b.route},
		{"neighbour deleted", b.neighbour},
		{"FDB entry deleted", b.fdb},
		{"device's MAC changed", b.mac},
		{"device set down", b.down},
		{"device deleted, to the last route", b.device},
		{"ruleset flushed", b.ruleset},
	} {
		if err := row(r.name, r.do); err != nil {
			return err
		}
	}
	fmt.Println()
	return nil
}

// time does one change and waits until it is answered.
func (b *bench) time(ctx context.Context, i int, do func(int) (func() bool, error)) (time.Duration, error) {
	if err := b.settle(ctx); err != nil {
		return 0, err
	}
	began := time.Now()
	done, err := do(i)
	if err != nil {
		return 0, err
	}
	for !done() {
		if time.Since(began) > 20*time.Second || ctx.Err() != nil {
			return 0, fmt.Errorf("not answered in time:\n%s", b.node.Agent.LogTail(10))
		}
		time.Sleep(200 * time.Microsecond)
	}
	d := time.Since(began)
	time.Sleep(d) // the agent rests after a pass for as long as that took, too
	return d, nil
}

// settle lets the agent come to rest, so that each change meets it there.
func (b *bench) settle(ctx context.Context) error {
	for last := time.Duration(-1); ctx.Err() == nil; time.Sleep(150 * time.Millisecond) {
		now, err := usageOf(b.node.Agent.PID())
		if err != nil || now.cpu == last {
			return err
		}
		last = now.cpu
	}
	return ctx.Err()
}

func (b *bench) join(ctx context.Context, c *clientv3.Client, i int) (func() bool, error) {
	n := b.peers + i
	_, err := c.Put(ctx, lab.Prefix+"/subnets/"+peerKey(n), peerValue(n))
	return func() bool { return b.hasRoute(n) }, err
}

// dst is the subnet of peer i.
func dst(i int) *net.IPNet {
	return &net.IPNet{IP: net.IPv4(10, byte(100+i/256), byte(i%256), 0).To4(), Mask: net.CIDRMask(24, 32)}
}

func (b *bench) hasRoute(i int) bool {
	rs, err := b.nl.RouteGetWithOptions(dst(i).IP, &netlink.RouteGetOptions{FIBMatch: true})
	return err == nil && len(rs) == 1 && rs[0].Dst != nil && rs[0].Dst.String() == dst(i).String()
}

func (b *bench) vtep() netlink.Link {
	l, err := b.nl.LinkByName("flannel.1")
	if err != nil {
		return nil
	}
	return l
}

func (b *bench) route(i int) (func() bool, error) {
	err := b.nl.RouteDel(&netlink.Route{Dst: dst(i), LinkIndex: b.vtep().Attrs().Index})
	return func() bool { return b.hasRoute(i) }, err
}

func (b *bench) entry(i int, fdb bool) *netlink.Neigh {
	n := &netlink.Neigh{LinkIndex: b.vtep().Attrs().Index, State: netlink.NUD_PERMANENT,
		HardwareAddr: net.HardwareAddr{2, 0, 0, byte(i / 256), byte(i % 256), 1}}
	if fdb {
		n.Family, n.Flags, n.IP = unix.AF_BRIDGE, netlink.NTF_SELF, net.IPv4(192, 168, byte(i/250), byte(i%250+1)).To4()
	} else {
		n.Family, n.IP = unix.AF_INET, dst(i).IP
	}
	return n
}

// has lists what the entry is one of, and looks for it.
func (b *bench) has(e *netlink.Neigh) bool {
	ns, err := b.nl.NeighListExecute(netlink.Ndmsg{Family: uint8(e.Family), Index: uint32(e.LinkIndex)})
	return err == nil && slices.ContainsFunc(ns, func(n netlink.Neigh) bool {
		return n.HardwareAddr.String() == e.HardwareAddr.String() && n.IP.Equal(e.IP)
	})
}

func (b *bench) neighbour(i int) (func() bool, error) {
	e := b.entry(i, false)
	return func() bool { return b.has(e) }, b.nl.NeighDel(e)
}

func (b *bench) fdb(i int) (func() bool, error) {
	e := b.entry(i, true)
	return func() bool { return b.has(e) }, b.nl.NeighDel(e)
}

func (b *bench) mac(int) (func() bool, error) {
	was := b.vtep().Attrs().HardwareAddr.String()
	err := b.nl.LinkSetHardwareAddr(b.vtep(), net.HardwareAddr{2, 2, 2, 2, 2, 2})
	return func() bool { l := b.vtep(); return l != nil && l.Attrs().HardwareAddr.String() == was }, err
}

func (b *bench) down(int) (func() bool, error) {
	err := b.nl.LinkSetDown(b.vtep())
	return func() bool { return b.hasRoute(b.peers - 1) }, err // a device that goes down loses its routes
}

func (b *bench) device(int) (func() bool, error) {
	err := b.nl.LinkDel(b.vtep())
	return func() bool { return b.hasRoute(b.peers - 1) }, err
}

func (b *bench) ruleset(int) (func() bool, error) {
	err := b.node.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.FlushRuleset()
		return c.Flush()
	})
	return func() bool { return b.chains() }, err
}

func (b *bench) chains() bool {
	there := false
	_ = b.node.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
		there = err == nil && slices.ContainsFunc(chains, func(ch *nftables.Chain) bool { return ch.Name == "postrtg" })
		return err
	})
	return there
}
