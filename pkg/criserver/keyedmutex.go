package criserver

import (
	"context"
	"sync"
)

// keyedMutex is a set of mutexes by name; a name that nobody holds or awaits takes
// no memory.
type keyedMutex struct {
	mu    sync.Mutex // guards locks and the counts in it
	locks map[string]*countedLock
}

type countedLock struct {
	held  chan struct{} // has a token while the lock is held
	users int           // holder and waiters
}

func newKeyedMutex() *keyedMutex { return &keyedMutex{locks: map[string]*countedLock{}} }

// lock waits for a name, at most until the context ends, and returns the function
// that gives it back.
func (k *keyedMutex) lock(ctx context.Context, name string) (unlock func(), err error) {
	k.mu.Lock()
	l := k.locks[name]
	if l == nil {
		l = &countedLock{held: make(chan struct{}, 1)}
		k.locks[name] = l
	}
	l.users++
	k.mu.Unlock()

	select {
	case l.held <- struct{}{}:
		return func() {
			<-l.held
			k.leave(name, l)
		}, nil
	case <-ctx.Done():
		k.leave(name, l)
		return nil, ctx.Err()
	}
}

func (k *keyedMutex) leave(name string, l *countedLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.locks, name)
	}
}
