package kube_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/kube"
	"github.com/weftnet/weft/internal/uplink"
)

const prefix = "flannel.alpha.coreos.com/"

// TestAPIServer runs all that needs a real API server against one. Every store logs in with the account and the
// rights that flannel's manifest gives.
func TestAPIServer(t *testing.T) {
	server := startAPIServer(t)
	server.grant(t)
	t.Run("the suite", func(t *testing.T) { testSuite(t, server) })
	for name, f := range map[string]func(*testing.T, *apiServer){
		"the lists are streamed":                                  testStreams,
		"a node without podCIDR waits and goes on at once":        testNoPodCIDR,
		"a podCIDR outside Network is refused with both ranges":   testOutside,
		"a Node that is not there yet is waited for":              testNoNode,
		"a Node set up anew with another podCIDR loses the lease": testRecreated,
		"annotations stand as the original writes them":           testAnnotations,
		"annotations taken away come back":                        testTakenAway,
		"the condition is set when ready, and again":              testCondition,
		"hints are told and followed":                             testHints,
		"the node is found through the pod":                       testPodNode,
		"an address of another node is refused":                   testStolen,
		"missing rights are told, not waited out":                 testNoRights,
		"Events are made where that is allowed":                   testEvents,
		"a single-family change of a dual-stack peer is seen":     testOneFamily,
		"an annotation removed removes the peer":                  testLeave,
	} {
		t.Run(name, func(t *testing.T) { f(t, server) })
	}
}

// TestPagedLists runs the suite against a server that does not stream lists.
func TestPagedLists(t *testing.T) {
	server := startAPIServer(t, "--feature-gates=WatchList=false")
	server.grant(t)
	t.Run("the suite", func(t *testing.T) { testSuite(t, server) })
	if n := server.requests(t, "LIST"); n == 0 {
		t.Error("no list was asked for: the fallback was not tested")
	}
}

