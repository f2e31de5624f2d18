package hostlocal

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/weftnet/weft/internal/cni/conf"
)

// ErrFull means that every address of a range is held by somebody.
var ErrFull = errors.New("no free address left")

// A Given is one address that was given.
type Given struct {
	Addr    netip.Prefix // address with the subnet's length
	Gateway netip.Addr
}

// A request is one call of Allocate.
type request struct {
	dir     *Dir
	owner   Owner
	wanted  []netip.Addr // asked for by the runtime and not given yet
	entries map[netip.Addr]Owner
	given   []Given
	hold    Hold
}

// Allocate gives o one address of every range set. What o holds already is given again: an ADD that was
// killed half-way and comes back is the same attachment. If one set has nothing left, nothing is given,
// and the error is ErrFull.
func (d *Dir) Allocate(c conf.HostLocal, o Owner) ([]Given, Hold, error) {
	entries, err := d.Entries()
	if err != nil {
		return nil, Hold{}, err
	}
	for a, e := range entries {
		if e.ContainerID == "" { // torn, see the package comment
			if err := d.Free(a); err != nil {
				return nil, Hold{}, err
			}
			delete(entries, a)
		}
	}
	r := &request{dir: d, owner: o, wanted: slices.Clone(c.Requested), entries: entries}
	for i, set := range c.Sets {
		if err := r.allocate(i, set); err != nil {
			return nil, Hold{}, errors.Join(err, r.undo())
		}
	}
	if len(r.wanted) > 0 {
		err := fmt.Errorf("the runtime asks for %s, which is in none of the ranges", r.wanted[0])
		return nil, Hold{}, errors.Join(err, r.undo())
	}
	return r.given, r.hold, nil
}

// undo takes back what was given in this call, but not what the owner held before.
func (r *request) undo() error {
	var errs []error
	for _, a := range r.hold.Fresh {
		errs = append(errs, r.dir.Free(a))
	}
	r.hold.Close()
	return errors.Join(errs...)
}

func (r *request) allocate(i int, set []conf.Range) error {
	for a, e := range r.entries {
		if rg, ok := conf.Contains(set, a); ok && e == r.owner {
			f, err := r.dir.retake(a)
			if err != nil {
				return err
			}
			r.keep(rg, a, f)
			r.wanted = slices.DeleteFunc(r.wanted, func(w netip.Addr) bool { return w == a })
			return nil
		}
	}
	for j, a := range r.wanted {
		if rg, ok := conf.Contains(set, a); ok {
			r.wanted = slices.Delete(r.wanted, j, j+1)
			return r.take(rg, a, "the runtime asks for it")
		}
	}
	return r.next(i, set)
}

// next gives the first free address after the one that was given last, round the whole set: a pod's
// address is used again as late as possible.
func (r *request) next(i int, set []conf.Range) error {
	rg, a, found := Next(set, r.dir.Last(i), func(a netip.Addr) bool { _, held := r.entries[a]; return held })
	if !found {
		return fmt.Errorf("%w in %s", ErrFull, describe(set))
	}
	if err := r.take(rg, a, "it is the next free one"); err != nil {
		return err
	}
	return r.dir.SetLast(i, a)
}

func (r *request) take(rg conf.Range, a netip.Addr, why string) error {
	if a == rg.Gateway {
		return fmt.Errorf("address %s (%s) is the gateway's", a, why)
	}
	f, err := r.dir.reserve(a, r.owner)
	if err != nil {
		return err
	}
	if f == nil && r.entries[a].ContainerID != "" {
		return fmt.Errorf("address %s (%s) is held by container %s", a, why, r.entries[a].ContainerID)
	}
	if f == nil {
		return fmt.Errorf("%s in %s is not an address entry: remove it", a, r.dir.path)
	}
	r.hold.Fresh = append(r.hold.Fresh, a)
	r.keep(rg, a, f)
	return nil
}

func (r *request) keep(rg conf.Range, a netip.Addr, f *os.File) {
	r.given = append(r.given, Given{Addr: netip.PrefixFrom(a, rg.Subnet.Bits()), Gateway: rg.Gateway})
	r.hold.files = append(r.hold.files, f)
}

// Next returns the first address after last that is neither a gateway nor taken. An address outside the
// set as last means the beginning.
func Next(set []conf.Range, last netip.Addr, taken func(netip.Addr) bool) (conf.Range, netip.Addr, bool) {
	start := 0
	if last.IsValid() {
		start = max(0, slices.IndexFunc(set, func(r conf.Range) bool {
			_, ok := conf.Contains([]conf.Range{r}, last)
			return ok
		}))
		if _, ok := conf.Contains(set, last); !ok {
			last = netip.Addr{}
		}
	}
	// The first range is walked twice: after last, and in the end from its beginning.
	for n := 0; n <= len(set); n++ {
		r := set[(start+n)%len(set)]
		a := r.First
		if n == 0 && last.IsValid() {
			a = last.Next()
		}
		for ; a.IsValid() && !r.Last.Less(a); a = a.Next() {
			if a != r.Gateway && !taken(a) {
				return r, a, true
			}
		}
	}
	return conf.Range{}, netip.Addr{}, false
}

func describe(set []conf.Range) string {
	var s string
	for i, r := range set {
		if i > 0 {
			s += ", "
		}
		s += r.First.String() + "-" + r.Last.String()
	}
	return s
}
