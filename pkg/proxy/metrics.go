package proxy

import (
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// metrics are what the proxy counts, in a registry of its own.
type metrics struct {
	registry *prometheus.Registry
	calls    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	running  *prometheus.GaugeVec
	age      *prometheus.GaugeVec
	served   *prometheus.CounterVec
	up       *prometheus.GaugeVec
	mismatch *prometheus.GaugeVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "criproxy_calls_total", Help: "Calls sent to a runtime, by gRPC code.",
		}, []string{"runtime", "method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "criproxy_call_seconds", Help: "Time until a runtime's answer.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120},
		}, []string{"runtime", "method"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "criproxy_calls_in_flight", Help: "Calls that a runtime has not answered yet.",
		}, []string{"runtime", "method"}),
		age: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "criproxy_stale_list_age_seconds", Help: "Age of the remembered list that stood in for a silent runtime last; 0 while it answers.",
		}, []string{"runtime", "method"}),
		served: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "criproxy_stale_lists_total", Help: "Answers to which a remembered list contributed because a runtime was silent.",
		}, []string{"runtime", "method"}),
		up: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "criproxy_runtime_connected", Help: "1 while the connection to a runtime is up.",
		}, []string{"runtime"}),
		mismatch: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "criproxy_cgroup_driver_mismatch", Help: "1 while a runtime reports another cgroup driver than the default runtime.",
		}, []string{"runtime"}),
	}
	m.registry.MustRegister(m.calls, m.seconds, m.running, m.age, m.served, m.up, m.mismatch)
	return m
}

// of makes the metrics of one runtime.
func (m *metrics) of(runtime string) *meters {
	return &meters{all: m, runtime: runtime, methods: map[string]*meter{}}
}

// forget drops everything about a runtime that is no longer configured.
func (m *metrics) forget(runtime string) {
	for _, vector := range []interface{ DeletePartialMatch(prometheus.Labels) int }{
		m.calls, m.seconds, m.running, m.age, m.served, m.up, m.mismatch,
	} {
		vector.DeletePartialMatch(prometheus.Labels{"runtime": runtime})
	}
}

// meters are the metrics of one backend.
type meters struct {
	all     *metrics
	runtime string

	mu      sync.RWMutex
	methods map[string]*meter // guarded by mu; by full method name
}

// meter are the metrics of one method of one backend, looked up once.
type meter struct {
	method  string
	seconds prometheus.Observer
	running prometheus.Gauge
	ok      prometheus.Counter
}

func (m *meters) of(full string) *meter {
	m.mu.RLock()
	found := m.methods[full]
	m.mu.RUnlock()
	if found != nil {
		return found
	}
	name := methodLabel(full)
	made := &meter{
		method:  name,
		seconds: m.all.seconds.WithLabelValues(m.runtime, name),
		running: m.all.running.WithLabelValues(m.runtime, name),
		ok:      m.all.calls.WithLabelValues(m.runtime, name, codes.OK.String()),
	}
	if name == otherMethods {
		return made // callers make up names; do not keep them
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.methods[full] = made
	return made
}

// otherMethods is the label of methods outside the CRI that the proxy knows.
const otherMethods = "other"

func methodLabel(full string) string {
	service, method, _ := strings.Cut(strings.TrimPrefix(full, "/"), "/")
	file := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto
	for i := range file.Services().Len() {
		s := file.Services().Get(i)
		if string(s.FullName()) == service && s.Methods().ByName(protoreflect.Name(method)) != nil {
			return method
		}
	}
	return otherMethods
}

// running is a call whose answer is awaited.
type running struct {
	meters  *meters
	meter   *meter
	started time.Time
}

func (m *meters) begin(full string) running {
	r := running{meters: m, meter: m.of(full), started: time.Now()}
	r.meter.running.Inc()
	return r
}

func (r running) done(err error) {
	r.meter.running.Dec()
	r.meter.seconds.Observe(time.Since(r.started).Seconds())
	if err == nil {
		r.meter.ok.Inc()
		return
	}
	r.meters.all.calls.WithLabelValues(r.meters.runtime, r.meter.method, status.Code(err).String()).Inc()
}

// stale counts an answer from memory; age is that of what was remembered.
func (m *meters) stale(method string, age time.Duration) {
	m.all.served.WithLabelValues(m.runtime, method).Inc()
	m.all.age.WithLabelValues(m.runtime, method).Set(age.Seconds())
}

// fresh ends the staleness of a list.
func (m *meters) fresh(method string) { m.all.age.WithLabelValues(m.runtime, method).Set(0) }

func (m *meters) connected(up bool) { m.all.up.WithLabelValues(m.runtime).Set(number(up)) }

func (m *meters) mismatched(wrong bool) { m.all.mismatch.WithLabelValues(m.runtime).Set(number(wrong)) }

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
