package imagestore

import "io"

// readAhead reads a source in a goroutine of its own, so that fetching goes on
// while the reader is busy unpacking.
type readAhead struct {
	full, free chan []byte
	failed     error // of the source; set before full is closed
	stopping   chan struct{}

	current []byte // what is left of the buffer being read
	used    []byte // that buffer
}

func newReadAhead(source io.Reader) *readAhead {
	a := &readAhead{
		full: make(chan []byte, copyBuffers), free: make(chan []byte, copyBuffers),
		stopping: make(chan struct{}),
	}
	for range copyBuffers {
		a.free <- make([]byte, copyBuffer)
	}
	go a.fill(source)
	return a
}

func (a *readAhead) fill(source io.Reader) {
	defer close(a.full)
	for a.failed == nil {
		select {
		case b := <-a.free:
			var n int
			n, a.failed = source.Read(b)
			a.full <- b[:n]
		case <-a.stopping:
			return
		}
	}
}

func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.current) == 0 {
		if a.used != nil {
			a.free <- a.used[:copyBuffer]
		}
		var ok bool
		if a.used, ok = <-a.full; !ok {
			a.used = nil
			return 0, a.failed
		}
		a.current = a.used
	}
	n := copy(p, a.current)
	a.current = a.current[n:]
	return n, nil
}

// stop ends the goroutine and waits for it. A source that may block must have
// been told to fail before.
func (a *readAhead) stop() {
	close(a.stopping)
	for range a.full { // the buffers are of no use any more
	}
}
