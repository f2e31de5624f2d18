package state

import "slices"

// An Op is what a Change does.
type Op string

// The operations of a Change.
const (
	Add    Op = "add"
	Modify Op = "change"
	Remove Op = "remove"
)

// A Change is one line of a plan for people: what would be done to one object, and from what to what.
type Change struct {
	Op     Op     `json:"op"`
	Kind   string `json:"kind"`   // link, address, route, neighbour, fdb, sysctl, firewall, file
	Object string `json:"object"` // as the ip, bridge and nft commands name it
	Have   string `json:"have,omitempty"`
	Want   string `json:"want,omitempty"`
}

type ordered[K any] interface {
	comparable
	Compare(K) int
}

// Diff returns the keys to set and the keys to delete to turn have into want, each in order.
func Diff[K ordered[K], V comparable](have, want map[K]V) (set, del []K) {
	for k, v := range want {
		if h, ok := have[k]; !ok || h != v {
			set = append(set, k)
		}
	}
	for k := range have {
		if _, ok := want[k]; !ok {
			del = append(del, k)
		}
	}
	slices.SortFunc(set, K.Compare)
	slices.SortFunc(del, K.Compare)
	return set, del
}
