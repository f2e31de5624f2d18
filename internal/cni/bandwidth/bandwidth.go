// Package bandwidth limits what a pod receives and sends.
//
//   - What the pod receives leaves the host through the outer end of its veth pair, where a token bucket
//     holds it back.
//   - What the pod sends comes in there, where Linux cannot queue. It is redirected to an ifb device of
//     the pod's own, and held back as it leaves that.
package bandwidth

import (
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Limit is a token bucket. The zero Limit is none.
type Limit struct {
	Rate  uint64 // bits per second
	Burst uint64 // bits
}

// A Config is the plugin's configuration, checked.
type Config struct {
	Network         string
	CNIVersion      string
	Ingress, Egress Limit // as the pod sees it: ingress is what it receives
	PrevResult      json.RawMessage
	Valid           []types.GCAttachment
}

type limits struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// Parse reads the configuration. What the runtime asks for counts, if it asks, before what the conflist says.
func Parse(stdin []byte) (Config, error) {
	var raw struct {
		limits
		Name          string               `json:"name"`
		CNIVersion    string               `json:"cniVersion"`
		Shaped        []string             `json:"shapedSubnets"`
		Unshaped      []string             `json:"unshapedSubnets"`
		PrevResult    json.RawMessage      `json:"prevResult"`
		Valid         []types.GCAttachment `json:"cni.dev/valid-attachments"`
		RuntimeConfig struct {
			Bandwidth *limits `json:"bandwidth"`
		} `json:"runtimeConfig"`
	}
	if err := json.Unmarshal(stdin, &raw); err != nil {
		return Config{}, types.NewError(types.ErrDecodingFailure, "bandwidth configuration: "+err.Error(), "")
	}
	want := raw.limits
	if raw.RuntimeConfig.Bandwidth != nil {
		want = *raw.RuntimeConfig.Bandwidth
	}
	c := Config{
		Network: raw.Name, CNIVersion: raw.CNIVersion, PrevResult: raw.PrevResult, Valid: raw.Valid,
		Ingress: Limit{want.IngressRate, want.IngressBurst}, Egress: Limit{want.EgressRate, want.EgressBurst},
	}
	err := errors.Join(c.Ingress.check("ingress"), c.Egress.check("egress"))
	if len(raw.Shaped)+len(raw.Unshaped) > 0 {
		err = errors.Join(err, errors.New("shapedSubnets, unshapedSubnets: not supported"))
	}
	if err != nil {
		return c, types.NewError(types.ErrInvalidNetworkConfig, "bandwidth: "+err.Error(), "")
	}
	return c, nil
}

func (l Limit) check(direction string) error {
	switch {
	case (l.Rate == 0) != (l.Burst == 0):
		return fmt.Errorf("%sRate and %sBurst: one needs the other", direction, direction)
	case l.Rate != 0 && l.Rate < 8, l.Burst != 0 && l.Burst < 8:
		return fmt.Errorf("%sRate, %sBurst: less than a byte", direction, direction)
	case l.Burst/8 > math.MaxUint32:
		return fmt.Errorf("%sBurst: %d is more than the kernel counts", direction, l.Burst)
	}
	return nil
}

// DeviceName returns the name of the ifb device, which for the first interface of a pod is the reference
// plugin's, so that either deletes what the other made.
func DeviceName(network, containerID, ifName string) string {
	key := network + containerID
	if ifName != "eth0" {
		key += "\x00" + ifName
	}
	return fmt.Sprintf("bwp%x", sha512.Sum512([]byte(key)))[:15]
}

// group is the mark of the ifb devices of a network. Unlike an alias it is there from the first moment, so
// GC finds what a killed ADD left; the alias is for people.
func group(network string) uint32 {
	h := fnv.New32a()
	h.Write([]byte("weft-bandwidth:" + network))
	return h.Sum32() | 1 // 0 is every device's
}

// A Kernel is a netlink socket of the host.
type Kernel struct {
	nl *netlink.Handle
}

// Open opens the socket in the caller's namespace.
func Open() (*Kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &Kernel{nl: h}, nil
}

// Close closes the socket.
func (k *Kernel) Close() { k.nl.Close() }

// Port returns the first of the devices that is a veth: the pod's outer end.
func (k *Kernel) Port(names []string) (netlink.Link, error) {
	for _, name := range names {
		if l, err := k.nl.LinkByName(name); err == nil && l.Type() == "veth" {
			return l, nil
		}
	}
	return nil, fmt.Errorf("prevResult names no veth of this node, of %q", names)
}

// Limit makes the limits of a pod true. device is the ifb's name.
func (k *Kernel) Limit(c Config, port netlink.Link, device string) error {
	if c.Ingress != (Limit{}) {
		if err := k.nl.QdiscReplace(c.Ingress.qdisc(port.Attrs().Index)); err != nil {
			return fmt.Errorf("token bucket on %s: %w", port.Attrs().Name, err)
		}
	}
	if c.Egress == (Limit{}) {
		return nil
	}
	if err := k.Delete(device); err != nil { // left by an ADD that was killed
		return err
	}
	ifb, err := k.makeIFB(device, c.Network, port.Attrs().MTU)
	if err != nil {
		return fmt.Errorf("ifb %s: %w", device, err)
	}
	if err := k.redirect(port.Attrs().Index, ifb); err != nil {
		return fmt.Errorf("redirect %s to %s: %w", port.Attrs().Name, device, err)
	}
	if err := k.nl.QdiscReplace(c.Egress.qdisc(ifb)); err != nil {
		return fmt.Errorf("token bucket on %s: %w", device, err)
	}
	return nil
}

func (k *Kernel) makeIFB(name, network string, mtu int) (int, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Group, attrs.Flags = name, mtu, group(network), net.FlagUp
	if err := k.nl.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); err != nil {
		return 0, err
	}
	link, err := k.nl.LinkByName(name)
	if err != nil {
		return 0, err
	}
	return link.Attrs().Index, k.nl.LinkSetAlias(link, "weft:"+network)
}

