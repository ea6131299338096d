package statushttp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"runtime/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ambipod/ambipod/pkg/unixsocket"
)

// Paths of the pages.
const (
	PathMetrics    = "/metrics"
	PathHealth     = "/healthz"
	PathReady      = "/readyz"
	PathDownloads  = "/v1/downloads"
	PathGoroutines = "/debug/goroutines"
)

// unixScheme begins the address of a unix socket.
const unixScheme = "unix:"

const (
	readHeaderTimeout = 10 * time.Second
	// withStates has pprof print each goroutine by itself, with what it waits for.
	withStates = 2
)

// Options are what a daemon shows.
type Options struct {
	Metrics prometheus.Gatherer
	// Ready says why the daemon cannot do its work at the moment; nil if it can.
	Ready func(context.Context) error
	// Pages are more pages, by their patterns (http.ServeMux).
	Pages map[string]http.Handler
}

// Handler answers requests for the pages.
func Handler(o Options) http.Handler {
	pages := http.NewServeMux()
	pages.Handle("GET "+PathMetrics, promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	pages.HandleFunc("GET "+PathHealth, func(w http.ResponseWriter, _ *http.Request) { answerOK(w) })
	pages.HandleFunc("GET "+PathReady, func(w http.ResponseWriter, r *http.Request) {
		if err := o.Ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		answerOK(w)
	})
	for pattern, page := range o.Pages {
		pages.Handle(pattern, page)
	}
	return pages
}

// answerOK does not mind a caller that has gone.
func answerOK(w http.ResponseWriter) { _, _ = fmt.Fprintln(w, "ok") }

// Serve shows the pages at an address until the context ends, which is no error. On a
// unix socket, which is root's alone, PathGoroutines is there, too.
func Serve(ctx context.Context, address string, o Options) error {
	listener, err := listen(ctx, address)
	if err != nil {
		return fmt.Errorf("listen for status requests at %s: %w", address, err)
	}
	if _, private := SocketPath(address); private {
		o.Pages = maps.Clone(o.Pages)
		if o.Pages == nil {
			o.Pages = map[string]http.Handler{}
		}
		o.Pages["GET "+PathGoroutines] = http.HandlerFunc(showGoroutines)
	}
	server := &http.Server{
		Handler:           Handler(o),
		ReadHeaderTimeout: readHeaderTimeout,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve status at %s: %w", address, err)
	}
	return nil
}

func showGoroutines(w http.ResponseWriter, _ *http.Request) {
	_ = pprof.Lookup("goroutine").WriteTo(w, withStates) // a caller that has gone needs no answer
}

// SocketPath is the path of a unix socket's address; ok is false for other addresses.
func SocketPath(address string) (path string, ok bool) { return strings.CutPrefix(address, unixScheme) }

// Unix is the address of a unix socket.
func Unix(path string) string { return unixScheme + path }

func listen(ctx context.Context, address string) (net.Listener, error) {
	if path, ok := SocketPath(address); ok {
		return unixsocket.Listen(ctx, path, os.Getuid(), os.Getgid())
	}
	return (&net.ListenConfig{}).Listen(ctx, "tcp", address)
}
