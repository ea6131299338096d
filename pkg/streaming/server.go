// Package streaming serves the streams of exec, attach and port-forward over HTTP
// (SPDY and WebSocket), by k8s.io/cri-streaming.
//
// Nouns: a ticket is the URL that an RPC answers with; it is good for one connection
// within a minute. Runtime does what the connection is for.
//
// The server listens on a loopback address of its network namespace only: tickets
// are all that it asks for, and without a certificate they travel in clear text.
// kubelet connects to it and passes the streams on, encrypted, to the API server.
//
// Concurrency: all methods may be called concurrently. Each connection has its own
// goroutines, which end with it.
//
// Traps: net/http stops looking after a connection that was taken over (hijacked), so
// neither a client that goes away nor the end of the server would end what runs for
// it; this package takes care of both.
package streaming

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	cristreaming "k8s.io/cri-streaming/pkg/streaming"
)

// readHeaderTimeout bounds how long a client may take to ask.
const readHeaderTimeout = 30 * time.Second

// Runtime does what a connection is for. The context ends when the client goes away
// or the server stops. An exit code other than 0 is a k8s.io/utils/exec.ExitError,
// not wrapped.
type Runtime = cristreaming.Runtime

// Options configure a Server; all are required unless they say otherwise.
type Options struct {
	// Address is an IP address of the loopback and a port; port 0 chooses one.
	Address string
	// CertFile and KeyFile, if not empty, have the server speak TLS. They are PEM files,
	// read for each connection, so that they can be renewed; the certificate must be
	// good for the address's IP.
	CertFile, KeyFile string
	Runtime           Runtime
	Logger            *slog.Logger
}

// Server gives tickets out and serves them.
type Server struct {
	listener net.Listener
	tickets  cristreaming.Server
	logger   *slog.Logger

	connections sync.WaitGroup

	mu       sync.Mutex // guards stopping, and connections from starting to be waited for
	stopping bool
}

// Listen binds the address, so that tickets can be given out; Serve serves them.
//
// Errors: errdefs.ErrInvalidArgument when the address is not of the loopback, or the
// certificate cannot be used.
func Listen(ctx context.Context, o Options) (*Server, error) {
	host, _, err := net.SplitHostPort(o.Address)
	if err != nil {
		return nil, fmt.Errorf("address of the streaming server %q: %w: %w", o.Address, err, errdefs.ErrInvalidArgument)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("address of the streaming server %q must be an IP address of the loopback, as 127.0.0.1:0: %w",
			o.Address, errdefs.ErrInvalidArgument)
	}
	secure, err := o.tls()
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for streams: %w", err)
	}
	config := cristreaming.DefaultConfig
	config.Addr = listener.Addr().String()
	config.BaseURL = &url.URL{Scheme: "http", Host: config.Addr}
	if secure != nil {
		config.BaseURL.Scheme = "https"
		listener = tls.NewListener(listener, secure)
	}
	tickets, err := cristreaming.NewServer(config, o.Runtime)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare streams: %w", err), listener.Close())
	}
	return &Server{listener: listener, tickets: tickets, logger: o.Logger}, nil
}

// tls is nil when streams travel in clear text.
func (o Options) tls() (*tls.Config, error) {
	if o.CertFile == "" && o.KeyFile == "" {
		return nil, nil //nolint:nilnil // says so
	}
	read := func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("certificate %q and key %q of the streaming server: %w: %w", o.CertFile, o.KeyFile, err, errdefs.ErrInvalidArgument)
		}
		return &pair, nil
	}
	if _, err := read(nil); err != nil {
		return nil, err
	}
	// Connections are taken over, which HTTP/2 has no way for; it is not offered.
	return &tls.Config{GetCertificate: read, MinVersion: tls.VersionTLS12}, nil
}

// Address is where the server listens.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Close frees the address of a server that never served.
func (s *Server) Close() error {
	if err := s.listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Exec gives out a ticket for Runtime.Exec.
func (s *Server) Exec(req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return s.tickets.GetExec(req)
}

// Attach gives out a ticket for Runtime.Attach.
func (s *Server) Attach(req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return s.tickets.GetAttach(req)
}

// PortForward gives out a ticket for Runtime.PortForward.
func (s *Server) PortForward(req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return s.tickets.GetPortForward(req)
}

// Serve serves tickets until the context ends; then it ends all connections and
// returns when nothing runs for them any more.
func (s *Server) Serve(ctx context.Context) error {
	server := &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: readHeaderTimeout,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	err := server.Serve(s.listener)
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.connections.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("serve streams at %s: %w", s.Address(), err)
}

// serve ends the request's context with its connection.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if !s.begin() {
		http.Error(w, "vmruntime is stopping", http.StatusServiceUnavailable)
		return
	}
	defer s.connections.Done()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	s.tickets.ServeHTTP(&takeover{ResponseWriter: w, gone: cancel}, r.WithContext(ctx))
}

func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return false
	}
	s.connections.Add(1)
	return true
}
