package libvirttools

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"libvirt.org/go/libvirt"
)

// keepAliveCount is how many keep-alives in a row may go unanswered. A libvirtd that
// is merely busy answers them from its main loop.
const keepAliveCount = 5

// link keeps one connection to libvirtd: made when first needed, and again after
// it broke.
type link struct {
	uri string
	// silence is for how long libvirtd may leave keep-alives unanswered before the
	// connection is closed and all calls on it return.
	silence time.Duration

	wg sync.WaitGroup // goroutines that are inside libvirt, and held sessions

	mu      sync.Mutex // guards the rest
	current *session   // nil when not connected
	opening *attempt   // nil when nobody is connecting
	closed  bool
	made    int // connections so far
}

// session is one connection. lost is closed when it broke or was closed.
type session struct {
	conn *libvirt.Connect
	once sync.Once
	lost chan struct{}
}

// attempt is a connection that is being made; all who need one wait for the same,
// so that a libvirtd that hangs costs one thread and not one for each call.
type attempt struct {
	done    chan struct{} // closed when session and err are set
	session *session
	err     error
}

func newSession(conn *libvirt.Connect) *session {
	return &session{conn: conn, lost: make(chan struct{})}
}

func (s *session) markLost() { s.once.Do(func() { close(s.lost) }) }

func (s *session) isLost() bool {
	select {
	case <-s.lost:
		return true
	default:
		return false
	}
}

// acquire returns a live session with a reference to its connection, which the
// caller must drop with release. Until then the link counts as busy.
func (l *link) acquire(ctx context.Context) (*session, error) {
	for {
		s, a, err := l.sessionOrAttempt()
		if s != nil || err != nil {
			return s, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("libvirt at %s does not accept the connection, look at libvirtd: %w", l.uri, ctx.Err())
		case <-a.done:
			if a.err != nil {
				return nil, a.err
			}
		}
	}
}

// sessionOrAttempt returns a live session, referenced, or what to wait for.
func (l *link) sessionOrAttempt() (*session, *attempt, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, nil, fmt.Errorf("client of libvirt at %s is closed: %w", l.uri, errdefs.ErrUnavailable)
	}
	if l.current != nil && l.current.isLost() {
		l.retireLocked()
	}
	if l.current != nil {
		if err := l.current.conn.Ref(); err != nil {
			return nil, nil, l.explain(err)
		}
		l.wg.Add(1)
		return l.current, nil, nil
	}
	if l.opening == nil {
		l.opening = &attempt{done: make(chan struct{})}
		a := l.opening
		l.wg.Go(func() { l.open(a) })
	}
	return nil, l.opening, nil
}

// open makes the connection of an attempt.
func (l *link) open(a *attempt) {
	defer close(a.done)
	a.session, a.err = l.connect()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opening = nil
	if a.err != nil {
		return
	}
	l.current = a.session
	l.made++
	if l.closed {
		l.retireLocked()
	}
}

func (l *link) connect() (*session, error) {
	conn, err := libvirt.NewConnect(l.uri)
	if err != nil {
		return nil, l.explain(err)
	}
	s := newSession(conn)
	err = conn.RegisterCloseCallback(func(*libvirt.Connect, libvirt.ConnectCloseReason) { s.markLost() })
	if err == nil {
		err = conn.SetKeepAlive(l.keepAliveSeconds(), keepAliveCount)
	}
	if err != nil {
		_, closeErr := conn.Close()
		return nil, l.explain(errors.Join(err, closeErr))
	}
	return s, nil
}

// keepAliveSeconds spreads the keep-alives over the permitted silence.
func (l *link) keepAliveSeconds() int {
	return max(1, int(l.silence/time.Second)/(keepAliveCount+1))
}

// retireLocked lets go of the current session in the background, since even that
// may wait for libvirtd. Calls that still use it hold references of their own.
func (l *link) retireLocked() {
	s := l.current
	l.current = nil
	s.markLost()
	l.wg.Go(func() {
		// The callback holds a reference, too; the connection is gone anyway.
		_ = s.conn.UnregisterCloseCallback()
		_, _ = s.conn.Close()
	})
}

// release gives back what acquire gave. The last reference closes the connection.
func (l *link) release(s *session) {
	_, _ = s.conn.Close()
	l.wg.Done()
}

// shut ends the connection and refuses new calls; wg tells when the last has ended.
func (l *link) shut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.current != nil {
		l.retireLocked()
	}
}

// call runs fn with a connection, in a goroutine that outlives ctx if libvirt does
// not answer. If the connection turns out to be broken, which a restart of libvirtd
// does to every one, fn runs once more on a new one: all that this package does
// with libvirt can be repeated. A connection that cannot be made is not tried twice.
func call[T any](ctx context.Context, l *link, fn func(*libvirt.Connect) (T, error)) (T, error) {
	value, err := callOnce(ctx, l, fn)
	if err != nil && isBroken(err) && !isExplained(err) && ctx.Err() == nil {
		value, err = callOnce(ctx, l, fn)
	}
	if err != nil {
		err = l.explain(err)
	}
	return value, err
}

func callOnce[T any](ctx context.Context, l *link, fn func(*libvirt.Connect) (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	var none T
	s, err := l.acquire(ctx)
	if err != nil {
		return none, err
	}
	answers := make(chan answer, 1)
	go func() {
		defer l.release(s)
		value, err := fn(s.conn)
		if err != nil && isBroken(err) {
			s.markLost()
		}
		answers <- answer{value, err}
	}()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-ctx.Done():
		return none, fmt.Errorf("libvirt at %s has not answered in time: %w", l.uri, ctx.Err())
	}
}
