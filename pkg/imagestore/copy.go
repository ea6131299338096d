package imagestore

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
)

// Together, the buffers are larger than what processors have each for itself. With few
// buffers, half of the time goes into taking their bytes from the cache of the other
// processor, which has just used them.
const (
	copyBuffer  = 256 << 10 // bytes
	copyBuffers = 32
)

// copyHashed copies and returns the SHA-256 and the length of what went through.
// While the next bytes are read, or unpacked, others are written and hashed, both by
// one goroutine: so they move from one processor to another once only. moved is called
// after each write with the position.
func copyHashed(w io.Writer, r io.Reader, moved func(int64) error) (digest string, size int64, err error) {
	s := newSink()
	go s.run(w, moved)
	for err == nil {
		select {
		case b := <-s.free:
			var n int
			n, err = r.Read(b)
			size += int64(n)
			s.full <- b[:n]
		case <-s.broken:
			err = io.ErrClosedPipe // the writer knows better
		}
	}
	close(s.full)
	<-s.done
	if s.failed != nil {
		return "", 0, s.failed
	}
	if !errors.Is(err, io.EOF) {
		return "", 0, err
	}
	return hex.EncodeToString(s.hash.Sum(nil)), size, nil
}

// sink takes buffers from the reader and gives them back.
type sink struct {
	free, full chan []byte

	broken chan struct{} // closed when writing failed
	failed error         // why; set before broken is closed
	done   chan struct{} // closed when all is written and hashed
	hash   hash.Hash
}

func newSink() *sink {
	s := &sink{
		free: make(chan []byte, copyBuffers), full: make(chan []byte, copyBuffers),
		broken: make(chan struct{}), done: make(chan struct{}), hash: sha256.New(),
	}
	for range copyBuffers {
		s.free <- make([]byte, copyBuffer)
	}
	return s
}

// run goes on taking buffers after an error, so that the reader never blocks.
func (s *sink) run(w io.Writer, moved func(int64) error) {
	defer close(s.done)
	var at int64
	for b := range s.full {
		if s.failed != nil {
			continue
		}
		at += int64(len(b))
		if _, err := w.Write(b); err != nil {
			s.failed = writeError("write image", err)
		} else {
			s.failed = moved(at)
		}
		if s.failed != nil {
			close(s.broken)
		}
		s.hash.Write(b)
		s.free <- b[:copyBuffer]
	}
}
