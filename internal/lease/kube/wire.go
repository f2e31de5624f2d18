package kube

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of k8s.io/api and k8s.io/apimachinery, from their generated.proto. They are part of the
// Kubernetes API and never change.
const (
	unknownRaw = 2 // runtime.Unknown

	eventType, eventObject = 1, 2 // meta/v1.WatchEvent
	extensionRaw           = 1    // runtime.RawExtension

	statusMessage, statusCode = 3, 6 // meta/v1.Status

	listMeta, listItems           = 1, 2 // v1.NodeList
	listMetaVersion, listContinue = 2, 3 // meta/v1.ListMeta

	objectMeta, objectSpec, objectStatus = 1, 2, 3 // v1.Node, v1.Pod

	metaName, metaUID, metaVersion = 1, 5, 6 // meta/v1.ObjectMeta
	metaCreated, metaAnnotations   = 8, 12
	timeSeconds                    = 1 // meta/v1.Time
	mapKey, mapValue               = 1, 2

	specPodCIDR, specPodCIDRs         = 1, 7 // v1.NodeSpec
	statusConditions, statusAddresses = 4, 5 // v1.NodeStatus
	conditionType, conditionStatus    = 1, 2 // v1.NodeCondition
	addressType, addressText          = 1, 2 // v1.NodeAddress

	podSpecNode = 10 // v1.PodSpec
)

// A field is one field of a message: its number, and its bytes or its number, as its wire type has it.
type field struct {
	num    protowire.Number
	bytes  []byte
	varint uint64
}

