package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// maxMessage bounds one message of a backend. kubelet accepts 16 MiB; an
	// ExecSync answer may hold that much of stdout and of stderr.
	maxMessage = 40 << 20
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

// backend is one CRI server and the connection to it.
type backend struct {
	name      string
	isDefault bool
	config    BackendConfig
	conn      *grpc.ClientConn
	log       *slog.Logger
	seen      atomic.Bool // has been connected since the proxy started

	ctx    context.Context //nolint:containedctx // the lifetime of the backend's own goroutines
	cancel context.CancelFunc
	wg     sync.WaitGroup // own goroutines

	mu      sync.Mutex
	sources map[string]*source // guarded by mu; by full method name
	notice  *notice            // guarded by mu; the last announcement, told again after each connect
}

// notice is a request that every backend is to hear, whenever it comes up.
type notice struct {
	rule    *rule
	request *frame
}

// reply is what came back from a call.
type reply struct {
	frame   frame
	header  metadata.MD
	trailer metadata.MD
}

// connect starts to connect in the background; the socket need not exist yet.
func connect(ctx context.Context, config BackendConfig, log *slog.Logger) (*backend, error) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", config.Socket)
	}
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(dial),
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
	b := &backend{
		name: config.Name, isDefault: config.Default, config: config, conn: conn,
		log: log.With("runtime", config.Name), sources: map[string]*source{},
	}
	b.ctx, b.cancel = context.WithCancel(ctx)
	b.wg.Go(b.watch)
	return b, nil
}

// watch keeps the connection up and notes when it changes.
func (b *backend) watch() {
	for {
		state := b.conn.GetState()
		switch state {
		case connectivity.Idle:
			b.conn.Connect()
		case connectivity.Ready:
			b.seen.Store(true)
			b.log.Info("runtime is connected", "socket", b.config.Socket)
			b.wg.Go(b.retell)
		case connectivity.TransientFailure:
			b.log.Debug("runtime does not answer", "socket", b.config.Socket)
		case connectivity.Shutdown:
			return
		}
		if !b.conn.WaitForStateChange(b.ctx, state) {
			return
		}
	}
}

// close ends all calls on the backend and waits for its goroutines.
func (b *backend) close() {
	b.cancel()
	if err := b.conn.Close(); err != nil {
		b.log.Warn("close connection to runtime", "error", err)
	}
	b.wg.Wait()
}

// call sends a request, consuming it, and waits for the answer. Metadata goes
// along both ways; an error is the backend's own status, or one that says that
// the backend cannot be reached.
//
// A default backend that has not been there yet is waited for as long as the
// caller waits: kubelet may start before it. In every other case an absent
// backend is an error at once.
func (b *backend) call(ctx context.Context, method string, request *frame) (reply, error) {
	var r reply
	err := b.conn.Invoke(ctx, method, request, &r.frame,
		grpc.Header(&r.header), grpc.Trailer(&r.trailer), grpc.WaitForReady(b.isDefault && !b.seen.Load()))
	if err != nil && r.isLocal() {
		err = b.unreachable(err)
	}
	return r, err
}

// open starts a call that is answered by a stream.
func (b *backend) open(ctx context.Context, method string, request *frame) (grpc.ClientStream, error) {
	stream, err := b.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method,
		grpc.WaitForReady(b.isDefault && !b.seen.Load()))
	if err != nil {
		return nil, b.unreachable(err)
	}
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return stream, stream.CloseSend()
}

// isLocal tells that no server has answered: one always sends a content type.
func (r *reply) isLocal() bool { return len(r.header) == 0 && len(r.trailer) == 0 }

// unreachable says in one sentence which runtime is missing and where.
func (b *backend) unreachable(err error) error {
	s := status.Convert(err)
	if s.Code() != codes.Unavailable {
		return err
	}
	return status.Errorf(codes.Unavailable, "runtime %s does not answer at %s: %s", b.name, b.config.Socket, s.Message())
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

// announce tells the backend something now, if it is there, and again whenever
// it has come back. Nobody waits for it.
func (b *backend) announce(r *rule, request *frame) {
	b.mu.Lock()
	b.notice = &notice{rule: r, request: request.share()}
	b.mu.Unlock()
	if b.conn.GetState() == connectivity.Ready {
		b.wg.Go(b.retell)
	}
}

// retell sends the last announcement, if there is one.
func (b *backend) retell() {
	b.mu.Lock()
	n := b.notice
	b.mu.Unlock()
	if n == nil {
		return
	}
	ctx, cancel := context.WithTimeout(b.ctx, refreshLimit)
	defer cancel()
	if _, err := b.call(ctx, n.rule.full, n.request.share()); err != nil {
		b.log.Warn("runtime refuses an announcement", "method", n.rule.method, "error", err)
	}
}

// outgoing passes the caller's metadata on, without what each hop sets itself.
func outgoing(ctx context.Context) context.Context {
	md, ok := metadata.FromIncomingContext(ctx)
	if !ok {
		return ctx
	}
	return metadata.NewOutgoingContext(ctx, withoutHopHeaders(md))
}

func withoutHopHeaders(md metadata.MD) metadata.MD {
	for _, key := range []string{":authority", "content-type", "user-agent", "grpc-accept-encoding", "grpc-encoding", "te"} {
		delete(md, key)
	}
	return md
}
