package imagestore

import (
	"context"
	"sync"
)

// flights makes concurrent pulls from one place share one download.
type flights struct {
	mu      sync.Mutex         // guards what follows, and waiters of each flight
	active  map[string]*flight // by the key of the place
	closing bool

	running sync.WaitGroup
}

// landing is what a flight brought.
type landing struct {
	id     string // of the image
	digest string // of the bytes that the server sent, or of the manifest

	unchanged bool // nothing had to be fetched
}

// flight is one download and all who wait for it.
type flight struct {
	variant string // what else must be equal to share it: credentials, digest
	cancel  context.CancelCauseFunc
	waiters int
	done    chan struct{} // closed when landed and err are set
	landed  landing
	err     error
}

// stop cancels all flights and waits for their end.
func (f *flights) stop() {
	f.mu.Lock()
	f.closing = true
	for _, fl := range f.active {
		fl.cancel(errClosing)
	}
	f.mu.Unlock()
	f.running.Wait()
}

// do runs work for key, or joins a running flight of the same key and variant. A
// flight of the same key but another variant is awaited first, because both
// would write the same partial file. Work goes on until every caller that waits
// for it has been cancelled.
func (f *flights) do(ctx context.Context, key, variant string, work func(context.Context) (landing, error)) (landing, error) {
	for {
		fl, mine := f.join(ctx, key, variant, work)
		select {
		case <-fl.done:
			if mine {
				return fl.landed, fl.err
			}
		case <-ctx.Done():
			if mine {
				f.leave(fl)
			}
			return landing{}, context.Cause(ctx)
		}
	}
}

// join returns the flight to wait for, and whether it is the caller's own.
func (f *flights) join(ctx context.Context, key, variant string, work func(context.Context) (landing, error)) (*flight, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.active[key]; fl != nil {
		// A flight without waiters is being cancelled.
		if fl.variant != variant || fl.waiters == 0 {
			return fl, false
		}
		fl.waiters++
		return fl, true
	}
	fl := &flight{variant: variant, waiters: 1, done: make(chan struct{})}
	if f.closing {
		fl.err = errClosing
		close(fl.done)
		return fl, true
	}
	flightCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	fl.cancel = cancel
	f.active[key] = fl
	f.running.Go(func() {
		landed, err := work(flightCtx)
		cancel(nil)
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.active, key)
		fl.landed, fl.err = landed, err
		close(fl.done)
	})
	return fl, true
}

// leave gives up a caller's interest; the last one ends the flight.
func (f *flights) leave(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.waiters--; fl.waiters == 0 {
		fl.cancel(context.Canceled)
	}
}

// whenIdle runs act unless the place is being fetched from; no flight to it
// begins meanwhile.
func (f *flights) whenIdle(key string, act func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.active[key] != nil {
		return nil
	}
	return act()
}
