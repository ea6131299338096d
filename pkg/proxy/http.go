package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ambipod/ambipod/pkg/unixsocket"
)

// unixScheme begins the address of a unix socket.
const unixScheme = "unix:"

// ServeMetrics serves /metrics, /healthz and /readyz at a TCP address or, as
// "unix:/path", at a unix socket, until ctx ends.
func (p *Proxy) ServeMetrics(ctx context.Context, address string) error {
	listener, err := listenHTTP(ctx, address)
	if err != nil {
		return fmt.Errorf("listen for metrics: %w", err)
	}
	server := &http.Server{Handler: p.webHandler(), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics at %s: %w", address, err)
	}
	return nil
}

func listenHTTP(ctx context.Context, address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, unixScheme); ok {
		return unixsocket.Listen(ctx, path, os.Getuid(), os.Getgid())
	}
	return (&net.ListenConfig{}).Listen(ctx, "tcp", address)
}

func (p *Proxy) webHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.node.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, "ok") // a caller that has gone needs no answer
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		v, release := p.current()
		defer release()
		if !v.fallback.isReady() {
			http.Error(w, fmt.Sprintf("runtime %s does not answer at %s", v.fallback.name, v.fallback.socket), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	return mux
}
