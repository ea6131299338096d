package network

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Collector returns the manager's metrics, to be registered by the daemon.
func (m *Manager) Collector() prometheus.Collector {
	return &collector{
		manager:  m,
		servers:  prometheus.NewDesc("ambipod_dhcp_servers", "DHCP servers of sandboxes.", nil, nil),
		messages: prometheus.NewDesc("ambipod_dhcp_messages_total", "DHCP messages of guests by what became of them.", []string{"outcome"}, nil),
	}
}

type collector struct {
	manager           *Manager
	servers, messages *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	to <- c.servers
	to <- c.messages
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	c.manager.mu.Lock()
	servers := 0
	for _, ofSandbox := range c.manager.servers {
		servers += len(ofSandbox)
	}
	c.manager.mu.Unlock()
	to <- prometheus.MustNewConstMetric(c.servers, prometheus.GaugeValue, float64(servers))
	for outcome, count := range map[string]int64{
		"answered": c.manager.dhcp.Answered.Load(),
		"ignored":  c.manager.dhcp.Ignored.Load(),
		"failed":   c.manager.dhcp.Failed.Load(),
	} {
		to <- prometheus.MustNewConstMetric(c.messages, prometheus.CounterValue, float64(count), outcome)
	}
}
