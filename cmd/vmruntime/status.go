package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/criserver"
	"github.com/ambipod/ambipod/pkg/imagestore"
	"github.com/ambipod/ambipod/pkg/statushttp"
)

// statusOff in place of an address says that no status is served.
const statusOff = "off"

// completeStatus fills in the address of the status pages; it is empty when they are
// off.
func (s *settings) completeStatus() error {
	switch s.statusAddress {
	case "":
		s.statusAddress = statushttp.Unix(s.layout.StatusSocket())
		return nil
	case statusOff:
		s.statusAddress = ""
		return nil
	}
	if path, ok := statushttp.SocketPath(s.statusAddress); ok {
		if !filepath.IsAbs(path) {
			return usageError{fmt.Errorf("--status-address: %q is no absolute path", path)}
		}
		return nil
	}
	if _, _, err := net.SplitHostPort(s.statusAddress); err != nil {
		return usageError{fmt.Errorf("--status-address is %q, it must be HOST:PORT, unix:/PATH or %s", s.statusAddress, statusOff)}
	}
	return nil
}

// collected are the parts of vmruntime that have metrics.
type collected interface{ Collector() prometheus.Collector }

// statusPages are what vmruntime shows.
func statusPages(server *criserver.Server, images *imagestore.Store, calls *criserver.CallMetrics, more ...collected) statushttp.Options {
	registry := prometheus.NewRegistry()
	registry.MustRegister(calls, server.Collector(), images.Collector(),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
	for _, part := range more {
		registry.MustRegister(part.Collector())
	}
	return statushttp.Options{
		Metrics: registry,
		Ready:   func(ctx context.Context) error { return ready(ctx, server) },
		Pages: map[string]http.Handler{
			"GET " + statushttp.PathDownloads: statushttp.DownloadsPage(func() []statushttp.Download { return downloads(images) }),
		},
	}
}

func buildInfo() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ambipod_build_info", Help: "1; the labels tell what runs.", ConstLabels: prometheus.Labels{"version": version},
	}, func() float64 { return 1 })
}

// ready tells what kubelet would be told.
func ready(ctx context.Context, server *criserver.Server) error {
	answer, err := server.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return err
	}
	for _, condition := range answer.GetStatus().GetConditions() {
		if !condition.GetStatus() {
			return errors.New(condition.GetType() + ": " + condition.GetMessage())
		}
	}
	return nil
}

func downloads(images *imagestore.Store) []statushttp.Download {
	list := []statushttp.Download{}
	for _, t := range images.Progress() {
		d := statushttp.Download{
			Name: t.Name, Source: t.Source, DoneBytes: t.Done, TotalBytes: t.Total, BytesPerSecond: t.Rate,
			RemainingSeconds: -1, StartedAt: t.Started,
		}
		if t.Remaining >= 0 {
			d.RemainingSeconds = int64(t.Remaining.Round(time.Second) / time.Second)
		}
		list = append(list, d)
	}
	return list
}

// serveStatus shows the pages until the context ends. VMs do not depend on them, so a
// failure is only reported.
func serveStatus(ctx context.Context, address string, pages statushttp.Options, logger *slog.Logger) {
	if address == "" {
		return
	}
	if err := statushttp.Serve(ctx, address, pages); err != nil {
		logger.ErrorContext(ctx, "no metrics and no progress are shown", "err", err)
	}
}
