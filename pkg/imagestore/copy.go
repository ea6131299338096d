package imagestore

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
)

const (
	copyBuffer  = 256 << 10 // bytes
	copyBuffers = 8
)

// copyHashed copies and returns the SHA-256 and the length of what went through.
// Reading, writing and hashing each run at their own pace, a few buffers apart.
// moved is called after each write with the position.
func copyHashed(w io.Writer, r io.Reader, moved func(int64) error) (digest string, size int64, err error) {
	p := newPipeline()
	go p.write(w, moved)
	go p.digest()
	for err == nil {
		select {
		case b := <-p.free:
			var n int
			n, err = r.Read(b)
			size += int64(n)
			p.read <- b[:n]
		case <-p.broken:
			err = io.ErrClosedPipe // the writer knows better
		}
	}
	close(p.read)
	<-p.hashed
	if p.failed != nil {
		return "", 0, p.failed
	}
	if !errors.Is(err, io.EOF) {
		return "", 0, err
	}
	return hex.EncodeToString(p.hash.Sum(nil)), size, nil
}

// pipeline hands buffers from the reader to the writer to the hash, and back.
type pipeline struct {
	free, read, written chan []byte

	broken chan struct{} // closed when writing failed
	failed error         // why; set before broken is closed
	hashed chan struct{} // closed when all is done
	hash   hash.Hash
}

func newPipeline() *pipeline {
	p := &pipeline{
		free: make(chan []byte, copyBuffers), read: make(chan []byte, copyBuffers), written: make(chan []byte, copyBuffers),
		broken: make(chan struct{}), hashed: make(chan struct{}), hash: sha256.New(),
	}
	for range copyBuffers {
		p.free <- make([]byte, copyBuffer)
	}
	return p
}

// write goes on taking buffers after an error, so that the reader never blocks.
func (p *pipeline) write(w io.Writer, moved func(int64) error) {
	defer close(p.written)
	var at int64
	for b := range p.read {
		if p.failed != nil {
			continue
		}
		at += int64(len(b))
		if _, err := w.Write(b); err != nil {
			p.failed = writeError("write image", err)
		} else {
			p.failed = moved(at)
		}
		if p.failed != nil {
			close(p.broken)
		}
		p.written <- b
	}
}

func (p *pipeline) digest() {
	defer close(p.hashed)
	for b := range p.written {
		p.hash.Write(b)
		p.free <- b[:copyBuffer]
	}
}
