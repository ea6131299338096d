package network

import (
	"fmt"

	"github.com/ambipod/ambipod/pkg/network/netns"
)

// Counters are an interface's traffic since it was made, as the pod sees it:
// Rx is towards the pod. Dropped packets include those that tc filters refused.
type Counters struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Stats reads the counters of the sandbox's interfaces inside its namespace, in
// the order of Result.Interfaces.
func (m *Manager) Stats(sandboxID string) ([]Counters, error) {
	if err := checkID(sandboxID); err != nil {
		return nil, err
	}
	h, err := netns.Netlink(m.netnsPath(sandboxID))
	if err != nil {
		return nil, fmt.Errorf("network statistics of sandbox %s: %w", sandboxID, err)
	}
	defer h.Close()
	links, err := podLinks(h)
	if err != nil {
		return nil, fmt.Errorf("network statistics of sandbox %s: %w", sandboxID, err)
	}
	out := make([]Counters, 0, len(links))
	for _, l := range links {
		a := l.Attrs()
		c := Counters{Name: a.Name}
		if s := a.Statistics; s != nil {
			c.RxBytes, c.RxPackets, c.RxErrors, c.RxDropped = s.RxBytes, s.RxPackets, s.RxErrors, s.RxDropped
			c.TxBytes, c.TxPackets, c.TxErrors, c.TxDropped = s.TxBytes, s.TxPackets, s.TxErrors, s.TxDropped
		}
		out = append(out, c)
	}
	return out, nil
}
