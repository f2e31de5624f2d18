package plan

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netconf"
	"github.com/weftnet/weft/internal/state"
)

// A public address of its own makes direct ways impossible; the tunnel must go on all the same.
func TestAPublicAddressOfItsOwnCostsOnlyTheDirectWay(t *testing.T) {
	keys := []lease.Key{old, "host-gw"}
	in := input(netconf.VXLAN{VNI: 1, DirectRouting: true}, keyed(1, keys, []lease.Key{"host-gw", old}), keyed(2, keys, keys))
	in.Self.Uplink.Public.V4, in.Complete = addr("192.0.2.1"), true
	p, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if p.Paths[0].Way == nil || p.Paths[0].Way.Key != old {
		t.Errorf("%+v", p.Paths[0])
	}
}

// After a restart the leases come in after the own lease; what the kernel has open counts then too.
func TestWhatWasOpenCountsAfterARestart(t *testing.T) {
	own := keyed(1, []lease.Key{next}, []lease.Key{next}) // old has been let go of; nobody knows yet
	own.Serial = 2
	peer := keyed(2, []lease.Key{old, next}, []lease.Key{next, old})
	in := input(netconf.VXLAN{VNI: 1, Port: 4789}, own, peer)
	in.Self.Owner = "weft:x"
	in.Host.Devices = map[string]state.Link{
		"flannel.1":    {Kind: "vxlan", Owner: "weft:x", VXLAN: state.VXLAN{VNI: 1, Port: 8472}},
		"flannel-4789": {Kind: "vxlan", Owner: "weft:x", VXLAN: state.VXLAN{VNI: 1, Port: 4789}},
	}
	complete := in
	complete.Complete = true
	if p := build(t, complete); !slices.Contains(p.Open, old) {
		t.Fatalf("with all leases at once: open %v", p.Open)
	}
	in.Leases = nil
	first := build(t, in) // the agent's first pass: its own lease, and no peers yet
	complete.Open = first.Open
	if p := build(t, complete); !slices.Contains(p.Open, old) {
		t.Errorf("node 2 says that it sends on %s; open after the first pass %v, then %v", old, first.Open, p.Open)
	}
}

// Whoever writes this node's lease into the store opens ports on it.
func TestTheStoreOpensNoPortsOfItsOwn(t *testing.T) {
	own := keyed(1, []lease.Key{old}, []lease.Key{old})
	own.Serial = 1
	forged := own
	forged.Serial = 2
	forged.Receive = append(slices.Clone(own.Receive), lease.Receiver{Key: "udp/53"}, lease.Receiver{Key: "udp/8472"}, lease.Receiver{Key: "vxlan/7/443", Type: "vxlan"})
	in := input(netconf.VXLAN{VNI: 1}, own, keyed(2, []lease.Key{old}, []lease.Key{old}))
	in.Leases[0], in.Complete, in.Open = forged, true, []lease.Key{old}
	if p := build(t, in); len(p.Open) != 1 {
		t.Errorf("open: %v", p.Open)
	}
}

func TestALongNodeNameDoesNotHideTheCount(t *testing.T) {
	keys := []lease.Key{next, old}
	a, b := keyed(2, keys, keys), keyed(3, keys, keys)
	a.Node, b.Node = "ip-10-0-12-34.eu-central-1.compute.internal", "other"
	in := input(netconf.VXLAN{VNI: 1, Port: 4789}, keyed(1, keys, keys), a, b)
	in.Complete = true
	if got := needed(in, old); !strings.Contains(got, "1 more") {
		t.Errorf("%s", got)
	}
}

// A lease that the store does not believe holds nothing open.
func TestARefusedLeaseHoldsNothingOpen(t *testing.T) {
	peer := keyed(2, []lease.Key{old}, []lease.Key{old})
	peer.Refused = "not believed"
	in := input(netconf.VXLAN{VNI: 1, Port: 4789}, keyed(1, []lease.Key{next, old}, []lease.Key{next}), peer)
	in.Complete = true
	if got := needed(in, old); got != "" {
		t.Errorf("held for %s", got)
	}
}

// The host has lost one family's address, or does not have it yet after a reboot without the store.
func TestAFamilyThatTheHostLacksCostsOnlyThatFamily(t *testing.T) {
	own := vxlanNode(1)
	own.Subnet.V6, own.Public.V6 = prefix("fd00:0:0:1::/64"), addr("fd77::1")
	own.Receive[0].Data.V6 = own.Receive[0].Data.V4
	own.Receive[0].Key, own.Send = old, []lease.Key{old}
	in := input(netconf.VXLAN{VNI: 1}, own, keyed(2, []lease.Key{old}, []lease.Key{old}))
	in.Self.Uplink.Addr = family.Pair[netip.Addr]{V4: addr("10.77.0.1")}
	in.Self.Uplink.Public = in.Self.Uplink.Addr
	if _, err := Build(in); err != nil {
		t.Error(err)
	}
}

// With few nodes gone for good and several changes, a node must never publish what its peers refuse.
func TestAnOfferNeverIsEmpty(t *testing.T) {
	var keys []lease.Key
	for port := 5000; port < 5000+maxKeys; port++ {
		keys = append(keys, lease.Key("vxlan/1/"+strconv.Itoa(port)))
	}
	own := keyed(1, keys, keys[:1])
	in := input(netconf.VXLAN{VNI: 1, Port: 6000}, own, keyed(2, []lease.Key{"udp/1"}, keys))
	in.Complete = true
	p := build(t, in)
	if len(p.Offer.Send) == 0 || len(p.Offer.Receive) == 0 {
		t.Errorf("offer: %+v", p.Offer)
	}
}

// The original may have run on a node since: it leaves x-weft as it was, and has another VNI.
func TestAKeyThatDoesNotFitTheOriginalsFormIsNotUsed(t *testing.T) {
	peer := keyed(2, []lease.Key{old, "udp/8285"}, []lease.Key{old})
	peer.Receive[0].Data.V4 = `{"VNI":2,"VtepMAC":"02:00:00:00:00:02"}`
	in := input(netconf.VXLAN{VNI: 1}, keyed(1, []lease.Key{old}, []lease.Key{old}), peer)
	in.Complete = true
	if p := build(t, in); p.Paths[0].Way != nil {
		t.Errorf("way %+v, and the peer says %s", *p.Paths[0].Way, peer.Receive[0].Data.V4)
	}
}

// Until the peers are known, nobody knows what is used to reach them.
func TestWhatPeersAreReachedByIsKeptUntilTheyAreKnown(t *testing.T) {
	own := keyed(1, []lease.Key{old, next}, []lease.Key{next, old})
	original := vxlanNode(2)
	original.Receive[0].Data.V4 = `{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}`
	in := input(netconf.VXLAN{VNI: 2}, own, original)
	in.Leases, in.Complete = nil, false // 10 s after the start Recent is empty
	p := build(t, in)
	own.Receive, own.Send, own.Serial = p.Offer.Receive, p.Offer.Send, p.Offer.Serial
	later := input(netconf.VXLAN{VNI: 2}, own, original)
	later.Complete, later.Open = true, p.Open
	if got := build(t, later).Paths[0]; got.Way == nil {
		t.Errorf("published %v; then no way: %s", p.Offer.Send, got.Reason)
	}
}
