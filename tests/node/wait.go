package node

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// pollInterval is how often a condition is looked at.
const pollInterval = 100 * time.Millisecond

// stopWaiting is what a condition returns when it can never hold any more.
type stopWaiting struct{ error }

func (s stopWaiting) Unwrap() error { return s.error }

// Until calls holds until it returns nil. When the context ends first, the error
// says what was waited for and what holds said last. An attempt that the context's
// end cut short says little: then the error also has what the attempt before it said.
func Until(ctx context.Context, what string, holds func(context.Context) error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	before := errors.New("none was completed before it")
	for {
		began := time.Now()
		last := holds(ctx)
		if last == nil {
			return nil
		}
		if over := (stopWaiting{}); errors.As(last, &over) {
			return fmt.Errorf("its process ended before %s: %w", what, over.error)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait until %s: %w: %w, an attempt cut short after %s; the one before it: %w",
				what, context.Cause(ctx), last, time.Since(began).Round(time.Millisecond), before)
		}
		before = last
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w: %w", what, context.Cause(ctx), last)
		case <-tick.C:
		}
	}
}
