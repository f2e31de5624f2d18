package kube

import (
	"bytes"
	"encoding/binary"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

var testKeys = keys{"flannel.alpha.coreos.com/"}

// official returns what we should read of a Node, by way of Kubernetes' own types.
func official(o *corev1.Node) *node {
	n := &node{
		name: o.Name, uid: string(o.UID), version: o.ResourceVersion, podCIDR: o.Spec.PodCIDR,
		initialEnd: o.Annotations[initialEvents] == "true",
	}
	if !o.CreationTimestamp.IsZero() {
		n.created = o.CreationTimestamp.Unix()
	}
	n.podCIDRs = slices.Clone(o.Spec.PodCIDRs[:min(len(o.Spec.PodCIDRs), maxCIDRs)])
	for _, a := range o.Status.Addresses[:min(len(o.Status.Addresses), maxAddresses)] {
		n.addresses = append(n.addresses, address{string(a.Type), a.Address})
	}
	for k, v := range o.Annotations {
		if name, ok := testKeys.name([]byte(k)); ok {
			if n.annotations == nil {
				n.annotations = map[string]string{}
			}
			n.annotations[name] = v[:min(len(v), maxAnnotation+1)]
		}
	}
	for _, c := range o.Status.Conditions {
		if c.Type == networkUnavailable {
			n.network = string(c.Status)
		}
	}
	return n
}

func sample() *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: "n1", UID: types.UID("0c7e"), ResourceVersion: "4711", CreationTimestamp: metav1.Time{Time: time.Unix(1_700_000_000, 0)},
			Labels: map[string]string{"a": "b"}, Finalizers: []string{"x"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet", FieldsV1: metav1.NewFieldsV1(strings.Repeat("x", 3000))}},
			Annotations: map[string]string{
				"flannel.alpha.coreos.com/kube-subnet-manager": "true", "flannel.alpha.coreos.com/backend-type": "vxlan",
				"flannel.alpha.coreos.com/backend-data": `{"VNI":1,"VtepMAC":"e2:5e:e5:02:97:48"}`,
				"flannel.alpha.coreos.com/public-ip":    "192.0.2.1", "flannel.alpha.coreos.com/": "", "flannel.alpha.coreos.com": "",
				"flannel.alpha.coreos.com/unknown": "x", "other/public-ip": "192.0.2.2", "": "",
				"flannel.alpha.coreos.com/x-weft": strings.Repeat("y", 10000),
			},
		},
		Spec: corev1.NodeSpec{PodCIDR: "10.244.0.0/24", PodCIDRs: []string{"10.244.0.0/24", "fd00::/64"}, ProviderID: "p", Unschedulable: true},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeHostName, Address: "n1"}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: "True"}, {Type: corev1.NodeNetworkUnavailable, Status: "False"}},
			Images:     []corev1.ContainerImage{{Names: []string{"a", "b"}, SizeBytes: 5}},
		},
	}
}

var exposed = cmp.AllowUnexported(node{}, address{})

