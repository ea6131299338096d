package imagestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"

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

const (
	// maxWindow is the largest memory of past bytes that a zstd or xz stream may
	// ask for: what "zstd --long" and "xz -9" use, and no more.
	maxWindow = 128 << 20
	// xzMemory limits all of xz, in bytes of address space.
	xzMemory = "--as=402653184"
)

// wrapping tells by the first bytes how a file is compressed.
func wrapping(head []byte) wrapper {
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b\x08")):
		return wrapperGzip
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return wrapperXZ
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		return wrapperZstd
	}
	return wrapperNone
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

// sourceErrors remembers the error of the compressed stream.
type sourceErrors struct {
	source io.Reader
	err    error
}

func (s *sourceErrors) Read(p []byte) (int, error) {
	n, err := s.source.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// explain tells a broken connection from a broken stream.
func (s *sourceErrors) explain(w wrapper, err error) error {
	if s.err != nil {
		return s.err
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return classed(errNoDisk, "the zstd stream needs more than %d bytes of memory", maxWindow)
	}
	var known *classedError
	if w == wrapperNone || errors.As(err, &known) {
		return err
	}
	return classed(errNoDisk, "the %s stream is damaged: %w", w, err)
}

// xzReader is a running xz.
type xzReader struct {
	io.ReadCloser // its output

	cmd     *exec.Cmd
	cancel  context.CancelFunc
	message *limitedBuffer
	waited  bool
	err     error
}

// startXZ runs xz in the sandbox: libraries in Go take many times as long.
func (s *Store) startXZ(ctx context.Context, source io.Reader) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	x := &xzReader{cancel: cancel, message: &limitedBuffer{room: maxToolOutput}}
	x.cmd = sandboxed(ctx, s.opts.QEMU, []string{xzMemory}, "xz", "--decompress", "--stdout", "--threads=1")
	x.cmd.Stdin, x.cmd.Stderr = source, x.message
	var err error
	if x.ReadCloser, err = x.cmd.StdoutPipe(); err == nil {
		err = x.cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, join(missing(err, "xz", "xz-utils"), fmt.Errorf("run xz: %w", err))
	}
	return x, nil
}

// Read ends with the verdict of xz, not merely with its output.
func (x *xzReader) Read(p []byte) (int, error) {
	n, err := x.ReadCloser.Read(p)
	if n > 0 || err == nil {
		return n, nil
	}
	if err := x.wait(); err != nil {
		if absent := missing(err, "xz", "xz-utils"); absent != nil {
			return 0, absent
		}
		return 0, fmt.Errorf("%w: %s", err, excerpt(x.message.String()))
	}
	return 0, err
}

func (x *xzReader) wait() error {
	if !x.waited {
		x.waited, x.err = true, x.cmd.Wait()
	}
	return x.err
}

// Close stops xz if it still runs.
func (x *xzReader) Close() error {
	x.cancel()
	_ = x.wait() // it was told to stop; what it says to that does not matter
	return nil
}
