package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/uplink"
)

// own is the own Node as it stands.
type own struct {
	mu      sync.Mutex // guards what follows
	name    string     // empty: not known yet
	known   bool       // the API server has told
	node    *node      // nil: there is none
	version string     // up to where the watch has told
	trouble error      // why it is not known
	changed chan struct{}
}

func newOwn(name string) *own {
	return &own{name: name, changed: make(chan struct{})}
}

// update changes what is known and tells whoever waits.
func (o *own) update(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
	o.tell()
}

func (o *own) tell() {
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *own) setName(name string) { o.update(func() { o.name = name }) }

func (o *own) setTrouble(err error) { o.update(func() { o.trouble = err }) }

// now returns the own Node, nil if there is none, and a channel that is closed when that changes. It is not
// known before the API server has told.
func (o *own) now() (n *node, known bool, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.node, o.known, o.changed
}

// wait returns the own Node once it is known.
func (o *own) wait(ctx context.Context) (*node, <-chan struct{}, error) {
	for {
		n, known, changed := o.now()
		if known {
			return n, changed, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// see takes a Node as it stands, unless a later one was seen: answers to patches and events of the watch may
// overtake each other.
func (o *own) see(n *node) (news bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n != nil && (older(n.version, o.version) || o.node != nil && older(n.version, o.node.version)) {
		return false
	}
	return o.take(n)
}

// seeListed takes a Node as a listing has it, whatever was seen before: etcd may have been set back to a backup.
func (o *own) seeListed(n *node) (news bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.take(n)
}

func (o *own) take(n *node) (news bool) {
	news = !o.known || !sameOwn(o.node, n)
	o.node, o.known, o.trouble = n, true, nil
	if news {
		o.tell()
	}
	return news
}

// sameOwn says whether a and b agree in all that matters of the own Node.
func sameOwn(a, b *node) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.uid == b.uid && a.network == b.network && a.podCIDR == b.podCIDR && slices.Equal(a.podCIDRs, b.podCIDRs) &&
		slices.Equal(a.addresses, b.addresses) && maps.Equal(a.annotations, b.annotations)
}

// feed follows the own Node.
func (o *own) feed(s *Store, changed func()) feed {
	var listed *node
	listing := false
	tell := func(news bool) {
		if news {
			changed()
		}
	}
	return feed{
		begin: func() { listing, listed = true, nil },
		put: func(n *node) {
			if listing {
				listed = n
				return
			}
			tell(o.see(n))
		},
		drop: func(string) {
			if listing {
				listed = nil
				return
			}
			tell(o.see(nil))
		},
		listed: func() {
			listing = false
			tell(o.seeListed(listed))
		},
		synced: func(version string) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.version = version
		},
		stopped: func(err error) {
			s.health.Count(func(t *Stats) { t.WatchRestarts++ })
			if _, known, _ := o.now(); !known {
				o.setTrouble(fmt.Errorf("own Node: %w", err))
				changed()
			}
		},
	}
}

// Hints returns what the own Node says about the choice of the uplink. The error is uplink.ErrNoHints while the
// API server has not told, or says which annotation makes no sense.
func (s *Store) Hints() (uplink.Hints, error) {
	s.own.mu.Lock()
	n, known, trouble, name := s.own.node, s.own.known, s.own.trouble, s.own.name
	s.own.mu.Unlock()
	switch {
	case !known && trouble != nil:
		return uplink.Hints{}, fmt.Errorf("%w: %w", uplink.ErrNoHints, trouble)
	case !known:
		return uplink.Hints{}, uplink.ErrNoHints
	case n == nil:
		return uplink.Hints{}, fmt.Errorf("there is no Node %s: the kubelet registers it, or NODE_NAME is wrong", name)
	}
	return n.hints()
}

func (n *node) hints() (uplink.Hints, error) {
	var h uplink.Hints
	var errs []error
	for _, f := range family.All() {
		for _, x := range []struct {
			at   *netip.Addr
			name string
		}{{h.NodePublic.Ref(f), nodePublic.Of(f)}, {h.Overwrite.Ref(f), overwrite.Of(f)}} {
			var err error
			if *x.at, err = n.address(x.name, f); err != nil {
				errs = append(errs, err)
			}
		}
	}
	for _, a := range n.addresses {
		addr, err := netip.ParseAddr(a.text)
		if err != nil || a.kind != internalIP {
			continue
		}
		if at := h.NodeIP.Ref(family.Of(addr.Unmap())); !at.IsValid() {
			*at = addr.Unmap()
		}
	}
	return h, errors.Join(errs...)
}
