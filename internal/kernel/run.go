package kernel

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kernel/rtnl"
	"github.com/weftnet/weft/internal/state"
)

// batchSize is how many messages go into one system call: beyond a few hundred nothing is gained, and the
// context is looked at in between.
const batchSize = 256

// A step is one change.
type step interface {
	kind() string
	operation() state.Op
	change() state.Change
}

// A message is a step that is one netlink message.
type message interface {
	step
	encode(b *rtnl.Batch, h have)
}

// An action is a step that is more than a message.
type action interface {
	step
	run(ctx context.Context, k *Kernel, h have) error
}

func (s *linkStep) operation() state.Op      { return s.op }
func (s *addressStep) operation() state.Op   { return s.op }
func (s *sysctlStep) operation() state.Op    { return state.Modify }
func (s *neighbourStep) operation() state.Op { return s.op }
func (s *fdbStep) operation() state.Op       { return s.op }
func (s *routeStep) operation() state.Op     { return s.op }

// run takes the steps in their order. What a step cannot do goes into the report; an error is returned
// only when the pass has to end.
func (k *Kernel) run(ctx context.Context, steps []step, h have, report *Report) error {
	for len(steps) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		if a, ok := steps[0].(action); ok {
			k.act(ctx, a, h, report)
			steps = steps[1:]
			continue
		}
		n := 0
		for n < len(steps) && n < batchSize {
			if _, ok := steps[n].(message); !ok || n > 0 && relies(steps[n], steps[n-1]) {
				break
			}
			n++
		}
		if err := k.write(ctx, steps[:n], h, report); err != nil {
			return err
		}
		steps = steps[n:]
	}
	return nil
}

// relies says whether the next step must wait until the last one is known to have been taken. A route may be refused
// at first and set after its batch (replaceOnlink); until then nothing may be done that is right only after it: a route
// that waits behind it, or a deletion of what packets still go by.
func relies(next, last step) bool {
	l, ok := last.(*routeStep)
	if !ok || l.op == state.Remove {
		return false
	}
	n, ok := next.(*routeStep)
	return !ok || n.op == state.Remove || n.key.Metric != l.key.Metric
}

func (k *Kernel) act(ctx context.Context, a action, h have, report *Report) {
	err := a.run(ctx, k, h)
	switch s, isSysctl := a.(*sysctlStep); {
	case err == nil:
		report.succeed(a)
	case isSysctl && optional(s.key):
		k.log.DebugContext(ctx, "sysctl not set", "key", s.key, "error", err)
	default:
		report.failStep(a, err)
	}
}

// write sends one batch of messages.
func (k *Kernel) write(ctx context.Context, steps []step, h have, report *Report) error {
	var b rtnl.Batch
	for _, s := range steps {
		s.(message).encode(&b, h)
	}
	errs := make(map[step]error)
	var again []*routeStep
	err := k.conn.Exec(&b, func(i int, err error) {
		s := steps[i]
		if r, ok := s.(*routeStep); ok && r.helpless(err) {
			again = append(again, r)
		} else if s.operation() != state.Remove || !gone(err) {
			errs[s] = err
		}
	}, nil)
	if err != nil {
		return err
	}
	if err := k.replaceOnlink(ctx, again, h, func(s step, err error) { errs[s] = err }); err != nil {
		return err
	}
	for _, s := range steps {
		if err, failed := errs[s]; failed {
			report.failStep(s, err)
		} else {
			report.succeed(s)
		}
	}
	return nil
}

// gone says whether a deletion failed because there is nothing left to delete.
func gone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) ||
		errors.Is(err, unix.EADDRNOTAVAIL)
}
