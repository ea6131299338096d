package proxy

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ambipod/ambipod/pkg/proxy/wire"
)

// Fields that every item of a list of sandboxes or containers has, or that those
// of one of them have.
const (
	itemID           = protowire.Number(1) // both
	itemSandbox      = protowire.Number(2) // Container: the ID of its sandbox
	sandboxItemState = protowire.Number(3) // PodSandbox
	containerState   = protowire.Number(6) // Container
)

// memory is the last complete list of one source and what has changed since.
//
// A backend can do something and be silent from then on. What it did is known
// from the call that the proxy forwarded, so those changes are noted and applied
// when the list is needed; a list that was asked for after a change has it.
type memory struct {
	mu      sync.Mutex
	list    *frame             // guarded by mu; nil when nothing is known
	asked   time.Time          // guarded by mu; when the request for the list was sent
	changes map[string]*change // guarded by mu; by ID of the object
}

// change is what has happened to one object since the list was asked for.
type change struct {
	at    time.Time
	item  func() ([]byte, error) // encodes an object that is new; nil: it is in the list
	state []byte                 // its new state, as an encoded field; nil: as in the list
	gone  bool
	// Of a sandbox, in a list of containers: what became of those that are in it.
	children children
}

// children are what a change of a sandbox does to its containers.
type children struct {
	gone  bool
	state []byte // their new state, as an encoded field; nil: each keeps its own
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
	maps.DeleteFunc(m.changes, func(_ string, c *change) bool { return c.at.Before(asked) })
	return true
}

// note records a change of one object, on top of earlier ones, if there is a
// list to change. It tells how many objects have changed.
func (m *memory) note(id string, apply func(c *change)) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.list == nil {
		return 0
	}
	if m.changes == nil {
		m.changes = map[string]*change{}
	}
	c := m.changes[id]
	if c == nil {
		c = &change{}
		m.changes[id] = c
	}
	c.at = time.Now()
	apply(c)
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
	list = m.list.share()
	if len(m.changes) == 0 {
		return list, age, nil
	}
	defer list.free()
	changed, err := m.changedLocked(list.bytes())
	if err != nil {
		return nil, 0, err
	}
	return frameOf(changed), age, nil
}

// changedLocked applies the changes to an encoded list, without decoding items.
func (m *memory) changedLocked(list []byte) ([]byte, error) {
	out := make([]byte, 0, len(list)+len(list)/8)
	listed := map[string]bool{}
	for len(list) > 0 {
		f, rest, err := wire.Next(list)
		if err != nil {
			return nil, err
		}
		list = rest
		id, err := wire.Path{itemID}.Value(f.Value)
		if err != nil {
			return nil, err
		}
		listed[string(id)] = true
		if out, err = m.appendLocked(out, m.changes[string(id)], f.Value); err != nil {
			return nil, err
		}
	}
	return m.appendNewLocked(out, listed)
}

// appendNewLocked adds what has been made since, in the order of the last deed.
func (m *memory) appendNewLocked(out []byte, listed map[string]bool) ([]byte, error) {
	ids := slices.SortedFunc(maps.Keys(m.changes), func(a, b string) int {
		return cmp.Or(m.changes[a].at.Compare(m.changes[b].at), cmp.Compare(a, b))
	})
	for _, id := range ids {
		c := m.changes[id]
		if c.item == nil || listed[id] {
			continue
		}
		item, err := c.item()
		if err != nil {
			return nil, err
		}
		if out, err = m.appendLocked(out, c, item); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// appendLocked adds an object to a list, if it still exists, with what happened to it
// and to the sandbox that it is in. Of a field that occurs twice the later one counts,
// so that a new state is simply added.
func (m *memory) appendLocked(list []byte, c *change, item []byte) ([]byte, error) {
	sandbox, err := wire.Path{itemSandbox}.Value(item)
	if err != nil {
		return nil, err
	}
	var own change
	if c != nil {
		own = *c
	}
	if parent := m.changes[string(sandbox)]; parent != nil {
		own.gone = own.gone || parent.children.gone
		if parent.children.state != nil {
			own.state = parent.children.state
		}
	}
	if own.gone {
		return list, nil
	}
	list = protowire.AppendTag(list, listItems, protowire.BytesType)
	list = protowire.AppendVarint(list, uint64(len(item)+len(own.state)))
	list = append(list, item...)
	return append(list, own.state...), nil
}

func (m *memory) isKnown() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list != nil
}
