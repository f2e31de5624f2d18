package leasetest_test

import (
	"testing"

	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/leasetest"
)

type memory struct{ *leasetest.Memory }

func (m memory) Open(*testing.T) lease.Store               { return m.Node() }
func (m memory) SetConfig(_ *testing.T, raw string)        { m.Memory.SetConfig([]byte(raw)) }
func (m memory) DeleteConfig(*testing.T)                   { m.Memory.SetConfig(nil) }
func (m memory) Delete(_ *testing.T, l lease.Lease)        { m.Expire(l.Subnet) }
func (m memory) Reserved(_ *testing.T, l lease.Lease) bool { return m.Memory.Reserved(l.Subnet) }
func (m memory) Corrupt(*testing.T)                        {} // entries are values here

func (m memory) Put(_ *testing.T, l lease.Lease, reserved bool) {
	if reserved {
		m.Reserve(l)
	} else {
		m.Memory.Put(l)
	}
}

func (m memory) Blackout(_ *testing.T, during func()) {
	m.SetDown(true)
	during()
	m.SetDown(false)
}

func (m memory) SetBack(_ *testing.T, lost, after func()) {
	restore := m.Backup()
	lost()
	m.SetDown(true)
	restore()
	after()
	m.SetDown(false)
}

func TestMemory(t *testing.T) {
	leasetest.Run(t, func(*testing.T) leasetest.Backing { return memory{leasetest.NewMemory()} })
}
