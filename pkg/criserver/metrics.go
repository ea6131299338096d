package criserver

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/metadata"
)

// CallMetrics count the calls of a gRPC server. It is a prometheus.Collector.
type CallMetrics struct {
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	running *prometheus.GaugeVec
}

// NewCallMetrics returns CallMetrics without calls.
func NewCallMetrics() *CallMetrics {
	return &CallMetrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambipod_calls_total", Help: "Answered CRI calls, by gRPC code.",
		}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ambipod_call_seconds", Help: "Time until the answer to a CRI call; calls that stream are left out.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120},
		}, []string{"method"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ambipod_calls_in_flight", Help: "CRI calls that are not answered yet.",
		}, []string{"method"}),
	}
}

// Describe implements prometheus.Collector.
func (m *CallMetrics) Describe(to chan<- *prometheus.Desc) {
	m.calls.Describe(to)
	m.seconds.Describe(to)
	m.running.Describe(to)
}

// Collect implements prometheus.Collector.
func (m *CallMetrics) Collect(to chan<- prometheus.Metric) {
	m.calls.Collect(to)
	m.seconds.Collect(to)
	m.running.Collect(to)
}

// Interceptors are what the server needs to count; they go beside the function
// Interceptors. Only methods that the server has pass them, so callers cannot make up
// labels.
func (m *CallMetrics) Interceptors() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			method, started := methodName(info.FullMethod), time.Now()
			m.running.WithLabelValues(method).Inc()
			resp, err := handler(ctx, req)
			m.seconds.WithLabelValues(method).Observe(time.Since(started).Seconds())
			m.done(method, err)
			return resp, err
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			method := methodName(info.FullMethod)
			m.running.WithLabelValues(method).Inc()
			err := handler(srv, stream)
			m.done(method, err)
			return err
		}),
	}
}

func (m *CallMetrics) done(method string, err error) {
	m.running.WithLabelValues(method).Dec()
	m.calls.WithLabelValues(method, status.Code(toStatus(err)).String()).Inc()
}

func methodName(full string) string { return full[strings.LastIndexByte(full, '/')+1:] }

// Outcomes of a recovery in the counter of recoveries.
const (
	recoveredWell = "ok"
	recoveredNot  = "failed"
)

// counters count since the start of the process.
type counters struct {
	recovered *prometheus.CounterVec
	orphans   prometheus.Counter
	losses    prometheus.Counter
	guests    *prometheus.CounterVec
}

func newCounters() *counters {
	c := &counters{
		recovered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambipod_recovered_total", Help: "Sandboxes and VMs that were brought to order at the start, by outcome.",
		}, []string{"object", "outcome"}),
		orphans: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambipod_orphaned_domains_removed_total", Help: "Domains with our mark but without a record that were removed.",
		}),
		guests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambipod_guest_events_total", Help: "What guests did by themselves: rebooted, or crashed by a kernel panic.",
		}, []string{"event"}),
		losses: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambipod_console_log_gaps_total", Help: "Times that console output was rotated away before it could be copied to a pod's log.",
		}),
	}
	for _, kind := range []libvirttools.Kind{libvirttools.KindRebooted, libvirttools.KindCrashed} {
		c.guests.WithLabelValues(string(kind))
	}
	for _, object := range []string{"sandbox", "vm"} {
		c.recovered.WithLabelValues(object, recoveredWell)
		c.recovered.WithLabelValues(object, recoveredNot)
	}
	return c
}

func (c *counters) recover(object string, err error) {
	outcome := recoveredWell
	if err != nil {
		outcome = recoveredNot
	}
	c.recovered.WithLabelValues(object, outcome).Inc()
}

// Collector returns the server's metrics, to be registered by the daemon.
func (s *Server) Collector() prometheus.Collector {
	return &collector{
		server:    s,
		vms:       prometheus.NewDesc("ambipod_vms", "VMs by state.", []string{"state"}, nil),
		sandboxes: prometheus.NewDesc("ambipod_sandboxes", "Sandboxes by state.", []string{"state"}, nil),
		sessions:  prometheus.NewDesc("ambipod_exec_sessions", "VMs in which the helper for commands runs, or is being started.", nil, nil),
		commands:  prometheus.NewDesc("ambipod_exec_commands", "Commands that run in VMs.", nil, nil),
		executed:  prometheus.NewDesc("ambipod_exec_commands_total", "Commands that were begun in VMs.", nil, nil),
		attached:  prometheus.NewDesc("ambipod_console_clients", "Clients that are attached to consoles.", nil, nil),
		dropped:   prometheus.NewDesc("ambipod_console_dropped_bytes_total", "Console output that attached clients were too slow for.", nil, nil),
	}
}

type collector struct {
	server                                                          *Server
	vms, sandboxes, sessions, commands, executed, attached, dropped *prometheus.Desc
}

func (c *collector) own() []*prometheus.Desc {
	return []*prometheus.Desc{c.vms, c.sandboxes, c.sessions, c.commands, c.executed, c.attached, c.dropped}
}

func (c *collector) counted() []prometheus.Collector {
	counts := c.server.counters
	return []prometheus.Collector{counts.recovered, counts.orphans, counts.losses, counts.guests}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range c.own() {
		to <- d
	}
	for _, counted := range c.counted() {
		counted.Describe(to)
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	c.collectStates(to)
	commands := c.server.access.commands.Counts()
	consoles := c.server.access.consoles.Counts()
	gauge := func(d *prometheus.Desc, value int) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value))
	}
	gauge(c.sessions, commands.Sessions)
	gauge(c.commands, commands.Running)
	gauge(c.attached, consoles.Clients)
	to <- prometheus.MustNewConstMetric(c.executed, prometheus.CounterValue, float64(commands.Begun))
	to <- prometheus.MustNewConstMetric(c.dropped, prometheus.CounterValue, float64(consoles.Dropped))
	for _, counted := range c.counted() {
		counted.Collect(to)
	}
}

// collectStates counts the records. Records that cannot be read spoil these figures
// alone.
func (c *collector) collectStates(to chan<- prometheus.Metric) {
	vms := map[string]int{"created": 0, "running": 0, "exited": 0}
	containers, err := c.server.Records.Containers.List()
	for _, record := range containers {
		vms[vmState(record)]++
	}
	report(to, c.vms, vms, err)

	boxes := map[string]int{"creating": 0, "ready": 0, "stopped": 0}
	sandboxes, err := c.server.Records.Sandboxes.List()
	for _, record := range sandboxes {
		boxes[string(record.State)]++
	}
	report(to, c.sandboxes, boxes, err)
}

func vmState(record metadata.Container) string {
	switch {
	case record.Exited():
		return "exited"
	case record.Running():
		return "running"
	default:
		return "created"
	}
}

func report(to chan<- prometheus.Metric, d *prometheus.Desc, states map[string]int, err error) {
	if err != nil {
		to <- prometheus.NewInvalidMetric(d, err)
		return
	}
	for state, count := range states {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(count), state)
	}
}
