package cni

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/version"
)

// A killer runs plugins as libcni's own executor does, and kills some of them, at any point of their life.
type killer struct {
	invoke.Exec
	seed  *rand.ChaCha8
	mu    sync.Mutex // guards seed
	kills atomic.Int64
}

func (k *killer) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	k.mu.Lock()
	r := rand.New(k.seed)
	victim, after := r.IntN(4) == 0, time.Duration(r.IntN(20_000))*time.Microsecond
	k.mu.Unlock()
	if !victim {
		return k.Exec.ExecPlugin(ctx, path, stdin, env)
	}
	cmd := exec.Command(path)
	cmd.Env, cmd.Stdin = env, strings.NewReader(string(stdin))
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	timer := time.AfterFunc(after, func() {
		if cmd.Process.Kill() == nil {
			k.kills.Add(1)
		}
	})
	defer timer.Stop()
	err := cmd.Wait()
	return []byte(out.String()), err
}

// A tally is what the rounds of a churn found out together.
type tally struct {
	mu    sync.Mutex // guards the maps
	held  map[netip.Addr]string
	adds  int
	fails int
}

func (y *tally) take(t *testing.T, a netip.Addr, id string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if other, taken := y.held[a]; taken {
		t.Errorf("%s was given to %s while %s holds it", a, id, other)
	}
	y.held[a] = id
	y.adds++
}

func (y *tally) give(as ...netip.Addr) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, a := range as {
		delete(y.held, a)
	}
}

// TestChurn adds and deletes pods while plugins and pods are killed. A runtime deletes what it could not
// add, repeats a DEL that failed, and now and then forgets a pod altogether, which GC must make good.
func TestChurn(t *testing.T) {
	if !asNode(t) {
		return
	}
	rounds := 300
	if os.Getenv("WEFT_SOAK") != "" {
		rounds = 10_000
	}
	// 61 addresses, so that forgotten pods soon fill the range.
	n := newNode(t, strings.ReplaceAll(dualEnv, "10.244.3.1/24", "10.244.3.1/26"))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var key [32]byte
	copy(key[:], fmt.Sprint(seed))
	k := &killer{
		Exec: &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}, PluginDecoder: version.PluginDecoder{}},
		seed: rand.NewChaCha8(key),
	}
	n.cni = libcni.NewCNIConfigWithCacheDir([]string{n.bin}, "/var/lib/cni/cache", k)
	y := &tally{held: map[netip.Addr]string{}}
	work := make(chan int)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(worker)))
			for i := range work {
				n.round(t, y, r, i)
			}
		})
	}
	for i := range rounds {
		work <- i
	}
	close(work)
	wg.Wait()
	t.Logf("%d rounds: %d ADDs succeeded, %d failed, %d plugins killed", rounds, y.adds, y.fails, k.kills.Load())
	n.cni = newLibcni(n.bin)
	list, err := libcni.ConfListFromBytes([]byte(modern))
	must(t, err)
	must(t, n.cni.GCNetworkList(context.Background(), list, &libcni.GCArgs{}))
	n.wantClean()
	if temporary, _ := filepath.Glob(stateDir + "/*"); len(temporary) > 0 {
		t.Errorf("left behind: %q", temporary)
	}
}

// round is the life of one pod.
func (n *node) round(t *testing.T, y *tally, r *rand.Rand, i int) {
	p := newPod(t, fmt.Sprintf("p%d", i))
	c := call{pod: p, list: modern, caps: mappings(mapped(10000+i%5000, 80, "tcp"))}
	if r.IntN(8) == 0 {
		c.caps["bandwidth"] = map[string]any{"egressRate": 1 << 30, "egressBurst": 1 << 20}
	}
	result, err := n.tryAdd(c)
	var mine []netip.Addr
	if err == nil {
		mine = []netip.Addr{address(t, result, 4), address(t, result, 6)}
		for _, a := range mine {
			y.take(t, a, p.id)
		}
	} else {
		y.mu.Lock()
		y.fails++
		y.mu.Unlock()
		if strings.Contains(err.Error(), "no free address") {
			t.Errorf("round %d: %v", i, err)
		}
	}
	died := r.IntN(3) == 0
	if died { // the sandbox is gone before DEL
		y.give(mine...)
		must(t, p.kill())
	}
	if died && r.IntN(2) == 0 {
		return // and the runtime never asks
	}
	for tries := 0; ; tries++ {
		if !died && tries == 0 {
			y.give(mine...) // from now on somebody else may get them
		}
		at := n
		if tries > 20 { // so often killed: one that is not must do
			at = &node{t: n.t, bin: n.bin, cni: newLibcni(n.bin)}
		}
		if err := at.tryDel(c); err == nil {
			break
		} else if at != n {
			t.Errorf("DEL of %s keeps failing: %v", p.id, err)
			break
		}
	}
	if !died {
		must(t, p.kill())
	}
}

// A plugin that stops half-way, at any of its system calls, leaves what DEL and the next ADD can handle.
func TestKilledAtEachStep(t *testing.T) {
	if !asNode(t) {
		return
	}
	n := newNode(t, dualEnv)
	conf := first(t, modern)
	for step := 0; step < 40; step++ {
		p := newPod(t, fmt.Sprintf("s%d", step))
		cmd := exec.Command(filepath.Join(n.bin, "flannel"))
		cmd.Env = []string{
			"CNI_COMMAND=ADD", "CNI_CONTAINERID=" + p.id, "CNI_NETNS=" + p.path, "CNI_IFNAME=eth0", "CNI_PATH=" + n.bin,
		}
		cmd.Stdin = strings.NewReader(conf)
		must(t, cmd.Start())
		time.AfterFunc(time.Duration(step)*300*time.Microsecond, func() { _ = cmd.Process.Kill() })
		var exit *exec.ExitError
		if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if step%2 == 0 { // another ADD without DEL in between: works, or says that DEL comes first
			if out, err := n.raw("ADD", "flannel", conf, p); err != nil && !strings.Contains(out, "DEL comes before another ADD") {
				t.Errorf("step %d: ADD again: %s", step, out)
			}
		}
		if out, err := n.raw("DEL", "flannel", conf, p); err != nil {
			t.Errorf("step %d: DEL: %s", step, out)
		}
		n.wantClean()
	}
}
