package storehealth

import (
	"testing"
	"time"
)

func TestPauseGrowsToItsEnd(t *testing.T) {
	p := Pause{First: 100 * time.Millisecond, Last: 5 * time.Second}
	for i, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000} {
		want *= time.Millisecond
		if got := p.Next(); got < want*3/4 || got > want*5/4 {
			t.Errorf("attempt %d: %s, want about %s", i, got, want)
		}
	}
	for range 100 {
		p.Next()
	}
	if got := p.Next(); got > 7*time.Second || got < 3*time.Second {
		t.Errorf("after many attempts: %s", got)
	}
}
