// Package storehealth keeps what a store tells of itself: how its requests do, when it last heard of the
// leases, and what it is failing at. A failure is logged once when it starts and once when it ends.
package storehealth

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Stats says how a store is doing.
type Stats struct {
	Connected      bool      // the watch of the leases stands
	LastSync       time.Time // when the store last told the state of the leases; zero: never
	Revision       int64     // the store's revision of that state
	Leases         int
	BadKeys        int    // entries left out because they do not parse
	WatchRestarts  uint64 // watches broken for whatever reason
	Lists          uint64 // complete listings of the leases
	RequestsFailed uint64 // attempts that failed and were tried again
}

// Health gathers Stats and tells failures. Make it with New.
type Health struct {
	name   string // of the store, for the log
	log    *slog.Logger
	outage func(error) bool

	mu      sync.Mutex // guards what follows
	stats   Stats
	failing map[string]failure // by operation
}

// A failure is why an operation fails, and when that was told last.
type failure struct {
	text   string
	told   time.Time
	outage bool
	silent bool // it is part of an outage that was told for another operation
}

// retell is how often a failure that goes on may be told again for another reason: some texts hold port
// numbers and never repeat.
const retell = time.Minute

// New returns the health of the store that people know by name. The function outage says of an error that it is
// about the way to the store; that breaks every operation at once, and is told for the first one only.
func New(name string, log *slog.Logger, outage func(error) bool) *Health {
	return &Health{name: name, log: log, outage: outage, failing: map[string]failure{}}
}

// Stats returns how the store is doing.
func (h *Health) Stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stats
}

// Count changes the stats.
func (h *Health) Count(f func(*Stats)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&h.stats)
}

// Failed notes that op failed, unless ctx ended. It logs when that is new or, now and then, when the
// reason is.
func (h *Health) Failed(ctx context.Context, op string, err error) {
	if ctx.Err() != nil {
		return
	}
	h.mu.Lock()
	h.stats.RequestsFailed++
	now := failure{text: err.Error(), outage: h.outage(err), told: time.Now()}
	last, known := h.failing[op]
	tell := !known || last.text != now.text && time.Since(last.told) > retell
	if tell {
		for other, f := range h.failing {
			now.silent = now.silent || other != op && f.outage && now.outage && !f.silent
		}
		h.failing[op] = now
	}
	h.mu.Unlock()
	if tell && !now.silent {
		h.log.Warn(h.name+" request failed, trying again until it works", "op", op, "err", err)
	}
}

// Worked notes that op worked.
func (h *Health) Worked(op string) {
	h.mu.Lock()
	f, was := h.failing[op]
	delete(h.failing, op)
	h.mu.Unlock()
	if was && !f.silent {
		h.log.Info(h.name+" works again", "op", op)
	}
}
