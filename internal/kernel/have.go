package kernel

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/internal/state"
)

// have is what the kernel holds, as far as it can concern us, normalised so that equal means nothing to
// do: metrics as the kernel stores them, no device on a blackhole route, permanent entries only.
type have struct {
	links     map[string]device
	vxlanPort int  // what a VXLAN device gets that asks for none; 0: not known
	renames   bool // as RenamesLive
	addresses map[state.Address]address
	routes    map[state.RouteKey][]route       // in the kernel's order: for IPv4 the first is in force
	connected map[netip.Prefix]connected       // subnets that the kernel itself routes (proto kernel)
	locals    map[netip.Addr]local             // single addresses of the local table
	neighbour map[state.NeighbourKey]state.MAC // on devices of ours
	fdb       map[state.FDBKey]fdbEntry        // on devices of ours
	sysctls   map[string]sysctl                // wanted ones
}

func newHave() have {
	return have{
		links:     map[string]device{},
		addresses: map[state.Address]address{},
		routes:    map[state.RouteKey][]route{},
		connected: map[netip.Prefix]connected{},
		locals:    map[netip.Addr]local{},
		neighbour: map[state.NeighbourKey]state.MAC{},
		fdb:       map[state.FDBKey]fdbEntry{},
		sysctls:   map[string]sysctl{},
	}
}

// A device is a link of any kind.
type device struct {
	state.Link // VXLAN only for that kind; Owner is the alias
	Index      int32
	Up         bool
	Loopback   bool
	Port       bool   // of a bridge, a bond or the like
	Odd        string // an attribute that no link of ours has, such as "group"; empty: none
}

// An address has what is needed to delete it.
type address struct {
	Peer netip.Addr // IFA_ADDRESS where that is not the address itself
}

// A route is one entry of the main table.
type route struct {
	state.Route
	Odd bool // has what no route of ours has: several next hops, a source address, metrics, ...
}

// A connected route is the kernel's own, for the subnet of an address.
type connected struct {
	Dev    string
	Metric int
}

// An fdbEntry is where frames for a MAC go.
type fdbEntry struct {
	Dst netip.Addr
	Odd bool // has a port, VNI or device of its own, or several destinations
}

// A sysctl is a value, or why there is none.
type sysctl struct {
	Value string
	Err   error
}

// sortedKeys returns the keys of m in order, for the same plan on every run.
func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func sortedAddrs[V any](m map[netip.Addr]V) []netip.Addr {
	return slices.SortedFunc(maps.Keys(m), netip.Addr.Compare)
}
