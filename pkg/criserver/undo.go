package criserver

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// cleanupTimeout bounds the work that outlives a request to leave nothing behind.
const cleanupTimeout = time.Minute

// undo is a stack of steps that take back what an operation has done so far. The
// operation pushes after each success and empties the stack at its commit point.
type undo []undoStep

type undoStep struct {
	name string
	run  func(context.Context) error
}

func (u *undo) push(name string, run func(context.Context) error) {
	*u = append(*u, undoStep{name, run})
}

// disarm makes what was done permanent.
func (u *undo) disarm() { *u = nil }

// unwind runs all steps, last first, whether or not one fails, and joins their
// errors to the error that made it necessary. The request may be over by then, so
// the steps get a context of their own, with a deadline.
func (u *undo) unwind(ctx context.Context, cause *error) {
	if len(*u) == 0 {
		return
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	for _, step := range slices.Backward(*u) {
		if err := step.run(ctx); err != nil {
			*cause = fmt.Errorf("%w; while undoing, %s: %w", *cause, step.name, err)
		}
	}
}

// detached keeps a context's values but not its end.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
}
