package kernel

import (
	"errors"
	"fmt"

	"github.com/weftnet/weft/internal/state"
)

// A Write is a kind of change, for counting.
type Write struct {
	Kind string // as state.Change.Kind
	Op   state.Op
}

// An ObjectError says what could not be done to one object.
type ObjectError struct {
	Kind   string // as state.Change.Kind
	Object string // as state.Change.Object
	Op     state.Op
	Err    error
}

func (e ObjectError) Error() string {
	return fmt.Sprintf("%s %s: %s: %v", e.Kind, e.Object, e.Op, e.Err)
}

func (e ObjectError) Unwrap() error { return e.Err }

// A Report says what a pass has done.
type Report struct {
	Writes  map[Write]int     // changes made
	Errors  []ObjectError     // changes that could not be made
	Sysctls map[string]string // what changed sysctls were before, for putting them back one day
	done    []step
}

func newReport() Report { return Report{Writes: map[Write]int{}, Sysctls: map[string]string{}} }

// Changes returns the changes made, in their order.
func (r Report) Changes() []state.Change { return changes(r.done) }

// Err joins the errors, the first few in full.
func (r Report) Err() error { return joined(r.Errors) }

func (r *Report) fail(errs ...ObjectError) { r.Errors = append(r.Errors, errs...) }

func (r *Report) failStep(s step, err error) {
	c := s.change()
	r.fail(ObjectError{Kind: c.Kind, Object: c.Object, Op: c.Op, Err: err})
}

func (r *Report) succeed(s step) {
	r.done = append(r.done, s)
	r.Writes[Write{s.kind(), s.operation()}]++
	if s, ok := s.(*sysctlStep); ok {
		r.Sysctls[s.key] = s.have
	}
}

func changes(steps []step) []state.Change {
	c := make([]state.Change, len(steps))
	for i, s := range steps {
		c[i] = s.change()
	}
	return c
}

// shown is how many errors are worth printing: with an uplink down there is one per peer.
const shown = 5

func joined(errs []ObjectError) error {
	var all []error
	for i, e := range errs {
		if i == shown {
			all = append(all, fmt.Errorf("and %d more errors", len(errs)-shown))
			break
		}
		all = append(all, e)
	}
	return errors.Join(all...)
}