// newStore returns a running store for a node, and the log that it writes.
func newStore(t *testing.T, server *apiServer, node string, change ...func(*kube.Config)) (*kube.Store, *logs) {
	t.Helper()
	cfg := kube.Config{Kubeconfig: server.kubeconfig(t, server.url, flannelToken), NodeName: node, Prefix: prefix}
	for _, c := range change {
		c(&cfg)
	}
	out := &logs{}
	s, err := kube.New(kube.Quick(cfg), slog.New(slog.NewTextHandler(out, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	run(t, s)
	return s, out
}

// self returns what node n of 10.244.0.0/16 asks for.
func self(public string) lease.Self {
	return lease.Self{
		ID:      "id",
		Public:  family.Pair[netip.Addr]{V4: netip.MustParseAddr(public)},
		Network: family.Pair[lease.Network]{V4: lease.Network{Prefix: netip.MustParsePrefix("10.244.0.0/16")}},
		Receive: []lease.Receiver{{Type: "vxlan", Data: family.Pair[string]{V4: `{"VNI":1,"VtepMAC":"e2:5e:e5:02:97:48"}`}}},
	}
}

func dual(public, public6 string) lease.Self {
	s := self(public)
	s.Public.V6 = netip.MustParseAddr(public6)
	s.Network.V6.Prefix = netip.MustParsePrefix("fd24::/48")
	s.Receive[0].Data.V6 = `{"VNI":1,"VtepMAC":"6e:08:c4:ca:2f:18"}`
	return s
}

func acquire(t *testing.T, s *kube.Store, self lease.Self) lease.Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l, err := s.Acquire(ctx, self)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// waits acquires and expects to be told to wait; it returns the reason and a function that waits.
func waits(t *testing.T, s *kube.Store, self lease.Self) (reason string, wait func()) {
	t.Helper()
	_, err := s.Acquire(t.Context(), self)
	e, ok := errors.AsType[*lease.NotYetError](err)
	if !ok {
		t.Fatalf("got %v, want NotYetError", err)
	}
	return e.Reason, func() {
		t.Helper()
		select {
		case <-e.Changed:
		case <-time.After(patience):
			t.Fatal("nothing changed")
		}
	}
}

func makeNode(t *testing.T, server *apiServer, name string, cidrs ...string) {
	t.Helper()
	server.createNode(t, name, cidrs...)
	t.Cleanup(func() { server.try(t, http.MethodDelete, "/api/v1/nodes/"+name, adminToken, nil) })
}

func testStreams(t *testing.T, server *apiServer) {
	makeNode(t, server, "stream", "10.244.7.0/24")
	lists := server.requests(t, "LIST")
	s, _ := newStore(t, server, "stream")
	v := view(t, s)
	l := acquire(t, s, self("192.0.2.7"))
	v.see(t, l)
	if got := server.requests(t, "LIST"); got != lists {
		t.Errorf("%v ordinary lists were asked for", got-lists)
	}
	eventually(t, "the watch stands", func() bool { return s.Stats().Connected }) // the list comes right before
	if st := s.Stats(); st.Leases != 1 || st.Lists != 1 || st.Revision == 0 || st.LastSync.IsZero() {
		t.Errorf("got %+v", st)
	}
}

func testNoPodCIDR(t *testing.T, server *apiServer) {
	makeNode(t, server, "bare")
	s, _ := newStore(t, server, "bare")
	reason, wait := waits(t, s, self("192.0.2.1"))
	if !strings.Contains(reason, "node bare has no podCIDR") || !strings.Contains(reason, "--allocate-node-cidrs") {
		t.Errorf("got %q", reason)
	}
	server.do(t, http.MethodPatch, "/api/v1/nodes/bare", `{"spec":{"podCIDR":"10.244.3.0/24","podCIDRs":["10.244.3.0/24"]}}`)
	wait()
	if l := acquire(t, s, self("192.0.2.1")); l.Subnet.V4 != netip.MustParsePrefix("10.244.3.0/24") || l.Node != "bare" {
		t.Errorf("got %+v", l)
	}
}

func testOutside(t *testing.T, server *apiServer) {
	makeNode(t, server, "outside", "100.244.0.0/24")
	s, _ := newStore(t, server, "outside")
	reason, _ := waits(t, s, self("192.0.2.1"))
	if !strings.Contains(reason, "podCIDR 100.244.0.0/24 of node outside is not inside Network 10.244.0.0/16") {
		t.Errorf("got %q", reason)
	}
}

func testNoNode(t *testing.T, server *apiServer) {
	s, _ := newStore(t, server, "late")
	reason, wait := waits(t, s, self("192.0.2.1"))
	if !strings.Contains(reason, "no Node") {
		t.Errorf("got %q", reason)
	}
	makeNode(t, server, "late", "10.244.4.0/24")
	wait()
	acquire(t, s, self("192.0.2.1"))
}

func testRecreated(t *testing.T, server *apiServer) {
	makeNode(t, server, "anew", "10.244.5.0/24")
	s, _ := newStore(t, server, "anew")
	me := self("192.0.2.5")
	l := acquire(t, s, me)
	ended := hold(t, s, me, l)
	server.deleteNode(t, "anew")
	if err := <-ended; !errors.Is(err, lease.ErrLost) {
		t.Errorf("got %v, want ErrLost", err)
	}
	_, wait := waits(t, s, me)
	server.createNode(t, "anew", "10.244.6.0/24")
	wait()
	if l := acquire(t, s, me); l.Subnet.V4 != netip.MustParsePrefix("10.244.6.0/24") {
		t.Errorf("got %v", l.Subnet)
	}
}

func hold(t *testing.T, s *kube.Store, me lease.Self, l lease.Lease) chan error {
	ctx, cancel := context.WithCancel(t.Context())
	ended, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		ended <- s.Hold(ctx, me, l)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return ended
}

func testAnnotations(t *testing.T, server *apiServer) {
	makeNode(t, server, "written", "10.244.8.0/24", "fd24:0:0:8::/64")
	server.annotate(t, "written", "", map[string]*string{"someone/else": new("stays"), prefix + "public-ipv6": new("2001:db8::99")})
	s, _ := newStore(t, server, "written")
	acquire(t, s, self("192.0.2.8"))
	want := map[string]string{
		"someone/else": "stays", prefix + "kube-subnet-manager": "true", prefix + "backend-type": "vxlan",
		prefix + "backend-data": `{"VNI":1,"VtepMAC":"e2:5e:e5:02:97:48"}`, prefix + "public-ip": "192.0.2.8",
	}
	first := server.node(t, "written")
	if d := cmp.Diff(want, first.Metadata.Annotations); d != "" {
		t.Errorf("IPv4 (-want +got):\n%s", d)
	}
	acquire(t, s, self("192.0.2.8"))
	if again := server.node(t, "written"); again.Metadata.ResourceVersion != first.Metadata.ResourceVersion {
		t.Error("annotations that stood already were written again")
	}
	acquire(t, s, dual("192.0.2.8", "2001:db8::8"))
	maps.Copy(want, map[string]string{prefix + "backend-v6-data": `{"VNI":1,"VtepMAC":"6e:08:c4:ca:2f:18"}`, prefix + "public-ipv6": "2001:db8::8"})
	if d := cmp.Diff(want, server.node(t, "written").Metadata.Annotations); d != "" {
		t.Errorf("dual stack (-want +got):\n%s", d)
	}
	next, _ := newStore(t, server, "written") // a restart
	l, found, err := next.Recall(t.Context(), dual("192.0.2.8", "2001:db8::8"))
	if err != nil || !found || l.Receive[0] != dual("192.0.2.8", "2001:db8::8").Receive[0] {
		t.Errorf("recalled %+v, %t, %v", l, found, err)
	}
}

func testTakenAway(t *testing.T, server *apiServer) {
	makeNode(t, server, "taken", "10.244.9.0/24")
	s, out := newStore(t, server, "taken")
	me := self("192.0.2.9")
	ended := hold(t, s, me, acquire(t, s, me))
	for range 3 {
		server.annotate(t, "taken", prefix, map[string]*string{"kube-subnet-manager": nil, "public-ip": new("192.0.2.66")})
		eventually(t, "annotations are back", func() bool {
			a := server.node(t, "taken").Metadata.Annotations
			return a[prefix+"kube-subnet-manager"] == "true" && a[prefix+"public-ip"] == "192.0.2.9"
		})
	}
	if out.count("someone changed this node's annotations") == 0 {
		t.Error("nobody was told")
	}
	select {
	case err := <-ended:
		t.Errorf("Hold ended: %v", err)
	default:
	}
}

func (o object) condition(kind string) (status, reason, message string) {
	for _, c := range o.Status.Conditions {
		if c.Type == kind {
			return c.Status, c.Reason, c.Message
		}
	}
	return "", "", ""
}

func testCondition(t *testing.T, server *apiServer) {
	makeNode(t, server, "cloud", "10.244.10.0/24")
	server.setStatus(t, "cloud", `{"conditions":[{"type":"NetworkUnavailable","status":"True","reason":"NoRouteCreated"},{"type":"Ready","status":"True"}]}`)
	s, _ := newStore(t, server, "cloud", func(c *kube.Config) { c.SetCondition = true })
	set := func() bool {
		status, reason, message := server.node(t, "cloud").condition("NetworkUnavailable")
		return status == "False" && reason == "FlannelIsUp" && message == "Flannel is running on this node"
	}
	acquire(t, s, self("192.0.2.10"))
	if set() {
		t.Error("the condition was set before the node was ready")
	}
	s.SetReady()
	s.SetReady()
	eventually(t, "condition is set", set)
	if status, _, _ := server.node(t, "cloud").condition("Ready"); status != "True" {
		t.Errorf("condition Ready is %q", status)
	}
	server.setStatus(t, "cloud", `{"conditions":[{"type":"NetworkUnavailable","status":"True","reason":"NoRouteCreated"}]}`)
	eventually(t, "condition is set again", set)
}

func testHints(t *testing.T, server *apiServer) {
	makeNode(t, server, "hints", "10.244.11.0/24")
	server.setStatus(t, "hints", `{"addresses":[{"type":"Hostname","address":"hints"},{"type":"InternalIP","address":"192.0.2.11"},{"type":"InternalIP","address":"2001:db8::11"},{"type":"ExternalIP","address":"203.0.113.11"}]}`)
	s, _ := newStore(t, server, "hints")
	want := uplink.Hints{NodeIP: family.Pair[netip.Addr]{V4: netip.MustParseAddr("192.0.2.11"), V6: netip.MustParseAddr("2001:db8::11")}}
	told := func() bool { h, err := s.Hints(); return err == nil && h == want }
	eventually(t, "hints are told", told)
	server.annotate(t, "hints", prefix, map[string]*string{
		"node-public-ip": new("203.0.113.1"), "public-ip-overwrite": new("203.0.113.2"), "public-ipv6-overwrite": new("2001:db8::2"),
	})
	want.NodePublic.V4 = netip.MustParseAddr("203.0.113.1")
	want.Overwrite = family.Pair[netip.Addr]{V4: netip.MustParseAddr("203.0.113.2"), V6: netip.MustParseAddr("2001:db8::2")}
	eventually(t, "annotations are followed", told)
	server.annotate(t, "hints", prefix, map[string]*string{"node-public-ip": new("my-host")})
	eventually(t, "a bad annotation is an error that names it", func() bool {
		_, err := s.Hints()
		return err != nil && strings.Contains(err.Error(), `node-public-ip: "my-host" is no IPv4 address`)
	})
	none, _ := newStore(t, server, "nobody")
	eventually(t, "a missing Node is an error that names it", func() bool {
		_, err := none.Hints()
		return err != nil && strings.Contains(err.Error(), "no Node nobody")
	})
}

func testPodNode(t *testing.T, server *apiServer) {
	makeNode(t, server, "host", "10.244.12.0/24")
	s, _ := newStore(t, server, "", func(c *kube.Config) { c.PodName, c.PodNamespace = "kube-flannel-ds-x", "default" })
	if _, err := s.Hints(); !errors.Is(err, uplink.ErrNoHints) {
		t.Errorf("got %v, want ErrNoHints", err)
	}
	eventually(t, "the reason says that there is no pod", func() bool {
		_, err := s.Hints()
		return err != nil && strings.Contains(err.Error(), "default/kube-flannel-ds-x") && strings.Contains(err.Error(), "404")
	})
	server.do(t, http.MethodPost, "/api/v1/namespaces/default/pods", `{"metadata":{"name":"kube-flannel-ds-x"},
		"spec":{"nodeName":"host","automountServiceAccountToken":false,"containers":[{"name":"c","image":"i"}]}}`)
	if l := acquire(t, s, self("192.0.2.12")); l.Node != "host" {
		t.Errorf("got %+v", l)
	}
}

func testStolen(t *testing.T, server *apiServer) {
	makeNode(t, server, "honest", "10.244.13.0/24")
	server.setStatus(t, "honest", `{"addresses":[{"type":"InternalIP","address":"192.0.2.13"}]}`)
	makeNode(t, server, "thief", "10.244.14.0/24")
	honest, _ := newStore(t, server, "honest")
	thief, _ := newStore(t, server, "thief")
	stolen := acquire(t, thief, self("192.0.2.13"))
	s, out := newStore(t, server, "honest")
	v := view(t, s)
	mine := acquire(t, honest, self("192.0.2.13"))
	stolen.Refused = "public address 192.0.2.13 is an address of node honest"
	v.see(t, mine, stolen)
	if out.count("node=thief") != 1 || s.Stats().BadKeys != 1 {
		t.Errorf("the thief is told %d times, counted %d times", out.count("node=thief"), s.Stats().BadKeys)
	}
	stolen = acquire(t, thief, self("192.0.2.14"))
	v.see(t, mine, stolen)
}

func testNoRights(t *testing.T, server *apiServer) {
	makeNode(t, server, "poor", "10.244.15.0/24")
	server.do(t, http.MethodPatch, "/apis/rbac.authorization.k8s.io/v1/clusterroles/flannel", `{"rules":[
		{"apiGroups":[""],"resources":["nodes"],"verbs":["get","list","watch"]}]}`)
	s, _ := newStore(t, server, "poor")
	// The server heeds another role a little later than it has it. What stands already is not written again, so
	// every attempt publishes something new.
	attempts := 0
	attempt := func() error {
		attempts++
		me := self("192.0.2.15")
		me.Receive[0].Data.V4 = fmt.Sprintf(`{"VNI":%d,"VtepMAC":"e2:5e:e5:02:97:48"}`, attempts)
		_, err := s.Acquire(t.Context(), me)
		return err
	}
	defer func() {
		server.do(t, http.MethodPatch, "/apis/rbac.authorization.k8s.io/v1/clusterroles/flannel", `{"rules":[
			{"apiGroups":[""],"resources":["pods"],"verbs":["get"]},
			{"apiGroups":[""],"resources":["nodes"],"verbs":["get","list","watch"]},
			{"apiGroups":[""],"resources":["nodes/status"],"verbs":["patch"]}]}`)
		eventually(t, "the right is back for the other tests", func() bool { return attempt() == nil })
	}()
	eventually(t, "the missing right is named", func() bool {
		err := attempt()
		return err != nil && strings.Contains(err.Error(), `cannot patch resource "nodes/status"`)
	})
}

func testEvents(t *testing.T, server *apiServer) {
	makeNode(t, server, "eventful")
	count := func() int {
		return strings.Count(string(server.do(t, http.MethodGet, "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name=eventful", nil)), `"reason":"NoPodSubnet"`)
	}
	poor, _ := newStore(t, server, "eventful")
	waits(t, poor, self("192.0.2.1"))
	if n := count(); n != 0 {
		t.Errorf("%d events without the right to make any", n)
	}
	rich, _ := newStore(t, server, "eventful", func(c *kube.Config) { c.Kubeconfig = server.kubeconfig(t, server.url, adminToken) })
	for range 3 {
		waits(t, rich, self("192.0.2.1"))
	}
	if n := count(); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

func testOneFamily(t *testing.T, server *apiServer) {
	makeNode(t, server, "both", "10.244.16.0/24", "fd24:0:0:16::/64")
	s, _ := newStore(t, server, "both")
	v := view(t, s)
	v.see(t, acquire(t, s, dual("192.0.2.16", "2001:db8::16")))
	me := dual("192.0.2.17", "2001:db8::16")
	v.see(t, acquire(t, s, me))
	me.Receive[0].Data.V4 = `{"VNI":1,"VtepMAC":"e2:5e:e5:02:97:49"}`
	v.see(t, acquire(t, s, me))
	single := acquire(t, s, self("192.0.2.17"))
	v.see(t, single)
	if single.Has(family.V6) {
		t.Errorf("got %+v", single)
	}
}

func testLeave(t *testing.T, server *apiServer) {
	makeNode(t, server, "leaver", "10.244.17.0/24")
	s, _ := newStore(t, server, "leaver")
	v := view(t, s)
	v.see(t, acquire(t, s, self("192.0.2.17")))
	server.annotate(t, "leaver", prefix, map[string]*string{"kube-subnet-manager": new("false")})
	v.see(t)
}

// A viewer keeps the set that Watch handed over last.
type viewer struct {
	mu   sync.Mutex
	last []lease.Lease
	sets int
}

func view(t *testing.T, s *kube.Store) *viewer {
	v := &viewer{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Watch(ctx, func(ls []lease.Lease) {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.last, v.sets = ls, v.sets+1
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return v
}

// see waits until the set is want, apart from nodes that other tests have left.
func (v *viewer) see(t *testing.T, want ...lease.Lease) {
	t.Helper()
	var diff string
	ok := func() bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		diff = cmp.Diff(want, v.last, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }))
		return v.sets > 0 && (diff == "" || len(want)+len(v.last) == 0)
	}
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("watched set (-want +got):\n%s", diff)
		}
		<-tick.C
	}
}
