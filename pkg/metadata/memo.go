package metadata

import (
	"bytes"
	"sync"
)

// memo spares decoding records that have not changed: lists are asked for every
// second. A record is known by its very bytes in the database, which stays the truth,
// so nothing needs to be told of changes.
//
// What it hands out is shared: nobody may write into a record's slices.
type memo[T any] struct {
	mu    sync.Mutex // guards known
	known map[string]known[T]
}

// known is a record and what it was decoded from.
type known[T any] struct {
	raw    []byte
	record T
}

func newMemo[T any]() *memo[T] { return &memo[T]{known: map[string]known[T]{}} }

// record returns what raw stands for. It keeps a copy of raw, which is bolt's.
func (m *memo[T]) record(id, raw []byte, decode func(id string, raw []byte) (T, error)) (T, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k, ok := m.known[string(id)]; ok && bytes.Equal(k.raw, raw) {
		return k.record, nil
	}
	record, err := decode(string(id), raw)
	if err == nil {
		m.known[string(id)] = known[T]{bytes.Clone(raw), record}
	}
	return record, err
}

// retain forgets all but the IDs that exist.
func (m *memo[T]) retain(exists func(id []byte) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.known {
		if !exists([]byte(id)) {
			delete(m.known, id)
		}
	}
}

// size is how many records are known.
func (m *memo[T]) size() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.known)
}
