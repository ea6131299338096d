package criserver

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestUndoRunsAllStepsBackwards(t *testing.T) {
	var order []string
	step := func(name string, err error) (string, func(context.Context) error) {
		return name, func(ctx context.Context) error {
			if ctx.Err() != nil {
				t.Errorf("step %s got a context that has ended", name)
			}
			order = append(order, name)
			return err
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // the request is over, the cleaning is not
	cause := errors.New("cause")
	err := cause
	broken := errors.New("broken")
	func() {
		var steps undo
		defer func() { steps.unwind(ctx, &err) }()
		steps.push(step("first", nil))
		steps.push(step("second", broken))
		steps.push(step("third", nil))
	}()
	if want := []string{"third", "second", "first"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if !errors.Is(err, cause) || !errors.Is(err, broken) || !strings.Contains(err.Error(), "second") {
		t.Errorf("error %v does not tell of the cause and of the step that failed", err)
	}
}

func TestUndoDisarmed(t *testing.T) {
	var err error
	var steps undo
	steps.push("never", func(context.Context) error { return errors.New("ran") })
	steps.disarm()
	steps.unwind(t.Context(), &err)
	if err != nil {
		t.Error(err)
	}
}
