package etcd

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weftnet/weft/internal/lease/storehealth"
)

const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// Stats returns how the store is doing.
func (s *Store) Stats() storehealth.Stats { return s.health.Stats() }

// unreachable says whether err is about the way to etcd and not about the request.
func unreachable(err error) bool {
	if errors.Is(err, errNoAnswer) || errors.Is(err, errSilent) {
		return true
	}
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}

// final marks an error that trying again does not mend.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// retry calls f until it works, fails for good, or ctx ends.
func (s *Store) retry(ctx context.Context, op string, f func(context.Context) error) error {
	p := storehealth.Pause{First: firstRetry, Last: lastRetry}
	for {
		err := f(ctx)
		if err == nil {
			s.health.Worked(op)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if fin := (final{}); errors.As(err, &fin) {
			s.health.Worked(op)
			return fin.error
		}
		s.health.Failed(ctx, op, err)
		if err := storehealth.Sleep(ctx, p.Next()); err != nil {
			return err
		}
	}
}