func marshal(t testing.TB, m interface{ Marshal() ([]byte, error) }) []byte {
	t.Helper()
	b, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecodeNodeAsKubernetesDoes(t *testing.T) {
	many := sample()
	for i := range 100 {
		many.Spec.PodCIDRs = append(many.Spec.PodCIDRs, strings.Repeat("c", i))
		many.Status.Addresses = append(many.Status.Addresses, corev1.NodeAddress{Type: "X", Address: "y"})
	}
	for name, o := range map[string]*corev1.Node{
		"an ordinary Node": sample(), "an empty one": {}, "one with too much of everything": many,
		"a bookmark": {ObjectMeta: metav1.ObjectMeta{ResourceVersion: "9", Annotations: map[string]string{initialEvents: "true"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decodeNode(marshal(t, o), testKeys)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(official(o), got, exposed); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestDecodeNodeKeepsNothingOfTheBuffer(t *testing.T) {
	b := marshal(t, sample())
	got, err := decodeNode(b, testKeys)
	if err != nil {
		t.Fatal(err)
	}
	clear(b)
	if d := cmp.Diff(official(sample()), got, exposed); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func FuzzDecodeNode(f *testing.F) {
	f.Add(marshal(f, sample()))
	f.Add(marshal(f, &corev1.Node{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := decodeNode(b, testKeys)
		var o corev1.Node
		if o.Unmarshal(b) != nil {
			return // Kubernetes' decoder checks what we skip
		}
		if err != nil {
			t.Fatalf("Kubernetes decodes it, we do not: %v", err)
		}
		_ = newRecord(n)
		_, _ = n.hints()
		again, err := decodeNode(marshal(t, &o), testKeys)
		if err != nil {
			t.Fatal(err)
		}
		if want := official(&o); !sameOwn(want, again) || want.name != again.name || want.version != again.version {
			t.Errorf("got %+v, want %+v", again, want)
		}
	})
}

// envelope wraps an object as the API server does.
func envelope(t testing.TB, kind string, raw []byte) []byte {
	t.Helper()
	u := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "v1", Kind: kind}, Raw: raw}
	return append([]byte("k8s\x00"), marshal(t, &u)...)
}

// frame returns one event of a watch.
func frame(t testing.TB, kind string, object []byte) []byte {
	t.Helper()
	b := marshal(t, &metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Raw: object}})
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

func TestFrames(t *testing.T) {
	o := marshal(t, sample())
	st := marshal(t, &metav1.Status{Code: 410, Message: "too old", Reason: "Expired"})
	var stream []byte
	stream = append(stream, frame(t, "ADDED", envelope(t, "Node", o))...)
	stream = append(stream, frame(t, "ERROR", envelope(t, "Status", st))...)
	r := frameReader{r: bytes.NewReader(stream)}
	kind, object, err := r.next()
	if err != nil || kind != "ADDED" || !bytes.Equal(object, o) {
		t.Fatalf("got %s, %d bytes, %v", kind, len(object), err)
	}
	kind, object, err = r.next()
	if err != nil || kind != "ERROR" {
		t.Fatalf("got %s, %v", kind, err)
	}
	if s, err := decodeStatus(object); err != nil || s.code != 410 || s.message != "too old" {
		t.Errorf("got %+v, %v", s, err)
	}
	for cut := 1; cut < len(stream); cut += 97 {
		r := frameReader{r: bytes.NewReader(stream[:cut])}
		for err = nil; err == nil; {
			_, _, err = r.next()
		}
	}
	for name, bad := range map[string][]byte{
		"too long":    {0xff, 0xff, 0xff, 0xff},
		"no envelope": frame(t, "ADDED", []byte(`{"kind":"Node"}`)),
		"no message":  {0, 0, 0, 2, 0xff, 0xff},
	} {
		if _, _, err := (&frameReader{r: bytes.NewReader(bad)}).next(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestDecodeList(t *testing.T) {
	l := corev1.NodeList{ListMeta: metav1.ListMeta{ResourceVersion: "77", Continue: "more"}, Items: []corev1.Node{*sample(), {}}}
	var got []*node
	version, next, err := decodeList(marshal(t, &l), testKeys, func(n *node) { got = append(got, n) })
	if err != nil || version != "77" || next != "more" || len(got) != 2 || got[0].name != "n1" {
		t.Errorf("got %s, %s, %d items, %v", version, next, len(got), err)
	}
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Spec: corev1.PodSpec{NodeName: "n7", Hostname: "h"}}
	if name, err := decodePodNode(marshal(t, &p)); err != nil || name != "n7" {
		t.Errorf("got %q, %v", name, err)
	}
}

func TestKeysName(t *testing.T) {
	for key, want := range map[string]string{
		"example.net/blue-public-ip": "public-ip", "example.net/blue-x": "", "example.net/blue-": "", "example.net/blue": "", "": "",
		"example.net/blue-kube-subnet-manager": "kube-subnet-manager", "example.net/red-public-ip": "",
	} {
		if got, ok := (keys{"example.net/blue-"}).name([]byte(key)); got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %t", key, got, ok)
		}
	}
}

func BenchmarkDecodeNode(b *testing.B) {
	o := sample()
	for range 50 {
		o.Status.Images = append(o.Status.Images, corev1.ContainerImage{Names: []string{strings.Repeat("i", 120), strings.Repeat("j", 80)}})
	}
	raw := marshal(b, o)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeNode(raw, testKeys); err != nil {
			b.Fatal(err)
		}
	}
}

func clone(m map[string]string, more map[string]string) map[string]string {
	c := maps.Clone(m)
	maps.Copy(c, more)
	return c
}
