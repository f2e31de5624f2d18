package kube

import "testing"

// TestLateAnswer: the answer to a patch is slower than what the watch tells of the Node afterwards.
func TestLateAnswer(t *testing.T) {
	s := testStore(t, "http://127.0.0.1:1")
	f := s.own.feed(s, func() {})
	f.begin()
	f.put(&node{name: "n1", uid: "a", version: "5"})
	f.listed()
	f.synced("6")
	f.drop("n1")
	f.synced("9")
	s.own.see(&node{name: "n1", uid: "a", version: "8"})
	if n, known, _ := s.own.now(); n != nil || !known {
		t.Errorf("a Node that is deleted is there again: %+v", n)
	}
	f.put(&node{name: "n1", uid: "b", version: "12"})
	s.own.see(&node{name: "n1", uid: "a", version: "8"})
	if n, _, _ := s.own.now(); n.uid != "b" {
		t.Errorf("a Node that was made anew is the former one: %+v", n)
	}
	f.synced("12")
	s.own.see(&node{name: "n1", uid: "b", version: "13", podCIDR: "10.244.1.0/24"})
	f.put(&node{name: "n1", uid: "b", version: "12"})
	if n, _, _ := s.own.now(); n.version != "13" {
		t.Errorf("an answer is undone by an earlier event: %+v", n)
	}
	f.begin() // etcd was set back
	f.put(&node{name: "n1", uid: "b", version: "3"})
	f.listed()
	f.synced("4")
	f.put(&node{name: "n1", uid: "b", version: "5", podCIDR: "10.244.2.0/24"})
	if n, _, _ := s.own.now(); n.podCIDR != "10.244.2.0/24" {
		t.Errorf("after a listing that goes back: %+v", n)
	}
}
