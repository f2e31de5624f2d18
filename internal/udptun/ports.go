package udptun

// Ports returns the port of each tunnel that runs, by the name of its device.
func (t *Tunnel) Ports() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := make(map[string]int, len(t.engines))
	for dev, e := range t.engines {
		m[dev] = e.want.Port
	}
	return m
}
