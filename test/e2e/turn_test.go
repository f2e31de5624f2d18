package e2e

import (
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
)

// selected are the changes of an ordinary run, one after the other.
var selected = []stage{stageDirect, stageHostGW, stageUDP, stagePort}

// everything are all ordered pairs of backends, and all changes of parameters forth and back.
var everything = []stage{
	stageDirect, stageVXLAN, stageHostGW, stageVXLAN, stageUDP, stageVXLAN,
	stageDirect, stageHostGW, stageDirect, stageUDP, stageDirect,
	stageVXLAN, stageHostGW, stageUDP, stageHostGW, stageVXLAN,
	stagePort, stageVXLAN, stageVNI, stageVXLAN, stageGBP, stageVXLAN, stageLearning, stageVXLAN, stageSmall, stageVXLAN,
	stageUDP, stageUDP2, stageUDP, stageGBP, stagePort, stageVNI,
}

// TestTurns goes through changes of the backend, one after the other, with traffic between all pods.
func TestTurns(t *testing.T) {
	stages, atMost := selected, 4*time.Minute
	if all() {
		stages, atMost = everything, time.Hour
	}
	w := underTraffic(t, atMost, stageVXLAN, true, lab.Options{})
	for _, s := range stages {
		w.change(s)
	}
}

// TestTurnsInBothFamilies is TestTurns with IPv4 and IPv6.
func TestTurnsInBothFamilies(t *testing.T) {
	if !all() {
		t.Skip("only with WEFT_TURNS=all")
	}
	w := underTraffic(t, 15*time.Minute, stageVXLAN, true, lab.Options{Family: lab.Dual})
	for _, s := range []stage{stageDirect, stageHostGW, stageUDP, stageDirect, stagePort, stageGBP, stageVXLAN, stageSmall} {
		w.change(s)
	}
}

// TestTurnsWithoutProbes is TestTurns where ways are used as soon as they are there.
func TestTurnsWithoutProbes(t *testing.T) {
	if !all() {
		t.Skip("only with WEFT_TURNS=all")
	}
	w := underTraffic(t, 15*time.Minute, stageVXLAN, false, lab.Options{})
	for _, s := range []stage{stageDirect, stageVXLAN, stageHostGW, stageUDP, stageDirect, stagePort, stageGBP} {
		w.change(s)
	}
}
