package proxy

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// A merged call waits this long for a backend before it goes on with what
	// is known. crictl gives up after two seconds, kubelet after two minutes.
	patience        = time.Second
	defaultPatience = 10 * time.Second
	// refreshLimit bounds one attempt to hear from a backend that is behind.
	refreshLimit = 30 * time.Second
	refreshPause = 200 * time.Millisecond
	// probeLimit and refreshPause together must be below the second within which
	// a backend's return is noticed.
	probeLimit = 500 * time.Millisecond
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
	memory  memory

	mu      sync.Mutex
	behind  bool // guarded by mu
	failing bool // guarded by mu; the last answer was an error
}

// fetcher gets an answer from a backend; it consumes the request.
type fetcher func(ctx context.Context, b *backend, request *frame, options ...grpc.CallOption) (reply, error)

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
		s.fallBehind(a) //nolint:contextcheck // it outlives this call by design
	} else {
		a.cancel()
	}
	return s.remembered(request)
}

// limit is how long to wait for an answer: forever for a default backend of
// which nothing may be remembered, and so much less than the caller's own
// deadline that a remembered answer still arrives. full tells that the deadline
// did not shorten it.
func (s *source) limit(ctx context.Context) (limit time.Duration, full bool) {
	const forever = 1<<63 - 1
	if s.backend.isDefault && !s.canRemember() {
		return forever, true
	}
	limit = s.patience()
	if deadline, ok := ctx.Deadline(); ok {
		if most := time.Until(deadline) * 3 / 4; most < limit {
			return most, false
		}
	}
	return limit, true
}

func (s *source) patience() time.Duration {
	if s.backend.isDefault {
		return defaultPatience
	}
	return patience
}

// canRemember tells whether memory may stand in for the backend.
func (s *source) canRemember() bool {
	return s.memory.isKnown() && (!s.rule.live || !s.backend.isDefault)
}

// attempt is one running request to a backend. It outlives the call that
// started it when that call stops waiting for it.
type attempt struct {
	done   chan struct{} // closed when the next three are set
	reply  reply
	err    error
	took   time.Duration
	cancel context.CancelFunc
}

// start sends the request in a context that has the caller's metadata and
// deadline but does not end with the caller.
func (s *source) start(ctx context.Context, request *frame, fetch fetcher) *attempt {
	a := &attempt{done: make(chan struct{})}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(refreshLimit)
	}
	callCtx, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	a.cancel = cancel
	complete := s.rule.isComplete(request)
	mine := request.share()
	options := []grpc.CallOption{grpc.WaitForReady(false)}
	if !s.canRemember() {
		options[0] = s.backend.patiently()
	}
	if !s.backend.isDefault {
		options = append(options, grpc.MaxCallRecvMsgSize(maxPart))
	}
	asked := time.Now()
	s.backend.wg.Go(func() {
		defer close(a.done)
		a.reply, a.err = fetch(callCtx, s.backend, mine, options...)
		a.took = time.Since(asked)
		if a.err == nil && complete && s.memory.remember(&a.reply.frame, asked) && s.rule.keep {
			s.backend.needsSaving()
		}
	})
	return a
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

// conclude turns the end of an attempt into an answer. A default backend's
// error is the answer, unless it says no more than that it is not there.
func (s *source) conclude(ctx context.Context, request *frame, a *attempt) (*answer, error) {
	if a.err == nil {
		s.setFailing(nil)
		s.backend.meters.fresh(s.rule.method)
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
	s.setFailing(a.err)
	return s.remembered(request)
}

// setFailing tells the log when a backend begins and ceases to answer with errors.
func (s *source) setFailing(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch failing := err != nil; {
	case failing && !s.failing:
		s.backend.log.Warn("runtime fails to list; its last known objects stand in", "method", s.rule.method, "error", err)
	case !failing && s.failing:
		s.backend.log.Info("runtime lists again", "method", s.rule.method)
	}
	s.failing = err != nil
}

// remembered is the backend's part as it was last known, as far as it matches.
func (s *source) remembered(request *frame) (*answer, error) {
	list, age, err := s.memory.recall()
	if err != nil {
		return nil, s.backend.garbage(s.rule, err)
	}
	if list == nil {
		return nil, nil
	}
	s.backend.meters.stale(s.rule.method, age)
	if !s.rule.isComplete(request) {
		matching, err := filterKnown(s.rule, request.bytes(), list.bytes())
		if err != nil {
			return nil, asStatus(s.rule, err)
		}
		list = frameOf(matching)
	}
	return &answer{backend: s.backend, reply: reply{frame: *list}, stale: true}, nil
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
	s.backend.log.Warn("runtime is late; its last known objects stand in", "method", s.rule.method)
	s.backend.wg.Go(func() { s.catchUp(a) })
}

// catchUp asks until an answer is in time. Short attempts find out soon that the
// backend is back. Beside them a long one is always under way, so that memory
// follows a backend that stays slow; its slowness then spaces the short ones.
func (s *source) catchUp(long *attempt) {
	rest := refreshPause
	for s.backend.ctx.Err() == nil {
		punctual := s.answersSoon()
		select {
		case <-long.done:
			long.cancel()
			if long.err == nil {
				rest = max(refreshPause, long.took)
				punctual = punctual || long.took < s.patience()
			}
			long = s.start(s.backend.ctx, &frame{}, exchange(s.rule))
		default:
		}
		if punctual {
			s.mu.Lock()
			s.behind = false
			s.mu.Unlock()
			s.backend.log.Info("runtime is in time again", "method", s.rule.method)
			break
		}
		pause(s.backend.ctx, rest)
	}
	long.cancel()
}

// answersSoon asks once, with little patience.
func (s *source) answersSoon() bool {
	ctx, cancel := context.WithTimeout(s.backend.ctx, probeLimit)
	defer cancel()
	return s.refresh(ctx) == nil
}

// refresh asks for everything, so that memory is up to date.
func (s *source) refresh(ctx context.Context) error {
	return s.start(ctx, &frame{}, exchange(s.rule)).wait(ctx)
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
	return func(ctx context.Context, b *backend, request *frame, options ...grpc.CallOption) (reply, error) {
		defer request.free()
		bare, err := b.strip(r, request)
		if err != nil {
			return reply{}, err
		}
		answer, err := b.call(ctx, r.full, bare, options...)
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
	if err := r.shape.Check(part.bytes()); err != nil {
		return nil, b.garbage(r, err)
	}
	whole, err := part.rewritten(r.response, b.rewrites().add)
	if err != nil {
		return nil, b.garbage(r, err)
	}
	return whole, nil
}
