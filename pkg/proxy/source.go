package proxy

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// A merged call waits this long for a backend before it goes on with what
	// is known. crictl gives up after two seconds, kubelet after two minutes.
	patience        = time.Second
	defaultPatience = 10 * time.Second
	// refreshLimit bounds one attempt to hear from a backend that is behind.
	refreshLimit = 30 * time.Second
	refreshPause = 200 * time.Millisecond
)

// answer is one backend's part of a merged answer, its IDs already prefixed.
type answer struct {
	backend *backend
	reply   reply
	stale   bool // the last known answer, because the backend is silent
}

// source asks one backend for its part of one merged method and remembers the
// last complete one.
//
// A backend that answers too late is "behind": calls then take the remembered
// part at once, while one goroutine goes on asking until an answer comes in
// time again.
type source struct {
	backend *backend
	rule    *rule

	mu     sync.Mutex
	known  *frame // guarded by mu; last good answer to a request without filter
	behind bool   // guarded by mu
}

// fetcher gets an answer from a backend; it consumes the request.
type fetcher func(ctx context.Context, b *backend, request *frame) (reply, error)

// attempt is one running request to a backend. It outlives the call that
// started it when that call stops waiting for it.
type attempt struct {
	done   chan struct{} // closed when reply and err are set
	reply  reply
	err    error
	cancel context.CancelFunc
}

// ask gets the backend's part; nil when it has none to give. An error is the
// default backend's own, or the caller's end, and answers the whole call.
func (s *source) ask(ctx context.Context, request *frame, fetch fetcher) (*answer, error) {
	if s.isBehind() {
		return s.remembered(request)
	}
	limit, full := s.limit(ctx)
	a := s.start(ctx, request, fetch)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-a.done:
		a.cancel()
		return s.conclude(ctx, request, a)
	case <-ctx.Done():
		a.cancel()
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-timer.C:
	}
	if full {
		s.fallBehind(a)
	} else {
		a.cancel()
	}
	return s.remembered(request)
}

// limit is how long to wait for an answer: forever for a default backend of
// which nothing may be remembered, and so much less than the caller's own deadline that a
// remembered answer still arrives. full tells that the deadline did not shorten it.
func (s *source) limit(ctx context.Context) (limit time.Duration, full bool) {
	const forever = 1<<63 - 1
	limit = patience
	if s.backend.isDefault {
		limit = defaultPatience
		if !s.canRemember() {
			return forever, true
		}
	}
	if deadline, ok := ctx.Deadline(); ok {
		if most := time.Until(deadline) * 3 / 4; most < limit {
			return most, false
		}
	}
	return limit, true
}

// start sends the request in a context that has the caller's metadata and
// deadline but does not end with the caller.
func (s *source) start(ctx context.Context, request *frame, fetch fetcher) *attempt {
	callCtx := context.WithoutCancel(ctx)
	a := &attempt{done: make(chan struct{})}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(refreshLimit)
	}
	callCtx, a.cancel = context.WithDeadline(callCtx, deadline)
	complete := s.rule.isComplete(request)
	mine := request.share()
	s.backend.wg.Go(func() {
		defer close(a.done)
		a.reply, a.err = fetch(callCtx, s.backend, mine)
		if a.err == nil && complete {
			s.remember(&a.reply.frame)
		}
	})
	return a
}

// conclude turns the end of an attempt into an answer. A default backend's
// error is the answer, unless it says no more than that it is not there.
func (s *source) conclude(ctx context.Context, request *frame, a *attempt) (*answer, error) {
	if a.err == nil {
		return &answer{backend: s.backend, reply: a.reply}, nil
	}
	if ctx.Err() != nil {
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	code := status.Code(a.err)
	if s.backend.isDefault && (code != codes.Unavailable || !s.canRemember()) {
		return &answer{backend: s.backend, reply: a.reply}, a.err
	}
	if code == codes.Unimplemented {
		return nil, nil
	}
	s.backend.log.Debug("answer from memory", "method", s.rule.method, "error", a.err)
	return s.remembered(request)
}

// remembered is the backend's part as it was last known, as far as it matches.
func (s *source) remembered(request *frame) (*answer, error) {
	s.mu.Lock()
	known := s.known
	if known != nil {
		known = known.share()
	}
	s.mu.Unlock()
	if known == nil {
		return nil, nil
	}
	if !s.rule.isComplete(request) {
		matching, err := filterKnown(s.rule, request.bytes(), known.bytes())
		if err != nil {
			return nil, asStatus(s.rule, err)
		}
		known = frameOf(matching)
	}
	return &answer{backend: s.backend, reply: reply{frame: *known}, stale: true}, nil
}

func (s *source) remember(f *frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known != nil {
		s.known.free()
	}
	s.known = f.share()
}

// canRemember tells whether memory may stand in for the backend.
func (s *source) canRemember() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known != nil && (!s.rule.live || !s.backend.isDefault)
}

func (s *source) isBehind() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.behind
}

// fallBehind hands a late attempt over to the goroutine that waits for the
// backend to be in time again; only the first late attempt starts one.
func (s *source) fallBehind(a *attempt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.behind {
		a.cancel()
		return
	}
	s.behind = true
	s.backend.log.Warn("runtime is late; lists go on with its last known objects", "method", s.rule.method)
	s.backend.wg.Go(func() { s.catchUp(a) })
}

// catchUp waits for the late attempt and then asks until an answer is in time.
func (s *source) catchUp(late *attempt) {
	_ = late.wait(s.backend.ctx) // whatever it brought, only a punctual answer counts
	limit := patience
	if s.backend.isDefault {
		limit = defaultPatience
	}
	for s.backend.ctx.Err() == nil {
		started := time.Now()
		err := s.start(s.backend.ctx, &frame{}, exchange(s.rule)).wait(s.backend.ctx)
		if err == nil && time.Since(started) < limit {
			s.mu.Lock()
			s.behind = false
			s.mu.Unlock()
			s.backend.log.Info("runtime is in time again", "method", s.rule.method)
			return
		}
		pause(s.backend.ctx, refreshPause)
	}
}

// wait returns when the attempt or ctx has ended.
func (a *attempt) wait(ctx context.Context) error {
	defer a.cancel()
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pause returns after d or when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// exchange is the fetcher of list methods.
func exchange(r *rule) fetcher {
	return func(ctx context.Context, b *backend, request *frame) (reply, error) {
		defer request.free()
		bare, err := b.strip(r, request)
		if err != nil {
			return reply{}, err
		}
		answer, err := b.call(ctx, r.full, bare)
		if err != nil {
			return answer, err
		}
		whole, err := b.adopt(r, &answer.frame)
		if err != nil {
			return reply{}, err
		}
		answer.frame = *whole
		return answer, nil
	}
}

// adopt prefixes the IDs in a part of a merged answer. It verifies first that
// the part is a message of its type: garbage of one backend must not make the
// merged answer unreadable.
func (b *backend) adopt(r *rule, part *frame) (*frame, error) {
	if b.isDefault {
		return part, nil
	}
	defer part.free()
	if err := proto.Unmarshal(part.bytes(), r.answer.New().Interface()); err != nil {
		return nil, b.garbage(r, err)
	}
	whole, err := part.rewritten(r.response, b.rewrites().add)
	if err != nil {
		return nil, b.garbage(r, err)
	}
	return whole, nil
}
