package lease

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/weftnet/weft/internal/family"
)

// Further is what a node says of itself beside what the original's nodes say: a member of the lease value
// in etcd, an annotation in Kubernetes, both named FurtherName.
//
//	{"serial":7,"receive":[{"key":"vxlan/1/8472","type":"vxlan"},{"key":"host-gw","type":"host-gw"}],"send":["host-gw","vxlan/1/8472"]}
//
// The first receiver is the one in the original's form; its data stands there.
type Further struct {
	Serial  uint64            `json:"serial,omitempty"`
	Receive []FurtherReceiver `json:"receive"`
	Send    []Key             `json:"send"`
}

// A FurtherReceiver is one entry of Further.
type FurtherReceiver struct {
	Key    Key             `json:"key"`
	Type   string          `json:"type,omitempty"`
	Data   json.RawMessage `json:"data,omitempty"`
	DataV6 json.RawMessage `json:"dataV6,omitempty"`
}

// FurtherName is where Further stands.
const FurtherName = "x-weft"

// Bounds on what a peer may claim.
const (
	maxKeys = 16
	maxKey  = 64
)

// Further returns what l says beside the original's form, nil if nothing.
func (l Lease) Further() *Further {
	if l.Original() {
		return nil
	}
	f := &Further{Serial: l.Serial, Send: l.Send}
	for i, r := range l.Receive {
		w := FurtherReceiver{Key: r.Key, Type: r.Type}
		if i > 0 {
			w.Data, w.DataV6 = json.RawMessage(r.Data.V4), json.RawMessage(r.Data.V6)
		}
		f.Receive = append(f.Receive, w)
	}
	return f
}

// AddFurther adds to l, whose first receiver is that of the original's form, what f says. Where the two do not
// fit, the original has run on the node since, and l stays as it is. An error says what is wrong with f;
// l is as it was then.
func (l *Lease) AddFurther(f *Further) error {
	if f == nil || len(l.Receive) == 0 {
		return nil
	}
	if err := f.check(); err != nil {
		return fmt.Errorf("%s: %w", FurtherName, err)
	}
	if f.Receive[0].Type != l.Receive[0].Type {
		return nil
	}
	l.Receive[0].Key, l.Send, l.Serial = f.Receive[0].Key, f.Send, f.Serial
	for _, r := range f.Receive[1:] {
		l.Receive = append(l.Receive, Receiver{Key: r.Key, Type: r.Type, Data: family.Pair[string]{V4: text(r.Data), V6: text(r.DataV6)}})
	}
	return nil
}

// text returns raw as it stands, and nothing for null.
func text(raw json.RawMessage) string {
	if string(raw) == "null" {
		return ""
	}
	return string(raw)
}

func (f *Further) check() error {
	if len(f.Receive) == 0 || len(f.Send) == 0 {
		return errors.New("receive and send must not be empty")
	}
	if len(f.Receive) > maxKeys || len(f.Send) > maxKeys {
		return fmt.Errorf("more than %d keys", maxKeys)
	}
	keys := append([]Key(nil), f.Send...)
	for _, r := range f.Receive {
		keys = append(keys, r.Key)
	}
	for _, k := range keys {
		if len(k) == 0 || len(k) > maxKey {
			return fmt.Errorf("a key has 1 to %d bytes, not %d", maxKey, len(k))
		}
	}
	return nil
}
