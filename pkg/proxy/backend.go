package proxy

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// maxMessage bounds one message in either direction. kubelet accepts 16 MiB;
	// an ExecSync answer may hold that much of stdout and of stderr.
	maxMessage = 40 << 20
	// maxPart bounds what a non-default backend adds to a merged answer, so that
	// its excess cannot push the whole over kubelet's limit.
	maxPart = 4 << 20
	// A backend that returns must be found within a second, so reconnecting
	// never pauses longer than reconnectMax (plus its jitter of a fifth).
	reconnectBase = 50 * time.Millisecond
	reconnectMax  = 500 * time.Millisecond
	// connectTimeout bounds a handshake with a server that accepts but is silent.
	connectTimeout = 5 * time.Second
	// A list of a thousand containers is 1.5 MB: windows of this size let it
	// come without waiting for the other side.
	windowSize = 4 << 20
)

// identity is what makes a backend the one that it is. Everything else in its
// configuration is routing, which belongs to a view and may change under it.
type identity struct {
	name      string
	isDefault bool
	socket    string
	idPrefix  string
}

// backend is one CRI server and the connection to it.
type backend struct {
	identity
	conn    *grpc.ClientConn
	log     *slog.Logger
	node    *node
	meters  *meters
	seen    atomic.Bool            // has been connected since the proxy started
	greeted atomic.Bool            // greet has ended once
	dialErr atomic.Pointer[string] // why the last attempt to connect failed
	cgroups atomic.Pointer[string] // cgroup driver that it reports

	views int // guarded by Proxy.mu; how many views have it

	ctx    context.Context //nolint:containedctx // the lifetime of the backend's own goroutines
	cancel context.CancelFunc
	wg     sync.WaitGroup // own goroutines

	mu      sync.Mutex
	sources map[string]*source // guarded by mu; by full name of the list method
	notice  *notice            // guarded by mu; the last announcement

	unsaved chan struct{} // of capacity 1: a list that is kept in a file has changed
}

// node is what all backends of a proxy share.
type node struct {
	rules   *ruleset
	log     *slog.Logger
	metrics *metrics
	store   *store
	// connected is called, in a goroutine of the backend, after each connect.
	connected func(ctx context.Context, b *backend)
}

// connect starts to connect in the background; the socket need not exist yet.
func connect(ctx context.Context, id identity, n *node) (*backend, error) {
	b := &backend{identity: id, log: n.log.With("runtime", id.name), node: n, sources: map[string]*source{}, unsaved: make(chan struct{}, 1)}
	b.meters = n.metrics.of(id.name)
	var err error
	b.conn, err = grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(b.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: reconnectBase, Multiplier: 2, Jitter: 0.2, MaxDelay: reconnectMax},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableRetry(), // a call that may have reached the backend is never repeated
		grpc.WithDisableServiceConfig(),
		grpc.WithInitialWindowSize(windowSize),
		grpc.WithInitialConnWindowSize(2*windowSize),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	)
	if err != nil {
		return nil, err
	}
	b.recallSaved()
	b.ctx, b.cancel = context.WithCancel(ctx)
	b.wg.Go(b.watch)
	b.wg.Go(b.save)
	return b, nil
}

func (b *backend) dial(ctx context.Context, _ string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", b.socket)
	if err != nil {
		why := reason(err)
		b.dialErr.Store(&why)
		return nil, err
	}
	b.dialErr.Store(nil)
	return quiet(conn), nil
}

// watch keeps the connection up and tells when it comes and goes.
func (b *backend) watch() {
	missing := false
	for {
		state := b.conn.GetState()
		b.meters.connected(state == connectivity.Ready)
		switch state {
		case connectivity.Idle:
			b.conn.Connect()
		case connectivity.Ready:
			b.seen.Store(true)
			missing = false
			b.log.Info("runtime is connected", "socket", b.socket)
			b.wg.Go(func() { b.node.connected(b.ctx, b) })
		case connectivity.TransientFailure:
			if !missing {
				b.log.Warn("runtime does not answer; connecting goes on", "socket", b.socket, "reason", b.whyAway())
			}
			missing = true
		case connectivity.Shutdown:
			return
		}
		if !b.conn.WaitForStateChange(b.ctx, state) {
			return
		}
	}
}

// whyAway is the reason why the last connect failed, in a few words.
func (b *backend) whyAway() string {
	if why := b.dialErr.Load(); why != nil {
		return *why
	}
	return "the connection broke"
}

func (b *backend) isReady() bool { return b.conn.GetState() == connectivity.Ready }

// close ends all calls on the backend and waits for its goroutines.
func (b *backend) close() {
	b.cancel()
	if err := b.conn.Close(); err != nil {
		b.log.Warn("close connection to runtime", "error", err)
	}
	b.wg.Wait()
}

// source is the backend's part of a merged method. A Stream* method has that of
// the list method that it stands for.
func (b *backend) source(r *rule) *source {
	if r.listing != nil {
		r = r.listing
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sources[r.full]
	if s == nil {
		s = &source{backend: b, rule: r}
		b.sources[r.full] = s
	}
	return s
}
