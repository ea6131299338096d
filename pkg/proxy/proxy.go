package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	_ "google.golang.org/grpc/encoding/gzip" // a client may compress
	"google.golang.org/protobuf/reflect/protoreflect"
)

// drainTime is how long Run waits for running calls after it was told to stop.
const drainTime = 10 * time.Second

// streamWorkers are goroutines kept for calls: one that is there already has its
// stack grown. More calls at once get goroutines of their own.
const streamWorkers = 4

// writeBuffer is how much of a long answer goes into one write; a unix socket
// takes a little more at once.
const writeBuffer = 128 << 10

// Proxy is the CRI server in front of the backends. Make one with New, serve
// with Run.
type Proxy struct {
	rules    *ruleset
	log      *slog.Logger
	node     *node
	draining chan struct{} // closed when Run begins to stop

	ctx    context.Context //nolint:containedctx // the lifetime of the backends, which Reload adds to
	cancel context.CancelFunc

	mu      sync.RWMutex
	view    *view          // guarded by mu
	retired sync.WaitGroup // backends that Reload has removed and that still have calls
}

// New connects to the backends of the configuration, which need not be up yet.
// The caller must Run or Close the proxy.
func New(config *Config, log *slog.Logger) (*Proxy, error) {
	rules, err := compileRules()
	if err != nil {
		return nil, err
	}
	store, err := newStore(config.StateDir)
	if err != nil {
		return nil, err
	}
	p := &Proxy{rules: rules, log: log, draining: make(chan struct{})}
	p.node = &node{rules: rules, log: log, metrics: newMetrics(), store: store, connected: p.greet}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if err := p.Reload(config); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Close ends all connections to backends. Calls must have ended before.
func (p *Proxy) Close() {
	p.cancel()
	p.mu.Lock()
	last := p.view
	p.view = nil
	p.mu.Unlock()
	if last != nil {
		p.abandon(last)
	}
	p.retired.Wait()
}

// Reload replaces the routing and the backends. One whose identity stays keeps
// its connection and memory; calls on one that goes are allowed to finish.
func (p *Proxy) Reload(config *Config) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var backends, fresh []*backend
	for _, c := range config.Backends {
		b := p.view.find(c.identity())
		if b == nil {
			var err error
			if b, err = connect(p.ctx, c.identity(), p.node); err != nil {
				for _, f := range fresh {
					f.close()
				}
				return fmt.Errorf("connect to runtime %s at %s: %w", c.Name, c.Socket, err)
			}
			fresh = append(fresh, b)
		}
		backends = append(backends, b)
	}
	for _, b := range backends {
		b.views++
	}
	old := p.view
	p.view = newView(config, backends)
	if old != nil {
		close(old.replaced)
		p.retired.Go(func() {
			old.calls.Wait()
			p.abandon(old)
		})
	}
	return nil
}

// abandon closes the backends that no other view has. No call may be using the
// view any more.
func (p *Proxy) abandon(v *view) {
	var unused []*backend
	p.mu.Lock()
	for _, b := range v.backends {
		if b.views--; b.views == 0 {
			unused = append(unused, b)
		}
	}
	current := p.view
	p.mu.Unlock()
	for _, b := range unused {
		b.close()
		if current == nil || !slices.ContainsFunc(current.backends, func(c *backend) bool { return c.name == b.name }) {
			p.node.metrics.forget(b.name)
		}
	}
}

// current is the view for one call, which must release it; nil after Close.
func (p *Proxy) current() (v *view, release func()) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.view == nil {
		return nil, func() {}
	}
	p.view.calls.Add(1)
	return p.view, p.view.calls.Done
}

// Run serves the CRI on a listener until ctx ends; then it takes no new calls,
// lets running ones finish for a while, and closes the proxy.
func (p *Proxy) Run(ctx context.Context, listener net.Listener) error {
	defer p.Close()
	server := p.server() //nolint:contextcheck // calls have contexts of their own
	served := make(chan error, 1)
	go func() { served <- server.Serve(quietListener{listener}) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	p.log.Info("stopping: waiting for running calls", "at most", drainTime)
	close(p.draining)
	force := time.AfterFunc(drainTime, server.Stop)
	server.GracefulStop()
	force.Stop()
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
	}
	return nil
}

// server registers every method of the table; all others are passed through.
func (p *Proxy) server() *grpc.Server {
	server := grpc.NewServer(
		grpc.ForceServerCodecV2(codec{}),
		grpc.UnknownServiceHandler(p.serveUnknown),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.InitialWindowSize(windowSize),
		grpc.InitialConnWindowSize(windowSize),
		grpc.WaitForHandlers(true),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.WriteBufferSize(writeBuffer),
	)
	for _, service := range p.rules.services {
		server.RegisterService(p.describe(service), nil)
	}
	return server
}

func (p *Proxy) describe(service protoreflect.ServiceDescriptor) *grpc.ServiceDesc {
	desc := &grpc.ServiceDesc{ServiceName: string(service.FullName())}
	methods := service.Methods()
	for i := range methods.Len() {
		name := string(methods.Get(i).Name())
		r := p.rules.rules["/"+desc.ServiceName+"/"+name]
		switch {
		case r == nil: // newer than the table: serveUnknown
		case r.do == toEveryStream:
			desc.Streams = append(desc.Streams, p.streamDesc(name, func(s grpc.ServerStream) error { return p.serveListStream(r, s) }))
		case r.do == toSubscribers:
			desc.Streams = append(desc.Streams, p.streamDesc(name, func(s grpc.ServerStream) error { return p.serveEvents(r, s) }))
		default:
			desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: name, Handler: p.unaryHandler(r)})
		}
	}
	return desc
}

func (p *Proxy) streamDesc(name string, serve func(grpc.ServerStream) error) grpc.StreamDesc {
	return grpc.StreamDesc{
		StreamName: name, ServerStreams: true,
		Handler: func(_ any, stream grpc.ServerStream) error { return serve(stream) },
	}
}

func (p *Proxy) unaryHandler(r *rule) grpc.MethodHandler {
	return func(_ any, ctx context.Context, receive func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		request := new(frame)
		if err := receive(request); err != nil {
			return nil, err
		}
		answer, err := p.serveUnary(ctx, r, request)
		if err != nil {
			return nil, err
		}
		return answer, nil
	}
}
