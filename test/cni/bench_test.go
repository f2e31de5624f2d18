package cni

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/netnstest"
)

const (
	loopbackList = `{"name":"lo","cniVersion":"0.3.1","plugins":[{"type":"loopback"}]}`

	// What the original's chain does, without the original: one process less than it has.
	referenceList = `{"name":"cbr0","cniVersion":"0.3.1","plugins":[
	  {"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,"isDefaultGateway":true,"mtu":1450,"ipam":{
	    "type":"host-local","ranges":[[{"subnet":"10.244.3.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}]}},
	  {"type":"portmap","capabilities":{"portMappings":true}}]}`
)

// BenchmarkAddDel measures a whole pod as a runtime attaches it: loopback, then the conflist. Ours and the
// reference plugins take turns on the same machine in the same run.
func BenchmarkAddDel(b *testing.B) {
	if !asNode(b) {
		return
	}
	if _, err := os.Stat(references + "/bridge"); err != nil {
		netnstest.Unavailable(b, "reference plugins (apt-get install containernetworking-plugins)")
	}
	ours := newNode(b, v4Env)
	theirs := referenceNode(b)
	theirsList := referenceList
	name := "reference, 4 processes"
	if os.Getenv(originalVar) != "" {
		theirsList, name = stock, "original, 5 processes"
	}
	sides := []*side{{name: "weft, 3 processes", node: ours, list: stock}, {name: name, node: theirs, list: theirsList}}
	const rounds, serial, parallel = 5, 20, 60
	for round := range rounds {
		for _, s := range sides {
			s.run(b, fmt.Sprintf("s%d", round), serial, 1, &s.addSerial, &s.delSerial)
		}
		for _, s := range sides {
			took := s.run(b, fmt.Sprintf("m%d", round), parallel, 20, &s.addParallel, &s.delParallel)
			s.rates = append(s.rates, parallel/took.Seconds())
		}
	}
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("load %s", load)
	for _, s := range sides {
		fmt.Printf("%-24s ADD serial %s | 20 at once %s, best %.0f/s | DEL serial %s | 20 at once %s\n", s.name,
			quantiles(s.addSerial), quantiles(s.addParallel), slices.Max(s.rates), quantiles(s.delSerial), quantiles(s.delParallel))
	}
}

// A side is one of the two that are compared.
type side struct {
	name                                           string
	node                                           *node
	list                                           string
	addSerial, delSerial, addParallel, delParallel []time.Duration
	rates                                          []float64
}

func referenceNode(b *testing.B) *node {
	n := &node{t: b, bin: b.TempDir()}
	for _, p := range []string{"bridge", "host-local", "portmap", "loopback"} {
		must(b, copyFile(references+"/"+p, n.bin+"/"+p))
	}
	if path := os.Getenv(originalVar); path != "" {
		must(b, copyFile(path, n.bin+"/flannel"))
	}
	n.cni = newLibcni(n.bin)
	return n
}

// run adds and deletes count pods, some at a time, and returns how long the adding took.
func (s *side) run(b *testing.B, prefix string, count, at int, adds, dels *[]time.Duration) time.Duration {
	pods := make([]pod, count)
	for i := range pods {
		pods[i] = newPod(b, fmt.Sprintf("%s-%d", prefix, i))
	}
	var mu sync.Mutex
	each := func(into *[]time.Duration, f func(pod) error) time.Duration {
		start, work := time.Now(), make(chan pod)
		var wg sync.WaitGroup
		for range at {
			wg.Go(func() {
				for p := range work {
					begin := time.Now()
					err := f(p)
					took := time.Since(begin)
					mu.Lock()
					*into = append(*into, took)
					if err != nil {
						b.Errorf("%s: %v", s.name, err)
					}
					mu.Unlock()
				}
			})
		}
		for _, p := range pods {
			work <- p
		}
		close(work)
		wg.Wait()
		return time.Since(start)
	}
	took := each(adds, func(p pod) error {
		if _, err := s.node.tryAdd(call{pod: p, ifName: "lo", list: loopbackList}); err != nil {
			return err
		}
		_, err := s.node.tryAdd(call{pod: p, list: s.list})
		return err
	})
	each(dels, func(p pod) error { return s.node.tryDel(call{pod: p, list: s.list}) })
	for _, p := range pods {
		must(b, p.kill())
	}
	return took
}

func quantiles(d []time.Duration) string {
	slices.Sort(d)
	ms := func(q float64) float64 { return float64(d[int(q*float64(len(d)-1))].Microseconds()) / 1000 }
	return fmt.Sprintf("p50 %.1f p99 %.1f ms", ms(0.5), ms(0.99))
}

// BenchmarkPlugin measures one process of ours, without libcni.
func BenchmarkPlugin(b *testing.B) {
	if !asNode(b) {
		return
	}
	n := newNode(b, v4Env)
	conf := first(b, stock)
	var adds, dels, nothing, cpu []time.Duration
	timed := func(into *[]time.Duration, verb string, p pod) {
		cmd := exec.Command(n.bin + "/flannel")
		cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + p.id, "CNI_NETNS=" + p.path, "CNI_IFNAME=eth0", "CNI_PATH=" + n.bin}
		cmd.Stdin = strings.NewReader(conf)
		start := time.Now()
		out, err := cmd.Output()
		*into = append(*into, time.Since(start))
		if verb == "ADD" {
			cpu = append(cpu, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
		}
		if err != nil {
			b.Fatalf("%s: %v %s", verb, err, out)
		}
	}
	for i := range 100 {
		p := newPod(b, fmt.Sprintf("p%d", i))
		timed(&nothing, "VERSION", p)
		timed(&adds, "ADD", p)
		timed(&dels, "DEL", p)
		must(b, p.kill())
	}
	info, err := os.Stat(pluginPath)
	must(b, err)
	fmt.Printf("one process: VERSION %s | ADD %s, CPU %s | DEL %s | binary %.2f MB\n", quantiles(nothing), quantiles(adds), quantiles(cpu), quantiles(dels), float64(info.Size())/1e6)
}
