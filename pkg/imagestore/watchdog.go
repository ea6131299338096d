package imagestore

import (
	"context"
	"errors"
	"time"
)

// minRate is the slowest download that is not called stalled, in bytes a second.
const minRate = 1 << 10

// watchdog ends a connection on which too little arrives. Only the time spent
// waiting for the server counts, not that in which we are busy ourselves. It is
// used by one goroutine.
type watchdog struct {
	window time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
	cause  func() error  // why the connection's context ended, or nil
	left   time.Duration // of the window
	got    int           // bytes in the window
}

// watch returns the context for a connection, and what ends it.
func watch(ctx context.Context, window time.Duration) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watchdog{window: window, left: window, cancel: cancel}
	w.cause = func() error { return context.Cause(ctx) }
	w.timer = time.AfterFunc(window, func() { cancel(errStalled) })
	w.timer.Stop()
	return ctx, w
}

// during runs one exchange with the server, which reports how many bytes it brought.
func (w *watchdog) during(exchange func() (int, error)) error {
	began := time.Now()
	w.timer.Reset(w.left)
	n, err := exchange()
	w.timer.Stop()
	w.left -= time.Since(began)
	w.got += n
	if w.got >= int(w.window.Seconds()*minRate) {
		w.left, w.got = w.window, 0
	}
	if cause := w.cause(); err != nil && cause != nil && !errors.Is(err, cause) {
		return cause
	}
	return err
}

// stop ends the connection.
func (w *watchdog) stop() {
	w.timer.Stop()
	w.cancel(nil)
}
