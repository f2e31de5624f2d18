package etcd

import (
	"log/slog"
	"testing"
	"time"
)

func TestRenewIn(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		name                string
		left, total, margin time.Duration
		min, max            time.Duration
	}{
		{"after a third of the lifetime", day, day, time.Hour, 6 * time.Hour, 10 * time.Hour},
		{"at the margin, where that is earlier", day, day, 23 * time.Hour, time.Hour, time.Hour},
		{"at once, when less than the margin is left", 30 * time.Minute, day, time.Hour, 0, 0},
		{"at once, when someone granted less than the margin", time.Minute, time.Minute, time.Hour, 0, 0},
		{"at once, when the etcd lease is gone", 0, 0, time.Hour, 0, 0},
	} {
		for range 100 { // there is jitter
			if got := renewIn(c.left, c.total, c.margin); got < c.min || got > c.max {
				t.Errorf("%s: in %s", c.name, got)
			}
		}
	}
}

func TestLifeSigns(t *testing.T) {
	start := time.Unix(0, 0)
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	other := occupant{aliveValue: aliveValue{ID: "other"}, revision: 5, lease: 7}
	rewritten := other
	rewritten.revision = 9

	type look struct {
		o     occupant
		left  time.Duration
		after int // seconds since the first
	}
	for _, c := range []struct {
		name  string
		looks []look
		want  bool
	}{
		{"it runs down", []look{{other, 20 * time.Second, 0}, {other, 10 * time.Second, 10}, {other, 0, 20}}, false},
		{"it has longer to live than before", []look{{other, 20 * time.Second, 0}, {other, 29 * time.Second, 2}}, true},
		{"it was written again", []look{{other, 20 * time.Second, 0}, {rewritten, 20 * time.Second, 1}}, true},
		{"it outlived what it had", []look{{other, time.Second, 0}, {other, time.Second, 4}}, true},
	} {
		var l lifeSigns
		got := false
		for _, look := range c.looks {
			got = got || l.seen(look.o, look.left, at(look.after))
		}
		if got != c.want {
			t.Errorf("%s: alive %t", c.name, got)
		}
	}
}

// What changes between the wake-up and the set being gathered is in that set, and is no reason for another one.
func TestAChangeIsHandedOverOnce(t *testing.T) {
	store, err := New(Config{Endpoints: []string{"http://127.0.0.1:1"}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := newSet(store)
	for i := range s.trees {
		s.replace(i, nil, nil)
	}
	<-s.wake
	s.mu.Lock()
	s.changed()
	s.mu.Unlock()
	if _, ok := s.leases(); !ok || len(s.wake) != 0 {
		t.Errorf("complete %v, and %d further deliveries of the same set", ok, len(s.wake))
	}
}
