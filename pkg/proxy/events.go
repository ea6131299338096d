package proxy

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// resubscribePause is how long a broken event stream rests before the next try.
const resubscribePause = 300 * time.Millisecond

// subscription is one caller's merged event stream.
type subscription struct {
	rule    *rule
	request *frame
	stream  grpc.ServerStream

	sending sync.Mutex    // one sender at a time
	ended   chan struct{} // closed by end
	once    sync.Once
	err     error // why it ended; read after ended is closed
}

// serveEvents merges the event streams of all backends until the caller leaves.
// Each backend has its own goroutine; one that breaks subscribes again and again
// and disturbs nobody. Only when the default has no events at all the caller
// gets its error, so that kubelet goes back to polling.
func (p *Proxy) serveEvents(r *rule, stream grpc.ServerStream) error {
	request, err := receive(stream)
	if err != nil {
		return err
	}
	defer request.free()
	request.bytes()
	s := &subscription{rule: r, request: request, stream: stream, ended: make(chan struct{})}
	for {
		v, release := p.current()
		again, err := s.follow(outgoing(stream.Context()), v, p.draining)
		release()
		if !again {
			return err
		}
	}
}

// follow forwards the events of a view's backends. again tells that it stopped
// because a new view has replaced this one.
func (s *subscription) follow(ctx context.Context, v *view, draining <-chan struct{}) (again bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, b := range v.backends {
		wg.Go(func() { s.subscribe(ctx, b) })
	}
	select {
	case <-v.replaced:
		again = true
	case <-draining:
		err = status.Error(codes.Unavailable, "criproxy is stopping: subscribe again")
	case <-s.ended:
		err = s.err
	case <-ctx.Done():
		err = status.FromContextError(ctx.Err()).Err()
	}
	cancel()
	wg.Wait()
	return again, err
}

// subscribe keeps forwarding one backend's events.
func (s *subscription) subscribe(ctx context.Context, b *backend) {
	for ctx.Err() == nil {
		err := s.forward(ctx, b)
		switch {
		case ctx.Err() != nil:
			return
		case status.Code(err) == codes.Unimplemented:
			if b.isDefault {
				s.end(err)
			}
			b.log.Info("runtime has no event stream", "method", s.rule.method)
			return
		}
		b.log.Debug("event stream broke, subscribing again", "error", err)
		pause(ctx, resubscribePause)
	}
}

// forward passes events on until the backend's stream breaks.
func (s *subscription) forward(ctx context.Context, b *backend) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := b.open(ctx, s.rule.full, s.request.share(), b.patiently())
	if err != nil {
		return err
	}
	for {
		var event frame
		if err := events.RecvMsg(&event); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		whole, err := b.adopt(s.rule, &event)
		if err != nil {
			b.log.Warn("runtime sent an event that cannot be read", "error", err)
			return err
		}
		if err := s.send(whole); err != nil {
			s.end(err)
			return err
		}
	}
}

func (s *subscription) send(event *frame) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.stream.SendMsg(event)
}

// end stops the whole subscription; the first reason counts.
func (s *subscription) end(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.ended)
	})
}
