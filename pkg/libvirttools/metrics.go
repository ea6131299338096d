package libvirttools

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Collector returns the client's metrics, to be registered by the daemon. They are
// about the connection that asks questions, which every Watch holds.
func (c *Client) Collector() prometheus.Collector {
	return &collector{
		link:      c.looks,
		connected: prometheus.NewDesc("ambipod_libvirt_connected", "1 while the connection to libvirtd is up.", nil, nil),
		made:      prometheus.NewDesc("ambipod_libvirt_connections_total", "Connections to libvirtd that were made; all but the first are reconnects.", nil, nil),
	}
}

type collector struct {
	link            *link
	connected, made *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	to <- c.connected
	to <- c.made
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	c.link.mu.Lock()
	up, made := c.link.current != nil && !c.link.current.isLost(), c.link.made
	c.link.mu.Unlock()
	value := 0.0
	if up {
		value = 1
	}
	to <- prometheus.MustNewConstMetric(c.connected, prometheus.GaugeValue, value)
	to <- prometheus.MustNewConstMetric(c.made, prometheus.CounterValue, float64(made))
}
