package statushttp

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve shows the pages at an address and returns a client that it answers.
func serve(t *testing.T, address string, o Options) *Client {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, address, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	c := NewClient(address)
	for deadline := time.Now().Add(20 * time.Second); ; {
		page, err := c.Get(t.Context(), PathHealth)
		if err == nil && string(page) == "ok\n" {
			return c
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %q, %v", address, page, err)
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestPages(t *testing.T) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "answer", Help: "h"}, func() float64 { return 42 }))
	var away atomic.Bool
	want := []Download{{Name: "vm.ambipod.io/x:latest", Source: "http://x", DoneBytes: 5, TotalBytes: -1, RemainingSeconds: -1, StartedAt: time.Unix(7, 0).UTC()}}
	o := Options{
		Metrics: registry,
		Ready: func(context.Context) error {
			if away.Load() {
				return errors.New("libvirt is away")
			}
			return nil
		},
		Pages: map[string]http.Handler{"GET " + PathDownloads: DownloadsPage(func() []Download { return want })},
	}
	socket := filepath.Join(t.TempDir(), "s")
	for _, address := range []string{Unix(socket), freePort(t)} {
		away.Store(false)
		c := serve(t, address, o)
		if page, err := c.Get(t.Context(), PathMetrics); err != nil || !strings.Contains(string(page), "answer 42\n") {
			t.Errorf("%s metrics: %q, %v", address, page, err)
		}
		if page, err := c.Get(t.Context(), PathReady); err != nil || string(page) != "ok\n" {
			t.Errorf("%s ready: %q, %v", address, page, err)
		}
		away.Store(true)
		if _, err := c.Get(t.Context(), PathReady); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "libvirt is away") {
			t.Errorf("%s not ready: %v", address, err)
		}
		if got, err := c.Downloads(t.Context()); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s downloads: %+v, %v", address, got, err)
		}
		if _, err := c.Get(t.Context(), "/else"); !errdefs.IsNotFound(err) {
			t.Errorf("%s: a page that is not there: %v", address, err)
		}
		page, err := c.Get(t.Context(), PathGoroutines)
		_, private := SocketPath(address)
		if private && (err != nil || !strings.Contains(string(page), "statushttp.Serve")) {
			t.Errorf("%s goroutines: %q, %v", address, page, err)
		}
		if !private && !errdefs.IsNotFound(err) {
			t.Errorf("%s shows goroutines to everybody: %v", address, err)
		}
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	for _, address := range []string{Unix(filepath.Join(t.TempDir(), "none")), "127.0.0.1:1"} {
		if _, err := NewClient(address).Downloads(t.Context()); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), address) {
			t.Errorf("%s: %v", address, err)
		}
	}
	if err := Serve(t.Context(), "999.0.0.1:1", Options{}); err == nil {
		t.Error("an impossible address is accepted")
	}
}
