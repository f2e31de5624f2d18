package etcd

import (
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/storehealth"
)

// entry reads a lease from its key and value.
func (k keys) entry(kv *mvccpb.KeyValue) (lease.Lease, error) {
	subnets, ok := k.parse(string(kv.Key))
	if !ok {
		return lease.Lease{}, fmt.Errorf("the key names no lease")
	}
	l, err := decode(subnets, kv.Value)
	if err != nil {
		return lease.Lease{}, fmt.Errorf("the value is no lease: %w", err)
	}
	return l, nil
}

// maxTold is how many bad entries are logged per minute; whoever writes more need not fill the disk too.
const maxTold = 20

// badKeys counts entries that do not parse, and logs each once per revision. It has no lock of its own.
type badKeys struct {
	store  *Store
	seen   map[string]int64 // key to revision
	minute time.Time
	told   int
}

func newBadKeys(s *Store) *badKeys { return &badKeys{store: s, seen: map[string]int64{}} }

func (b *badKeys) add(kv *mvccpb.KeyValue, err error) {
	key := string(kv.Key)
	known := b.seen[key] == kv.ModRevision
	b.seen[key] = kv.ModRevision
	b.count()
	if known {
		return
	}
	if now := time.Now(); now.Sub(b.minute) > time.Minute {
		b.minute, b.told = now, 0
	}
	switch b.told++; {
	case b.told <= maxTold:
		b.store.log.Warn("entry left out, it is no lease; all others count", "key", key, "revision", kv.ModRevision, "err", err)
	case b.told == maxTold+1:
		b.store.log.Warn("many entries are no leases, logging no more of them for a minute", "bad", len(b.seen))
	}
}

func (b *badKeys) remove(key string) {
	if _, ok := b.seen[key]; ok {
		delete(b.seen, key)
		b.count()
	}
}

// keep forgets the bad keys of r that a complete listing does not have.
func (b *badKeys) keep(r keyRange, listed map[string]bool) {
	for key := range b.seen {
		if !listed[key] && strings.Compare(key, r.first) >= 0 && key < r.end {
			b.remove(key)
		}
	}
}

func (b *badKeys) count() {
	n := len(b.seen)
	b.store.health.Count(func(t *storehealth.Stats) { t.BadKeys = n })
}