// eachField calls f for every length-delimited and varint field of the message b, and skips others. A field
// that is there several times counts as protobuf says: the last one wins, or it is a list.
func eachField(b []byte, f func(field) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		v := field{num: num}
		switch typ {
		case protowire.BytesType:
			v.bytes, n = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			v.varint, n = protowire.ConsumeVarint(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if typ == protowire.BytesType || typ == protowire.VarintType {
			if err := f(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// magic begins every object in protobuf; a runtime.Unknown with the object inside follows.
var magic = [4]byte{'k', '8', 's', 0}

// unwrap returns the object in an envelope.
func unwrap(b []byte) ([]byte, error) {
	if len(b) < len(magic) || [4]byte(b) != magic {
		return nil, fmt.Errorf("not Kubernetes protobuf, but %q", printable(b, 40))
	}
	var raw []byte
	err := eachField(b[len(magic):], func(f field) error {
		if f.num == unknownRaw {
			raw = f.bytes
		}
		return nil
	})
	return raw, err
}

// A status is what we need of a Status object.
type status struct {
	code    int
	message string
}

func decodeStatus(b []byte) (status, error) {
	var st status
	err := eachField(b, func(f field) error {
		switch f.num {
		case statusMessage:
			st.message = printable(f.bytes, 500)
		case statusCode:
			st.code = int(int32(f.varint))
		}
		return nil
	})
	return st, err
}

// A node is what we need of a Node object.
type node struct {
	name, uid, version string
	created            int64 // Unix seconds
	podCIDR            string
	podCIDRs           []string
	addresses          []address         // of the status, as kubelet and cloud provider say
	annotations        map[string]string // ours, without the prefix
	network            string            // status of the condition NetworkUnavailable; empty: absent
	initialEnd         bool              // of a bookmark: the objects that were there at the start have all come
}

type address struct{ kind, text string }

// What a Node may have more of concerns nobody here, and costs us no memory.
const (
	maxAddresses = 32
	maxCIDRs     = 8
)

// initialEvents is the annotation of the bookmark that ends a streaming list.
const initialEvents = "k8s.io/initial-events-end"

// decodeNode reads a Node, copying only what is kept: b is used again.
func decodeNode(b []byte, k keys) (*node, error) {
	n := &node{}
	err := eachField(b, func(f field) error {
		switch f.num {
		case objectMeta:
			return n.decodeMeta(f.bytes, k)
		case objectSpec:
			return n.decodeSpec(f.bytes)
		case objectStatus:
			return n.decodeStatus(f.bytes)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("decode Node %s: %w", n.name, err)
	}
	return n, nil
}

func (n *node) decodeMeta(b []byte, k keys) error {
	return eachField(b, func(f field) error {
		switch f.num {
		case metaName:
			n.name = string(f.bytes)
		case metaUID:
			n.uid = string(f.bytes)
		case metaVersion:
			n.version = string(f.bytes)
		case metaCreated:
			return eachField(f.bytes, func(f field) error {
				if f.num == timeSeconds {
					n.created = int64(f.varint)
				}
				return nil
			})
		case metaAnnotations:
			return n.decodeAnnotation(f.bytes, k)
		}
		return nil
	})
}

func (n *node) decodeAnnotation(b []byte, k keys) error {
	var key, value []byte
	err := eachField(b, func(f field) error {
		switch f.num {
		case mapKey:
			key = f.bytes
		case mapValue:
			value = f.bytes
		}
		return nil
	})
	if err != nil {
		return err
	}
	if string(key) == initialEvents {
		n.initialEnd = string(value) == "true"
	} else if name, ours := k.name(key); ours {
		if n.annotations == nil {
			n.annotations = make(map[string]string, 6)
		}
		n.annotations[name] = string(value[:min(len(value), maxAnnotation+1)])
	}
	return nil
}

func (n *node) decodeSpec(b []byte) error {
	return eachField(b, func(f field) error {
		switch f.num {
		case specPodCIDR:
			n.podCIDR = string(f.bytes)
		case specPodCIDRs:
			if len(n.podCIDRs) < maxCIDRs {
				n.podCIDRs = append(n.podCIDRs, string(f.bytes))
			}
		}
		return nil
	})
}

func (n *node) decodeStatus(b []byte) error {
	return eachField(b, func(f field) error {
		switch f.num {
		case statusAddresses:
			kind, text, err := pair(f.bytes, addressType, addressText)
			if len(n.addresses) < maxAddresses {
				n.addresses = append(n.addresses, address{string(kind), string(text)})
			}
			return err
		case statusConditions:
			kind, st, err := pair(f.bytes, conditionType, conditionStatus)
			if string(kind) == networkUnavailable {
				n.network = string(st)
			}
			return err
		}
		return nil
	})
}

// pair returns two fields of a message.
func pair(b []byte, first, second protowire.Number) (one, two []byte, err error) {
	err = eachField(b, func(f field) error {
		switch f.num {
		case first:
			one = f.bytes
		case second:
			two = f.bytes
		}
		return nil
	})
	return one, two, err
}

// decodePodNode reads the name of the node from a Pod.
func decodePodNode(b []byte) (string, error) {
	name := ""
	err := eachField(b, func(f field) error {
		if f.num != objectSpec {
			return nil
		}
		return eachField(f.bytes, func(f field) error {
			if f.num == podSpecNode {
				name = string(f.bytes)
			}
			return nil
		})
	})
	return name, err
}

// decodeList reads one page of a NodeList: the version of the whole list, and where the next page begins.
func decodeList(b []byte, k keys, item func(*node)) (version, next string, err error) {
	err = eachField(b, func(f field) error {
		switch f.num {
		case listMeta:
			return eachField(f.bytes, func(f field) error {
				switch f.num {
				case listMetaVersion:
					version = string(f.bytes)
				case listContinue:
					next = string(f.bytes)
				}
				return nil
			})
		case listItems:
			n, err := decodeNode(f.bytes, k)
			if err == nil {
				item(n)
			}
			return err
		}
		return nil
	})
	return version, next, err
}

// A frameReader reads the events of a watch: each a length of 4 bytes and a WatchEvent.
type frameReader struct {
	r   io.Reader
	buf []byte
}

// next returns the type of the next event and its object, which is valid until the next call.
func (r *frameReader) next() (kind string, object []byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return "", nil, err
	}
	size := int(binary.BigEndian.Uint32(head[:]))
	if size > maxObject {
		return "", nil, fmt.Errorf("an event of %d bytes is too long", size)
	}
	r.buf = slices.Grow(r.buf[:0], size)[:size]
	if _, err := io.ReadFull(r.r, r.buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return "", nil, err
	}
	var envelope []byte
	err = eachField(r.buf, func(f field) error {
		switch f.num {
		case eventType:
			kind = string(f.bytes)
		case eventObject:
			return eachField(f.bytes, func(f field) error {
				if f.num == extensionRaw {
					envelope = f.bytes
				}
				return nil
			})
		}
		return nil
	})
	if err != nil {
		return "", nil, fmt.Errorf("decode event: %w", err)
	}
	object, err = unwrap(envelope)
	return kind, object, err
}