func (k *Kernel) redirect(from, to int) error {
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: from, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}}
	if err := k.nl.QdiscReplace(ingress); err != nil {
		return err
	}
	return k.nl.FilterReplace(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: from, Parent: ingress.Handle, Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		ClassId: netlink.MakeHandle(1, 1),
		Actions: []netlink.Action{netlink.NewMirredAction(to)},
	})
}

// latency is how long a packet may wait in the bucket before it is dropped.
const latency = 0.025 // seconds

func (l Limit) qdisc(link int) *netlink.Tbf {
	rate, burst := l.Rate/8, uint32(l.Burst/8)
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate,
		Buffer:     ticks(rate, burst),
		Limit:      uint32(min(float64(rate)*latency+float64(burst), math.MaxUint32)), // bytes
	}
}

// ticks is the time that burst bytes take, in the unit in which tc counts it.
func ticks(rate uint64, burst uint32) uint32 {
	return uint32(min(float64(burst)*netlink.TIME_UNITS_PER_SEC/float64(rate)*netlink.TickInUsec(), math.MaxUint32))
}

// Check says what differs.
func (k *Kernel) Check(c Config, port netlink.Link, device string) ([]string, error) {
	var differences []string
	for _, side := range []struct {
		name  string
		limit Limit
	}{{port.Attrs().Name, c.Ingress}, {device, c.Egress}} {
		if side.limit == (Limit{}) {
			continue
		}
		ok, err := k.has(side.name, side.limit)
		if err != nil {
			return nil, err
		}
		if !ok {
			differences = append(differences, fmt.Sprintf("%s does not limit to %d bit/s", side.name, side.limit.Rate))
		}
	}
	return differences, nil
}

func (k *Kernel) has(name string, want Limit) (bool, error) {
	link, err := k.nl.LinkByName(name)
	if missing(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("device %s: %w", name, err)
	}
	qdiscs, err := k.nl.QdiscList(link)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, fmt.Errorf("qdiscs of %s: %w", name, err)
	}
	for _, q := range qdiscs {
		if tbf, ok := q.(*netlink.Tbf); ok && tbf.Rate == want.Rate/8 {
			return true, nil
		}
	}
	return false, nil
}

// Delete deletes an ifb device. One that is gone is fine; the buckets of a veth go with it.
func (k *Kernel) Delete(device string) error {
	link, err := k.nl.LinkByName(device)
	if err == nil {
		err = k.nl.LinkDel(link)
	}
	if err != nil && !missing(err) {
		return fmt.Errorf("delete ifb %s: %w", device, err)
	}
	return nil
}

// DeleteOthers deletes the network's ifb devices that keep does not name.
func (k *Kernel) DeleteOthers(network string, keep map[string]bool) error {
	links, err := k.nl.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		if a := l.Attrs(); l.Type() == "ifb" && a.Group == group(network) && !keep[a.Name] {
			errs = append(errs, k.Delete(a.Name))
		}
	}
	return errors.Join(errs...)
}

func missing(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}
