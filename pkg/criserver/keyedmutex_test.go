package criserver

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestKeyedMutexExcludes(t *testing.T) {
	locks := newKeyedMutex()
	const workers, rounds = 8, 100
	counter := 0 // the race detector sees an unprotected access
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range rounds {
				unlock, err := locks.lock(t.Context(), "x")
				if err != nil {
					t.Error(err)
					return
				}
				counter++
				unlock()
			}
		})
	}
	wg.Wait()
	if counter != workers*rounds {
		t.Errorf("counted %d, want %d", counter, workers*rounds)
	}
	if len(locks.locks) != 0 {
		t.Errorf("%d locks are left in memory", len(locks.locks))
	}
}

func TestKeyedMutexObeysTheContext(t *testing.T) {
	locks := newKeyedMutex()
	unlock, err := locks.lock(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	other, err := locks.lock(t.Context(), "y") // another name is another lock
	if err != nil {
		t.Fatal(err)
	}
	other()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := locks.lock(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("lock that is held, with an ended context: %v", err)
	}
	unlock()
	if len(locks.locks) != 0 {
		t.Errorf("%d locks are left in memory", len(locks.locks))
	}
}
