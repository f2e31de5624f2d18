package storehealth

import (
	"context"
	"math/rand/v2"
	"time"
)

// A Pause paces repeated attempts: it doubles from First to Last, each with a quarter of jitter either way.
type Pause struct {
	First, Last time.Duration
	attempts    int
}

// Next returns how long to wait before the next attempt.
func (p *Pause) Next() time.Duration {
	d := min(p.First<<min(p.attempts, 16), p.Last)
	p.attempts++
	return Jitter(d, 0.25)
}

// Reset begins again with First.
func (p *Pause) Reset() { p.attempts = 0 }

// Sleep waits for d, or until ctx ends.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Jitter returns d changed at random by up to the given part of it.
func Jitter(d time.Duration, part float64) time.Duration {
	return d + time.Duration((2*rand.Float64()-1)*part*float64(d))
}
