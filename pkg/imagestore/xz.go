package imagestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	xzMemory = "--as=402653184" // of all of xz, in bytes of address space
	xzFull   = "Memory usage limit reached"
)

// xzReader is a running xz. It is read by one goroutine.
type xzReader struct {
	output  io.ReadCloser
	cmd     *exec.Cmd
	cancel  context.CancelFunc
	stopped func() error // why nobody wants the output any more, or nil
	message *limitedBuffer
	waited  bool
	err     error
}

// startXZ runs xz in the sandbox: libraries in Go take many times as long. For zstd
// the contrary is true: the program's pipes cost more than the library does.
func (s *Store) startXZ(ctx context.Context, source io.Reader) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	x := &xzReader{cancel: cancel, message: &limitedBuffer{room: maxToolOutput}}
	x.stopped = func() error { return context.Cause(ctx) }
	limit := fmt.Sprintf("--memlimit-decompress=%dMiB", maxWindow>>20+1) // besides the window, xz needs less than 1 MiB
	x.cmd = sandboxed(ctx, s.opts.QEMU, []string{xzMemory}, "xz", "--decompress", "--stdout", "--threads=1", limit)
	x.cmd.Stdin, x.cmd.Stderr = source, x.message
	var err error
	if x.output, err = x.cmd.StdoutPipe(); err == nil {
		err = x.cmd.Start()
	}
	if err != nil {
		err = x.explain(err)
		cancel()
		return nil, err
	}
	return x, nil
}

// Read ends with the verdict of xz, not merely with its output.
func (x *xzReader) Read(p []byte) (int, error) {
	n, err := x.output.Read(p)
	if n > 0 || err == nil {
		return n, nil
	}
	if err := x.wait(); err != nil {
		return 0, x.explain(err)
	}
	return 0, err
}

func (x *xzReader) wait() error {
	if !x.waited {
		x.waited, x.err = true, x.cmd.Wait()
	}
	return x.err
}

// explain says why xz did not run, or not to its end.
func (x *xzReader) explain(err error) error {
	if cause := x.stopped(); cause != nil {
		return classed(cause, "xz was stopped: %w", cause)
	}
	if absent := missing(err, "xz", "xz-utils"); absent != nil {
		return absent
	}
	exit, ended := errors.AsType[*exec.ExitError](err)
	switch {
	case !ended || !exit.Exited():
		return classed(errdefs.ErrUnavailable, "run xz: %w", err)
	case strings.Contains(x.message.String(), xzFull):
		return tooMuchMemory(wrapperXZ)
	}
	return fmt.Errorf("%w: %s", err, excerpt(x.message.String()))
}

// Close stops xz if it still runs.
func (x *xzReader) Close() error {
	x.cancel()
	_ = x.wait() // it was told to stop; what it says to that does not matter
	return nil
}
