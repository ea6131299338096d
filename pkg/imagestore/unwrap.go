package imagestore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// wrapper is how a disk is compressed for the transport.
type wrapper string

const (
	wrapperNone wrapper = ""
	wrapperGzip wrapper = "gzip"
	wrapperXZ   wrapper = "xz"
	wrapperZstd wrapper = "zstd"
)

// maxWindow is the largest memory of past bytes that a zstd or xz stream may
// ask for: what "zstd --long" uses, and twice what "xz -9" does.
const maxWindow = 128 << 20

// wrapping tells by the first bytes how a file is compressed.
func wrapping(head []byte) wrapper {
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b\x08")):
		return wrapperGzip
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return wrapperXZ
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")), skippable(head):
		return wrapperZstd
	}
	return wrapperNone
}

// skippable recognises a zstd stream that begins with a frame for others to skip, as
// those of pzstd do (RFC 8878, section 3.1.2).
func skippable(head []byte) bool {
	const (
		kinds = 0xf0 // the bits of the first byte that all kinds have in common
		first = 0x50
	)
	return len(head) > 0 && head[0]&kinds == first && bytes.HasPrefix(head[1:], []byte("\x2a\x4d\x18"))
}

// unwrap reads the content of a compressed stream. After an error of the source
// itself, that error is the one to report. Close frees what reading needs; it
// does not close the source.
func (s *Store) unwrap(ctx context.Context, w wrapper, source io.Reader) (io.ReadCloser, error) {
	watched := &sourceErrors{source: source}
	var inner io.ReadCloser
	var err error
	switch w {
	case wrapperGzip:
		inner, err = gzip.NewReader(watched)
	case wrapperZstd:
		var decoder *zstd.Decoder
		decoder, err = zstd.NewReader(watched, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err == nil {
			inner = decoder.IOReadCloser()
		}
	case wrapperXZ:
		inner, err = s.startXZ(ctx, watched)
	default:
		inner = io.NopCloser(watched)
	}
	if err != nil {
		return nil, watched.explain(w, err)
	}
	return &unwrapped{ReadCloser: inner, wrapper: w, source: watched}, nil
}

// unwrapped is a decompressed stream whose errors say what is wrong.
type unwrapped struct {
	io.ReadCloser
	wrapper wrapper
	source  *sourceErrors
}

func (u *unwrapped) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = u.source.explain(u.wrapper, err)
	}
	return n, err
}

// sourceErrors remembers the error of the compressed stream, which the goroutine that
// feeds xz may be reading.
type sourceErrors struct {
	source io.Reader
	err    atomic.Pointer[error]
}

func (s *sourceErrors) Read(p []byte) (int, error) {
	n, err := s.source.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err.Store(&err)
	}
	return n, err
}

// explain tells a broken connection from a broken stream.
func (s *sourceErrors) explain(w wrapper, err error) error {
	if broken := s.err.Load(); broken != nil {
		return *broken
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return tooMuchMemory(w)
	}
	var known *classedError
	if w == wrapperNone || errors.As(err, &known) {
		return err
	}
	return classed(errNoDisk, "the %s stream is damaged: %w", w, err)
}

func tooMuchMemory(w wrapper) error {
	return classed(errNoDisk, "the %s stream needs more than %d bytes of memory", w, maxWindow)
}
