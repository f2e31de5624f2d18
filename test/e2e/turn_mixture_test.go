package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/lab"
	"github.com/weftnet/weft/internal/lab/frame"
)

// TestTurnsBesideTheOriginal has the original on a node of each segment. It reads the configuration when it
// starts and never again, so it stays on vxlan; at every moment it must read in the leases of ours what it
// read at first.
func TestTurnsBesideTheOriginal(t *testing.T) {
	original := upstream(t)
	w := underTraffic(t, 10*time.Minute, stageVXLAN, true, lab.Options{FlanneldOn: map[string]string{"B": original, "E": original}})
	began := time.Now()
	w.also = []string{stageVXLAN.tunnel()}
	stages := []stage{stageDirect, stageHostGW, stageVNI, stageVXLAN}
	if all() {
		stages = append(stages, stageUDP, stageHostGW, stagePort, stageVXLAN) // GBP would wait for the original to let go of the port
	}
	for _, s := range stages {
		w.change(s)
	}
	for _, n := range w.Nodes {
		if !w.ours(n) {
			continue
		}
		log := w.leases.of(n.Addr().V4.String(), began)
		for _, p := range log {
			if p.kind != "vxlan" || p.data != log[0].data {
				t.Errorf("the original was shown %q %s, and %s before: %v", p.kind, p.data, log[0].data, p)
			}
		}
		t.Logf("%s has published %d times", n.Name, len(log))
	}
}

// seen counts what a stream of datagrams looks like on the sender's underlay: frames in VXLAN, bare packets.
func (w *turning) seen(from, to string, port uint16) (frames, bare int) {
	w.t.Helper()
	n, err := w.Node(from)
	must(w.t, err)
	c, err := lab.StartCapture(n, lab.Uplink, port)
	must(w.t, err)
	rest(w.ctx, 300*time.Millisecond)
	packets, err := c.Stop()
	must(w.t, err)
	ours := func(p frame.Packet) bool {
		return p.Src == w.pods[from].Addr.V4 && p.Dst == w.pods[to].Addr.V4 && p.Proto == frame.UDP
	}
	for _, p := range packets {
		switch {
		case ours(p):
			bare++
		case p.VXLAN != nil && ours(p.VXLAN.Inner):
			frames++
		}
	}
	return frames, bare
}

// wantOnUnderlay looks at the underlay for what a stage means there.
func (w *turning) wantOnUnderlay(s stage, tunnel string) {
	w.t.Helper()
	port := uint16(lab.VXLANPort)
	if strings.HasPrefix(tunnel, "vxlan/") && strings.Contains(tunnel, "/4789") {
		port = 4789
	}
	for to, key := range map[string]string{"C": s.keys[0], "F": tunnel} { // of the same segment, of the other
		frames, bare := w.seen("A", to, port)
		for began := time.Now(); frames+bare == 0 && !strings.HasPrefix(key, "udp/") && time.Since(began) < patience; {
			frames, bare = w.seen("A", to, port) // none had a processor meanwhile
		}
		if (bare > 0) != (key == "host-gw") || (frames > 0) != strings.HasPrefix(key, "vxlan/") {
			w.t.Errorf("%s: A to %s: %d frames in VXLAN and %d bare packets on the underlay, want %s", s.name, to, frames, bare, key)
		}
		w.t.Logf("%s: A to %s: %d frames in VXLAN and %d bare packets on the underlay", s.name, to, frames, bare)
	}
}
