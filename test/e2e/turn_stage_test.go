package e2e

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/weftnet/weft/internal/lab"
)

// A stage is a configuration that nodes are changed to.
type stage struct {
	name    string
	backend string
	keys    []string // that nodes are to use in the end, the preferred one first
	mtu     int      // of VXLAN devices, 0: what the underlay leaves
	learn   bool     // VXLAN devices learn
}

func vxlanStage(options, key string) stage {
	return stage{name: key, backend: `{"Type":"vxlan"` + options + `}`, keys: []string{key}}
}

var (
	stageVXLAN  = vxlanStage("", "vxlan/1/8472")
	stageDirect = stage{name: "DirectRouting", backend: direct, keys: []string{"host-gw", "vxlan/1/8472"}}
	stageHostGW = stage{name: "host-gw", backend: hostgw, keys: []string{"host-gw"}}
	stageUDP    = stage{name: "udp/8285", backend: udp, keys: []string{"udp/8285"}}
	stageUDP2   = stage{name: "udp/8286", backend: `{"Type":"udp","Port":8286}`, keys: []string{"udp/8286"}}
	stageVNI    = vxlanStage(`,"VNI":2`, "vxlan/2/8472")
	stagePort   = vxlanStage(`,"Port":4789`, "vxlan/1/4789")
	stageGBP    = vxlanStage(`,"GBP":true`, "vxlan/1/8472/gbp")

	// These change devices, and neither keys nor ways.
	stageLearning = stage{name: "Learning", backend: `{"Type":"vxlan","Learning":true}`, keys: stageVXLAN.keys, learn: true}
	stageSmall    = stage{name: "MTU 1400", backend: `{"Type":"vxlan","MTU":1400}`, keys: stageVXLAN.keys, mtu: 1350}
)

// config returns the whole configuration.
func (s stage) config(family string, probes bool) string {
	if family == "" {
		family = lab.IPv4
	}
	c := config(family, s.backend, true)
	if !probes {
		c = strings.Replace(c, "{", `{"DisableProbes":true,`, 1)
	}
	return c
}

// everywhere says whether the stage reaches nodes of the other segment.
func (s stage) everywhere() bool { return s.tunnel() != "host-gw" }

// tunnel is the way to nodes of the other segment.
func (s stage) tunnel() string { return s.keys[len(s.keys)-1] }

// onNode says whether a node's kernel does what a stage means, where keys are to be used, the preferred one
// first: devices, and the way to each peer.
func (w *turning) onNode(n *lab.Node, s stage, keys []string) error {
	if !w.ours(n) {
		return nil
	}
	devices, err := w.devices(n)
	if err != nil {
		return err
	}
	tunnels := slices.Sorted(maps.Values(devices))
	want := slices.Concat(keys, w.also)
	slices.Sort(want)
	want = slices.DeleteFunc(slices.Compact(want), func(k string) bool { return k == "host-gw" })
	if !slices.Equal(slices.Compact(tunnels), want) || len(devices) > 2*len(want) {
		return fmt.Errorf("%s has the devices %v, want those of %v", n.Name, devices, want)
	}
	if err := w.tuned(n, s); err != nil {
		return err
	}
	for _, peer := range w.Nodes {
		if peer == n || !w.ours(peer) {
			continue
		}
		want := keys[len(keys)-1]
		if peer.Segment() == n.Segment() {
			want = keys[0]
		}
		if err := w.reaches(n, peer, want); err != nil {
			return err
		}
	}
	return nil
}

// tuned says whether VXLAN devices have the MTU and the flags of a stage.
func (w *turning) tuned(n *lab.Node, s stage) error {
	out, err := n.Exec(w.ctx, "ip", "-d", "-o", "link", "show", "type", "vxlan")
	if err != nil || !strings.HasPrefix(s.tunnel(), "vxlan") {
		return err
	}
	for line := range strings.Lines(out) {
		mtu := cmp.Or(s.mtu, w.Options.MTU-50)
		if strings.Contains(line, "flannel-v6") {
			mtu -= 20
		}
		learns := !slices.Contains(strings.Fields(line), "nolearning")
		if after(line, "mtu") != strconv.Itoa(mtu) || learns != s.learn {
			return fmt.Errorf("%s: want MTU %d, learning %v: %s", n.Name, mtu, s.learn, line)
		}
	}
	return nil
}

// devices returns the keys of a node's devices, by name. Of TUN devices nothing tells the port, so each has one of
// those that are open.
func (w *turning) devices(n *lab.Node) (map[string]string, error) {
	out, err := n.Exec(w.ctx, "sh", "-c", "ip -d -o link show type vxlan; ip -o link show type tun; ss -Huln")
	if err != nil {
		return nil, err
	}
	keys := map[string]string{}
	var tuns, ports []string
	for line := range strings.Lines(out) {
		_, rest, _ := strings.Cut(line, ": ")
		name, _, _ := strings.Cut(rest, ":")
		switch {
		case strings.Contains(line, "vxlan id "):
			k := "vxlan/" + after(line, "id") + "/" + after(line, "dstport")
			if slices.Contains(strings.Fields(line), "gbp") {
				k += "/gbp"
			}
			keys[name] = k
		case strings.Contains(line, "mtu "):
			tuns = append(tuns, name)
		default:
			for _, port := range []string{"8285", "8286"} {
				if strings.Contains(line, n.Addr().V4.String()+":"+port+" ") && !slices.Contains(ports, port) {
					ports = append(ports, port)
				}
			}
		}
	}
	for i, name := range tuns {
		keys[name] = "udp/?"
		if i < len(ports) {
			keys[name] = "udp/" + ports[i]
		}
	}
	return keys, nil
}

// after returns the word that follows a word.
func after(text, word string) string {
	fields := strings.Fields(text)
	if i := slices.Index(fields, word); i >= 0 && i+1 < len(fields) {
		return fields[i+1]
	}
	return ""
}
