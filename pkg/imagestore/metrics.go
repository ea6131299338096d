package imagestore

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Results of a pull in the counter of pulls.
const (
	resultPulled    = "pulled"
	resultUnchanged = "unchanged"
	resultFailed    = "failed"
)

// counters count since the store was opened. Pulls that share a download are one.
type counters struct {
	pulls   *prometheus.CounterVec
	fetched prometheus.Counter
}

func newCounters() *counters {
	c := &counters{
		pulls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambipod_image_pulls_total", Help: "Image downloads by result; pulls that shared one count once.",
		}, []string{"result"}),
		fetched: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambipod_image_fetched_bytes_total", Help: "Bytes fetched from servers for images.",
		}),
	}
	for _, result := range []string{resultPulled, resultUnchanged, resultFailed} {
		c.pulls.WithLabelValues(result)
	}
	return c
}

func (c *counters) count(landed landing, err error) {
	result := resultPulled
	switch {
	case err != nil:
		result = resultFailed
	case landed.unchanged:
		result = resultUnchanged
	}
	c.pulls.WithLabelValues(result).Inc()
}

// Collector returns the store's metrics, to be registered by the daemon.
func (s *Store) Collector() prometheus.Collector {
	return &collector{
		store:  s,
		images: prometheus.NewDesc("ambipod_images", "Images that can be used.", nil, nil),
		kept:   prometheus.NewDesc("ambipod_images_kept", "Removed images whose files stay until their VMs are gone.", nil, nil),
		bytes:  prometheus.NewDesc("ambipod_image_store_bytes", "Bytes that the image store takes of its file system.", nil, nil),
		done:   prometheus.NewDesc("ambipod_image_download_bytes", "Bytes of a running download that are here.", []string{"image"}, nil),
		total:  prometheus.NewDesc("ambipod_image_download_size_bytes", "Size of a running download; absent if the server does not tell.", []string{"image"}, nil),
	}
}

type collector struct {
	store                            *Store
	images, kept, bytes, done, total *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.images, c.kept, c.bytes, c.done, c.total} {
		to <- d
	}
	c.store.counters.pulls.Describe(to)
	c.store.counters.fetched.Describe(to)
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	images, kept := 0, 0
	for _, r := range c.store.index.all() {
		if r.Removed {
			kept++
		} else {
			images++
		}
	}
	gauge(c.images, float64(images))
	gauge(c.kept, float64(kept))
	if usage, err := c.store.Usage(); err == nil {
		gauge(c.bytes, float64(usage.Bytes))
	} else {
		to <- prometheus.NewInvalidMetric(c.bytes, err)
	}
	seen := map[string]bool{}
	for _, t := range c.store.Progress() {
		if seen[t.Name] {
			continue // with other credentials, say; a label may come once only
		}
		seen[t.Name] = true
		gauge(c.done, float64(t.Done), t.Name)
		if t.Total >= 0 {
			gauge(c.total, float64(t.Total), t.Name)
		}
	}
	c.store.counters.pulls.Collect(to)
	c.store.counters.fetched.Collect(to)
}
