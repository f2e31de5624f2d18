package lab

import (
	"net/netip"
	"testing"
	"time"
)

func TestTallyCountsWhatDidNotArrive(t *testing.T) {
	began := time.Unix(1000, 0)
	m := &Mesh{}
	for i, name := range []string{"a", "b"} {
		addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		m.ends = append(m.ends, &meshEnd{mesh: m, pod: &Pod{Name: name}, addr: addr, index: i, heard: map[int][]arrival{}})
	}
	a, b := m.ends[0], m.ends[1]
	a.peers = []*meshEnd{b}
	for i := range 10 {
		a.sentAt = append(a.sentAt, began.Add(time.Duration(i)*time.Second))
	}
	a.failed = map[string]int{"a to b: no": 1}
	for _, number := range []int{0, 1, 1, 2, 5, 6, 7, 8} { // 3, 4 and 9 are missing, 1 came twice
		b.hear(0, number)
	}
	tally := m.Tally(began.Add(time.Second), began.Add(time.Minute)) // without the first
	want := []Gap{
		{From: "a", To: "b", Addr: b.addr, First: 3, Last: 4, Begin: began.Add(3 * time.Second), End: began.Add(4 * time.Second)},
		{From: "a", To: "b", Addr: b.addr, First: 9, Last: 9, Begin: began.Add(9 * time.Second), End: began.Add(9 * time.Second)},
	}
	if tally.Streams != 1 || tally.Sent != 9 || tally.Lost != 3 || tally.Doubled != 1 || len(tally.Errors) != 1 {
		t.Errorf("%+v", tally)
	}
	if len(tally.Gaps) != len(want) || tally.Gaps[0] != want[0] || tally.Gaps[1] != want[1] {
		t.Errorf("gaps %v, want %v", tally.Gaps, want)
	}
	if tally.Longest() != time.Second {
		t.Errorf("longest gap %v, want 1s", tally.Longest())
	}
	if rate := tally.Rate(9 * time.Second); rate != 1 {
		t.Errorf("%v per second, want 1", rate)
	}
}
