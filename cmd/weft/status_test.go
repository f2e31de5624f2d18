package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/agent"
	"github.com/weftnet/weft/internal/lease/storehealth"
	"github.com/weftnet/weft/internal/state"
)

func TestAnEmptyListIsNoNullInJSON(t *testing.T) {
	var b bytes.Buffer
	if err := printJSON(&b, []state.Change(nil)); err != nil || b.String() != "[]\n" {
		t.Errorf("got %q, %v", b.String(), err)
	}
}

func TestStatusShowsHealth(t *testing.T) {
	var b bytes.Buffer
	err := printStatus(&b, agent.Status{
		Ready: true, Repairs: map[string]uint64{"route": 2, "fdb": 1},
		Store: storehealth.Stats{LastSync: time.Unix(1, 0), Leases: 3, BadKeys: 1},
	})
	for _, want := range []string{"ready     yes\n", "store     does not answer, 3 leases, 1 entries that are none\n", "repaired  fdb 1, route 2\n"} {
		if err != nil || !strings.Contains(b.String(), want) {
			t.Errorf("%v, want %q in\n%s", err, want, b.String())
		}
	}
}
