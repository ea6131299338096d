package proxy

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/unixsocket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// vmAnnotation and its alias make a pod a VM in the tests' configuration.
const (
	vmAnnotation  = "vm.ambipod.io/target-runtime"
	oldAnnotation = "kubernetes.io/target-runtime"
)

// setup is a proxy between a client and two runtimes, each on its own socket.
type setup struct {
	*proxyClient
	dir    string
	config *Config
	def    *testRuntime // "containerd", the default
	vm     *testRuntime
	proxy  *Proxy
	log    *logBuffer
	stop   func() // ends the proxy gracefully
}

// proxyClient is what kubelet has: a connection and both services.
type proxyClient struct {
	conn *grpc.ClientConn
	runtimeapi.RuntimeServiceClient
	images runtimeapi.ImageServiceClient
}

// newSetup starts both runtimes and the proxy and waits until they are connected.
func newSetup(t testing.TB) *setup {
	t.Helper()
	s := newStoppedSetup(t)
	s.def.start(t)
	s.vm.start(t)
	s.startProxy(t)
	s.waitConnected(t, "containerd", "vm")
	return s
}

// newStoppedSetup is a setup of which nothing runs yet.
func newStoppedSetup(t testing.TB) *setup {
	t.Helper()
	// Not t.TempDir: with a long test name a socket's path would not fit.
	dir, err := os.MkdirTemp("", "criproxy") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	s := &setup{dir: dir, log: &logBuffer{}, def: newTestRuntime(dir, "containerd"), vm: newTestRuntime(dir, "vm")}
	s.config = testConfig(dir)
	return s
}

func testConfig(dir string) *Config {
	c := DefaultConfig()
	c.Listen = filepath.Join(dir, "criproxy.sock")
	c.StateDir = filepath.Join(dir, "state")
	c.Backends[0].Socket = filepath.Join(dir, "containerd.sock")
	c.Backends[1].Socket = filepath.Join(dir, "vm.sock")
	return c
}

// startProxy runs a proxy on the setup's configuration until stop or the test's end.
func (s *setup) startProxy(t testing.TB) {
	t.Helper()
	level := levelRequests
	if _, measuring := t.(*testing.B); measuring {
		level = slog.LevelInfo // as in production
	}
	log := slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: level}))
	p, err := New(s.config, log)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := Listen(t.Context(), s.config.Listen)
	if err != nil {
		p.Close()
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx, listener) }()
	conn := dial(t, s.config.Listen)
	var once sync.Once
	s.proxy = p
	s.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(s.stop)
	s.proxyClient = &proxyClient{conn: conn, RuntimeServiceClient: runtimeapi.NewRuntimeServiceClient(conn), images: runtimeapi.NewImageServiceClient(conn)}
}

// listenUnix makes a socket for a runtime.
func listenUnix(t testing.TB, socket string) net.Listener {
	t.Helper()
	listener, err := unixsocket.Listen(t.Context(), socket, os.Getuid(), os.Getgid())
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

// dial connects as kubelet does.
func dial(t testing.TB, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// waitConnected waits until the proxy has greeted the runtimes, so that nothing
// of that is still going on when the test begins.
func (s *setup) waitConnected(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		eventually(t, "runtime "+name+" is connected", func() bool { return s.backend(name).greeted.Load() && s.backend(name).isReady() })
	}
}

func (s *setup) backend(name string) *backend {
	v, release := s.proxy.current()
	defer release()
	for _, b := range v.backends {
		if b.name == name {
			return b
		}
	}
	return nil
}

// eventually waits for a condition; ten seconds are far beyond what any needs.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within ten seconds: %s", what)
		}
		pause(context.Background(), 5*time.Millisecond)
	}
}

// ctx is a context for one call, far longer than any should take.
func ctx(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func wantCode(t testing.TB, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("code %v (%v), want %v", got, err, want)
	}
}

// must fails the test when a call does.
func must[T any](t testing.TB) func(answer T, err error) T {
	return func(answer T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
}

// logBuffer collects the proxy's log.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
