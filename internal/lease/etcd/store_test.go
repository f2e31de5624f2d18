package etcd_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftnet/weft/internal/etcdserver"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/etcd"
	"github.com/weftnet/weft/internal/lease/leasetest"
)

const subnetsKey = etcd.DefaultPrefix + "/subnets"

// run runs f in the background until the test ends.
func run(t *testing.T, f func(context.Context) error) (ended chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		ended <- f(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return ended
}

// watch watches s and returns the set handed over last and how many there were.
func watch(t *testing.T, s *etcd.Store) (last *atomic.Pointer[[]lease.Lease], sets *atomic.Int64) {
	t.Helper()
	last, sets = &atomic.Pointer[[]lease.Lease]{}, &atomic.Int64{}
	run(t, func(ctx context.Context) error {
		return s.Watch(ctx, func(set []lease.Lease) {
			sets.Add(1)
			last.Store(&set)
		})
	})
	return last, sets
}

func hasLeases(last *atomic.Pointer[[]lease.Lease], n int) func() bool {
	return func() bool { set := last.Load(); return set != nil && len(*set) == n }
}

// fill writes n leases as nodes of the original would.
func fill(t testing.TB, c *clientv3.Client, n, from int) {
	t.Helper()
	granted, err := c.Grant(t.Context(), 86400)
	if err != nil {
		t.Fatal(err)
	}
	for i := from; i < from+n; {
		var ops []clientv3.Op
		for ; i < from+n && len(ops) < 100; i++ {
			key := fmt.Sprintf("%s/10.%d.%d.0-24", subnetsKey, 1+i/256, i%256)
			value := fmt.Sprintf(`{"PublicIP":"172.16.%d.%d","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:%02x:%02x"}}`, i/256, i%256, i/256, i%256)
			ops = append(ops, clientv3.OpPut(key, value, clientv3.WithLease(granted.ID)))
		}
		if _, err := c.Txn(t.Context()).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOneBadKeyIsToldOnceAndCounted(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	p := newProxy(t, server.Endpoints()[0])
	out := &logs{}
	s := open(t, config(p.endpoint()), out.logger())
	fill(t, client, 3, 0)
	put(t, client, subnetsKey+"/foo", "{}")
	last, sets := watch(t, s)
	eventually(t, "three leases", hasLeases(last, 3))
	before := sets.Load()

	put(t, client, subnetsKey+"-meta/x", "{}")
	put(t, client, subnetsKey+"/10.1.1.0-24", "garbage")
	eventually(t, "one lease less, three bad keys", func() bool { return s.Stats().BadKeys == 3 && hasLeases(last, 2)() })
	p.set(refuse) // so that all is listed again
	_, err := client.Compact(t.Context(), put(t, client, "/x", ""))
	must(t, err)
	p.set(pass)
	eventually(t, "a new listing", func() bool { return s.Stats().Connected && s.Stats().Lists > 1 })
	if n := out.count("entry left out"); n != 3 {
		t.Errorf("told %d times, want once per bad key:\n%s", n, out)
	}
	for _, key := range []string{"/foo", "-meta/x"} {
		_, err := client.Delete(t.Context(), subnetsKey+key)
		must(t, err)
	}
	fill(t, client, 1, 1)
	eventually(t, "no bad keys, all leases", func() bool { return s.Stats().BadKeys == 0 && hasLeases(last, 3)() })
	if n := sets.Load() - before; n != 2 {
		t.Errorf("%d sets for two changes", n)
	}
}

func TestManyBadKeysDoNotFloodTheLog(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	out := &logs{}
	s := open(t, config(server.Endpoints()[0]), out.logger())
	last, _ := watch(t, s)
	eventually(t, "a set", hasLeases(last, 0))
	begin := time.Now()
	for i := range 500 {
		put(t, client, subnetsKey+"/foo", fmt.Sprint(i))
		put(t, client, fmt.Sprintf("%s/foo%d", subnetsKey, i), "")
	}
	eventually(t, "all counted", func() bool { return s.Stats().BadKeys == 501 })
	if n, took := strings.Count(out.String(), "\n"), time.Since(begin); n > 30*(1+int(took/time.Minute)) {
		t.Errorf("%d lines in %s", n, took)
	}
}

func TestABurstMakesFewSetsAndARenewalNone(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	s := open(t, config(server.Endpoints()[0]), nil)
	last, sets := watch(t, s)
	eventually(t, "the empty set", hasLeases(last, 0))
	begin := time.Now()
	fill(t, client, 5000, 0)
	eventually(t, "5000 leases", hasLeases(last, 5000))
	if n, most := sets.Load(), int64(2+time.Since(begin)/(10*time.Millisecond)); n > most {
		t.Errorf("%d sets, want at most %d", n, most)
	}
	before := sets.Load()
	fill(t, client, 5000, 0) // the same again
	fill(t, client, 1, 5000)
	eventually(t, "one more", hasLeases(last, 5001))
	if n := sets.Load() - before; n != 1 {
		t.Errorf("%d sets for renewals and one new lease, want 1", n)
	}
}

func TestAWatchResumesWithoutANewListing(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	p := newProxy(t, server.Endpoints()[0])
	out := &logs{}
	s := open(t, config(p.endpoint()), out.logger())
	last, _ := watch(t, s)
	fill(t, client, 3, 0)
	eventually(t, "three leases", hasLeases(last, 3))
	lists := s.Stats().Lists
	p.set(refuse)
	// Both watches notice it: one that came to it later than the end of the other's outage would tell of another one.
	eventually(t, "the outage is noticed", func() bool { st := s.Stats(); return !st.Connected && st.RequestsFailed >= 8 })
	fill(t, client, 3, 3)
	p.set(pass)
	eventually(t, "six leases", hasLeases(last, 6))
	if got := s.Stats().Lists; got != lists {
		t.Errorf("%d listings, %d before the outage", got, lists)
	}
	eventually(t, "the end of the outage is told", func() bool { return out.count("works again") == 1 })
	if out.count("level=WARN") != 1 {
		t.Errorf("want one warning for all watches:\n%s", out)
	}
}

func TestASilentPartitionIsNoticed(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	p := newProxy(t, server.Endpoints()[0])
	cfg := config(p.endpoint())
	cfg.RequestTimeout = 2 * time.Second
	s := open(t, cfg, nil)
	last, _ := watch(t, s)
	fill(t, client, 3, 0)
	eventually(t, "three leases", hasLeases(last, 3))
	p.stall()
	fill(t, client, 3, 3)
	begin := time.Now()
	eventually(t, "six leases, on a new connection", hasLeases(last, 6))
	t.Logf("noticed after %s", time.Since(begin).Round(time.Millisecond))
}

func TestAnEtcdThatStartsLateRestartsOrIsReplaced(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := etcdserver.Options{DataDir: dir}
	p := newProxy(t, "http://127.0.0.1:1") // nobody there
	out := &logs{}
	s := open(t, config(p.endpoint()), out.logger())
	self := leasetest.Self(1, family.V4)
	got := make(chan lease.Lease, 1)
	go func() {
		l, err := s.Acquire(t.Context(), self)
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	last, _ := watch(t, s)
	eventually(t, "the log says that there is no etcd", func() bool { return out.count("level=WARN") == 1 })

	server, _ := start(t, o)
	p.retarget(server)
	l := <-got
	ended := run(t, func(ctx context.Context) error { return s.Hold(ctx, self, l) })
	eventually(t, "our lease", hasLeases(last, 1))

	server.Close()
	server, client := start(t, o)
	p.retarget(server)
	fill(t, client, 2, 0)
	eventually(t, "the restarted etcd's leases", hasLeases(last, 3))
	select {
	case err := <-ended:
		t.Fatalf("Hold ended: %v", err)
	default:
	}

	server.Close()
	server, client = start(t, etcdserver.Options{}) // without the data
	p.retarget(server)
	if err := <-ended; !errors.Is(err, lease.ErrLost) {
		t.Errorf("Hold: got %v, want ErrLost", err)
	}
	self.Prior = l.Subnet
	if again := acquire(t, s, self); again.Subnet != l.Subnet {
		t.Errorf("got %v, had %v", again.Subnet, l.Subnet)
	}
	fill(t, client, 1, 0)
	eventually(t, "the new etcd's leases", hasLeases(last, 2))
}

// An etcd without its data that is set up like before has the same cluster ID.
func TestAnEtcdThatIsReplacedAndPassesOurRevision(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	p := newProxy(t, server.Endpoints()[0])
	s := open(t, config(p.endpoint()), nil)
	last, _ := watch(t, s)
	fill(t, client, 3, 0)
	eventually(t, "three leases", hasLeases(last, 3))
	before, err := client.Get(t.Context(), "x")
	must(t, err)

	p.set(refuse)
	server.Close()
	server, client = start(t, etcdserver.Options{})
	for i := range 4 {
		fill(t, client, 1, 10+i)
	}
	after, err := client.Get(t.Context(), "x")
	must(t, err)
	if a, b := after.Header, before.Header; a.ClusterId != b.ClusterId || a.RaftTerm != b.RaftTerm || a.Revision <= b.Revision {
		t.Fatalf("the new etcd must look like the old one: %v, %v", a, b)
	}
	p.retarget(server)
	eventually(t, "the new etcd's leases", hasLeases(last, 4))
}

func TestTurningIPv6OnDeletesBeforeItPuts(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	s := open(t, config(server.Endpoints()[0]), nil)
	first := acquire(t, s, leasetest.Self(1, family.V4))
	events := client.Watch(t.Context(), subnetsKey, clientv3.WithPrefix())
	both := acquire(t, s, leasetest.Self(1, family.V4, family.V6))
	resp := <-events
	var got []string
	for _, e := range resp.Events {
		got = append(got, fmt.Sprint(e.Type, " ", string(e.Kv.Key)))
	}
	want := []string{"DELETE " + subnetsKey + "/" + lease.Name(first.Subnet), "PUT " + subnetsKey + "/" + lease.Name(both.Subnet)}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got events %q, want %q in one revision", got, want)
	}
}

func TestRenewal(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	self := leasetest.Self(1, family.V4)
	ttl := func(key string) (clientv3.LeaseID, int64) {
		kv := get(t, client, key).Kvs[0]
		resp, err := client.TimeToLive(t.Context(), clientv3.LeaseID(kv.Lease))
		must(t, err)
		return resp.ID, resp.TTL
	}
	short := func(key string) {
		kv := get(t, client, key).Kvs[0]
		granted, err := client.Grant(t.Context(), 60)
		must(t, err)
		put(t, client, key, string(kv.Value), clientv3.WithLease(granted.ID))
	}
	s := open(t, config(server.Endpoints()[0]), nil)
	begin := time.Now()
	l := acquire(t, s, self)
	key := subnetsKey + "/" + lease.Name(l.Subnet)
	first, left := ttl(key)
	if took := int64(time.Since(begin) / time.Second); left < 86400-2-took || left > 86400 {
		t.Errorf("acquired for %d s, %d s ago", left, took)
	}
	run(t, func(ctx context.Context) error { return s.Hold(ctx, self, l) })
	short(key) // someone's put restarts the timer from the lifetime found
	eventually(t, "a new etcd lease of a day", func() bool { id, left := ttl(key); return id != first && left > 86300 })
	if id, _ := ttl(key); id == first {
		t.Error("the former etcd lease was used again")
	}
	if n := get(t, client, key).Kvs[0].Version; n != 3 {
		t.Errorf("%d writes, want 3", n)
	}
}

func TestGarbageOverTheOwnLeaseIsWrittenBack(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	s := open(t, config(server.Endpoints()[0]), nil)
	self := leasetest.Self(1, family.V4)
	l := acquire(t, s, self)
	key := subnetsKey + "/" + lease.Name(l.Subnet)
	want := string(get(t, client, key).Kvs[0].Value)
	run(t, func(ctx context.Context) error { return s.Hold(ctx, self, l) })
	put(t, client, key, "garbage", clientv3.WithIgnoreLease())
	eventually(t, "our value again", func() bool { return string(get(t, client, key).Kvs[0].Value) == want })
}

func TestWhoeverInsistsOnOurKeyMakesNoStorm(t *testing.T) {
	server, client := start(t, etcdserver.Options{})
	s := open(t, config(server.Endpoints()[0]), nil)
	self := leasetest.Self(1, family.V4)
	l := acquire(t, s, self)
	key := subnetsKey + "/" + lease.Name(l.Subnet)
	kv := get(t, client, key).Kvs[0]
	run(t, func(ctx context.Context) error { return s.Hold(ctx, self, l) })
	other := strings.Replace(string(kv.Value), "vxlan", "host-gw", 1)
	ours, begin := 0, time.Now()
	for range 20 {
		put(t, client, key, other, clientv3.WithIgnoreLease())
		deadline := time.Now().Add(50 * time.Millisecond)
		for time.Now().Before(deadline) {
			if string(get(t, client, key).Kvs[0].Value) != other {
				ours++
				break
			}
		}
	}
	if took := time.Since(begin); ours > 1+int(took/(10*time.Second)) {
		t.Errorf("%d writes in %s", ours, took)
	}
}

func TestConfigurationIsWaitedForInOneLine(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	out := &logs{}
	s := open(t, config(server.Endpoints()[0]), out.logger())
	seen := make(chan string, 1)
	run(t, func(ctx context.Context) error {
		return s.WatchConfig(ctx, func(raw []byte) { seen <- string(raw) })
	})
	eventually(t, "the log says what is waited for", func() bool { return out.count(etcd.DefaultPrefix+"/config") == 1 })
	put(t, client, etcd.DefaultPrefix+"/config", `{"Network":"10.5.0.0/16"}`)
	if got := <-seen; got != `{"Network":"10.5.0.0/16"}` {
		t.Errorf("got %s", got)
	}
	if strings.Count(out.String(), "\n") != 1 {
		t.Errorf("more than one line:\n%s", out)
	}
}

func TestThePrefixIsJoinedAsAPath(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	for prefix, want := range map[string]string{"/a/net/": "/a/net", "b//net": "b/net", "": etcd.DefaultPrefix, "/": ""} {
		cfg := config(server.Endpoints()[0])
		cfg.Prefix = prefix
		l := acquire(t, open(t, cfg, nil), leasetest.Self(1, family.V4))
		if len(get(t, client, want+"/subnets/"+lease.Name(l.Subnet)).Kvs) != 1 {
			t.Errorf("prefix %q: no lease below %s", prefix, want)
		}
	}
}

func TestTwoKeysOfOneSubnetAreOneLease(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	s := open(t, config(server.Endpoints()[0]), nil)
	value := func(n int) string { return fmt.Sprintf(`{"PublicIP":"10.0.0.%d","PublicIPv6":null}`, n) }
	put(t, client, subnetsKey+"X/10.5.1.0-24", value(2))
	put(t, client, subnetsKey+"/10.5.1.0-024", value(1))
	last, _ := watch(t, s)
	eventually(t, "the first key's lease", func() bool {
		return hasLeases(last, 1)() && (*last.Load())[0].Public.V4 == netip.MustParseAddr("10.0.0.1")
	})
	put(t, client, subnetsKey+"/10.5.1.0-24", value(3))
	eventually(t, "the proper key's lease", func() bool {
		return hasLeases(last, 1)() && (*last.Load())[0].Public.V4 == netip.MustParseAddr("10.0.0.3")
	})
}

// The original drops all peers at a key or value under <prefix>/subnets that it cannot read.
func TestNothingIsWrittenThatTheOriginalCannotRead(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := client.Watch(ctx, "/", clientv3.WithPrefix())
	for _, families := range [][]family.Family{{family.V4}, {family.V4, family.V6}, {family.V6}, {family.V4}} {
		s := open(t, config(server.Endpoints()[0]), nil)
		self := leasetest.Self(1, families...)
		l := acquire(t, s, self)
		holding, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Hold(holding, self, l) }()
		acquire(t, open(t, config(server.Endpoints()[0]), nil), leasetest.Self(2, families...))
		stop()
		<-ended
	}
	last := put(t, client, "/end", "")

	name := regexp.MustCompile(`(\d+\.\d+\.\d+\.\d+)-(\d+)(&([a-f\d:]+)-(\d+))?$`)
	puts := 0
	for resp := range events {
		for _, e := range resp.Events {
			key := string(e.Kv.Key)
			if e.Kv.ModRevision == last {
				cancel()
				break
			}
			switch {
			case strings.HasPrefix(key, etcd.DefaultPrefix+"/x-weft/"):
			case !strings.HasPrefix(key, subnetsKey) || !name.MatchString(key):
				t.Errorf("%s of %s", e.Type, key)
			case e.Type == clientv3.EventTypePut:
				puts++
				var v struct {
					PublicIP    netip.Addr
					PublicIPv6  *netip.Addr
					BackendType string
				}
				if err := json.Unmarshal(e.Kv.Value, &v); err != nil || !v.PublicIP.Is4() {
					t.Errorf("value %s: %v", e.Kv.Value, err)
				}
			}
		}
	}
	if puts == 0 {
		t.Error("no lease was written")
	}
}

func BenchmarkWatch5000(b *testing.B) {
	server, client := start(b, etcdserver.Options{})
	fill(b, client, 5000, 0)
	for b.Loop() {
		s, err := etcd.New(config(server.Endpoints()[0]), discard)
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(b.Context())
		err = s.Watch(ctx, func(set []lease.Lease) {
			if len(set) != 5000 {
				b.Errorf("%d leases", len(set))
			}
			cancel()
		})
		if !errors.Is(err, context.Canceled) {
			b.Fatal(err)
		}
		s.Close()
	}
}

func TestASubnetWithABadValueIsTaken(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	s := open(t, config(server.Endpoints()[0]), nil)
	put(t, client, subnetsKey+"/10.5.1.0-24", "garbage")
	put(t, client, subnetsKey+"/10.5.2.0-23", "garbage") // it overlaps the other two
	if l, err := s.Acquire(t.Context(), leasetest.Self(1, family.V4)); !errors.Is(err, lease.ErrFull) {
		t.Errorf("got %+v, %v, want ErrFull", l, err)
	}
}

// TestWhatComesBetweenRecallAndAcquire has the leases change after a node has listed them and before it writes.
func TestWhatComesBetweenRecallAndAcquire(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	recall := func(self lease.Self) *etcd.Store {
		s := open(t, config(server.Endpoints()[0]), nil)
		if _, _, err := s.Recall(t.Context(), self); err != nil {
			t.Fatal(err)
		}
		return s
	}
	self := leasetest.Self(1, family.V4)
	s := recall(self)
	others := map[string]bool{}
	for n := 2; n <= 3; n++ {
		l := acquire(t, open(t, config(server.Endpoints()[0]), nil), leasetest.Self(n, family.V4))
		others[lease.Name(l.Subnet)] = true
	}
	last := recall(leasetest.Self(4, family.V4))
	first := acquire(t, s, self)
	if others[lease.Name(first.Subnet)] {
		t.Errorf("%s is another node's", lease.Name(first.Subnet))
	}
	key := subnetsKey + "/" + lease.Name(first.Subnet)
	value := string(get(t, client, key).Kvs[0].Value)

	t.Run("everything is taken by now", func(t *testing.T) {
		if l, err := last.Acquire(t.Context(), leasetest.Self(4, family.V4)); !errors.Is(err, lease.ErrFull) {
			t.Errorf("got %+v, %v, want ErrFull", l, err)
		}
	})
	freed := func(t *testing.T) {
		s := recall(self)
		if _, err := client.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		if again := acquire(t, s, self); again.Subnet != first.Subnet {
			t.Errorf("got %v, want %v, which alone is free", again.Subnet, first.Subnet)
		}
	}
	t.Run("the own lease is gone", freed)
	t.Run("the own lease is another node's", func(t *testing.T) {
		s := recall(self)
		theirs := strings.Replace(value, "192.0.2.1", "192.0.2.9", 1)
		put(t, client, key, theirs)
		if l, err := s.Acquire(t.Context(), self); !errors.Is(err, lease.ErrFull) {
			t.Errorf("got %+v, %v, want ErrFull", l, err)
		}
		if now := string(get(t, client, key).Kvs[0].Value); now != theirs {
			t.Errorf("their lease was written over: %s", now)
		}
	})
	t.Run("something is free by now", freed)
	t.Run("another address", func(t *testing.T) {
		s := recall(self)
		moved := self
		moved.Public.V4 = netip.MustParseAddr("192.0.2.77") // what was listed as its own is another node's then
		if l, err := s.Acquire(t.Context(), moved); !errors.Is(err, lease.ErrFull) {
			t.Errorf("got %+v, %v, want ErrFull", l, err)
		}
	})
}

func TestManyNodesStartAtOnce(t *testing.T) {
	t.Parallel()
	server, _ := start(t, etcdserver.Options{})
	const n = 60
	leases := make([]lease.Lease, n)
	var wg sync.WaitGroup
	for i := range n {
		s := open(t, config(server.Endpoints()[0]), nil)
		self := leasetest.Self(i+1, family.V4, family.V6)
		self.Network.V4 = lease.Network{Prefix: netip.MustParsePrefix("10.5.0.0/16"), SubnetLen: 24,
			Min: netip.MustParseAddr("10.5.1.0"), Max: netip.MustParseAddr("10.5.100.0")}
		self.Network.V6 = lease.Network{Prefix: netip.MustParsePrefix("fd05::/48"), SubnetLen: 64,
			Min: netip.MustParseAddr("fd05:0:0:1::"), Max: netip.MustParseAddr("fd05:0:0:64::")}
		wg.Go(func() {
			_, _, err := s.Recall(t.Context(), self) // as an agent does
			if err != nil {
				t.Errorf("node %d: %v", i, err)
			}
			l, err := s.Acquire(t.Context(), self)
			if err != nil {
				t.Errorf("node %d: %v", i, err)
			}
			leases[i] = l
		})
	}
	wg.Wait()
	seen := map[netip.Prefix]int{}
	for i, l := range leases {
		for _, f := range family.All() {
			if j, ok := seen[l.Subnet.Of(f)]; ok {
				t.Errorf("nodes %d and %d both have %s", i, j, l.Subnet.Of(f))
			}
			seen[l.Subnet.Of(f)] = i
		}
	}
}
