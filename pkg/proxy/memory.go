package proxy

import (
	"sync"
	"time"
)

// memory is the last complete list of one source and what has changed since.
//
// A backend can do something and be silent from then on. What it did is known
// from the call that the proxy forwarded, so those changes are noted and applied
// when the list is needed; a list that was asked for after a change has it.
type memory struct {
	mu      sync.Mutex
	list    *frame    // guarded by mu; nil when nothing is known
	asked   time.Time // guarded by mu; when the request for the list was sent
	changes []change  // guarded by mu; in the order of their completion
}

// change is something that a backend has done to the objects of a list.
type change struct {
	at    time.Time // when the backend had said so
	apply func(list []byte) ([]byte, error)
}

// remember keeps a complete list that was asked for at the given time, unless a
// later one is there. It reports whether the list was kept.
func (m *memory) remember(list *frame, asked time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.list != nil && asked.Before(m.asked) {
		return false
	}
	if m.list != nil {
		m.list.free()
	}
	m.list, m.asked = list.share(), asked
	later := 0
	for later < len(m.changes) && m.changes[later].at.Before(asked) {
		later++
	}
	m.changes = append([]change(nil), m.changes[later:]...)
	return true
}

// note adds a change, if there is a list to change, and tells how many there are.
func (m *memory) note(apply func(list []byte) ([]byte, error)) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.list == nil {
		return 0
	}
	m.changes = append(m.changes, change{at: time.Now(), apply: apply})
	return len(m.changes)
}

// recall returns the list with all changes, nil if nothing is known, and how old
// the backend's own word is.
func (m *memory) recall() (list *frame, age time.Duration, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.list == nil {
		return nil, 0, nil
	}
	age = time.Since(m.asked)
	if len(m.changes) == 0 {
		return m.list.share(), age, nil
	}
	now := m.list.share()
	bytes := now.bytes()
	for _, c := range m.changes {
		if bytes, err = c.apply(bytes); err != nil {
			return nil, 0, err
		}
	}
	return frameOf(bytes), age, nil
}

func (m *memory) isKnown() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list != nil
}
