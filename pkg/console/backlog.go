package console

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// maxBacklog bounds what is kept for a client, in bytes: some screens of text.
const maxBacklog = 256 << 10

// backlog is what a client has still to be shown. The guest's side never waits for
// it.
type backlog struct {
	changed *sync.Cond    // of mu
	dropped *atomic.Int64 // bytes that clients were too slow for, of all backlogs

	mu      sync.Mutex // guards the rest
	waiting []byte
	lost    int // bytes that did not fit after waiting
	ended   bool
}

func newBacklog(dropped *atomic.Int64) *backlog {
	b := &backlog{dropped: dropped}
	b.changed = sync.NewCond(&b.mu)
	return b
}

// add appends output, or counts it as lost: once some is lost, all is until the
// client has caught up.
func (b *backlog) add(output []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lost > 0 || len(b.waiting)+len(output) > maxBacklog {
		b.lost += len(output)
		b.dropped.Add(int64(len(output)))
	} else {
		b.waiting = append(b.waiting, output...)
	}
	b.changed.Signal()
}

// end says that nothing more comes.
func (b *backlog) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.changed.Signal()
}

// next waits for output; it returns none at the end.
func (b *backlog) next() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.waiting) == 0 && b.lost == 0 && !b.ended {
		b.changed.Wait()
	}
	output := b.waiting
	b.waiting = nil
	if b.lost > 0 {
		output = fmt.Appendf(output, "\r\n[%d bytes of output were left out: this client is too slow]\r\n", b.lost)
		b.lost = 0
	}
	return output
}

// showAll writes output until its end.
func (b *backlog) showAll(to io.Writer) error {
	if to == nil {
		to = io.Discard
	}
	for {
		output := b.next()
		if len(output) == 0 {
			return nil
		}
		if _, err := to.Write(output); err != nil {
			return fmt.Errorf("show the console's output: %w", err)
		}
	}
}
