package network

import "sync"

// keyedLocks is a set of mutexes by name. The zero value is ready.
type keyedLocks struct {
	mu   sync.Mutex // guards held
	held map[string]*keyedLock
}

type keyedLock struct {
	sync.Mutex
	users int // holder and waiters; guarded by keyedLocks.mu
}

// lock takes the lock of key and returns the function that gives it back.
func (k *keyedLocks) lock(key string) (unlock func()) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*keyedLock{}
	}
	l := k.held[key]
	if l == nil {
		l = &keyedLock{}
		k.held[key] = l
	}
	l.users++
	k.mu.Unlock()

	l.Lock()
	return func() {
		l.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.held, key)
		}
	}
}
