package guestexec

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/yamux"

	"github.com/ambipod/ambipod/pkg/guestexec/wire"
)

// maxStreams bounds the streams of a session, those that a guest never closes
// included.
const maxStreams = 3 * 100

// checkTimeout bounds the wait for a helper's sign of life.
const checkTimeout = 10 * time.Second

// maxReason bounds what is quoted of a guest's reason for not starting a command.
const maxReason = 500

var past = time.Unix(1, 0)

// session is a conversation with a helper.
type session struct {
	mux *yamux.Session

	mu sync.Mutex // makes the opening of a command's streams one step
}

// begin answers the helper's hello and begins the session. The connection is the
// session's from then on.
func begin(connection net.Conn, buffered *bufio.Reader, token string) (*session, error) {
	if _, err := io.WriteString(connection, wire.Hello(token)); err != nil {
		return nil, fmt.Errorf("greet the helper: %w", err)
	}
	mux, err := yamux.Client(wire.Conn{Reader: buffered, Writer: connection, Closer: connection}, wire.SessionConfig())
	if err != nil {
		return nil, err
	}
	// The helper has no reason to open streams.
	if err := mux.GoAway(); err != nil {
		return nil, errors.Join(err, mux.Close())
	}
	return &session{mux: mux}, nil
}

func (s *session) close() { _ = s.mux.Close() }

// check asks the helper for a sign of life. A guest that was switched off and on
// again does not close its port. A session that has failed the check is closed,
// unless commands run in it: their guest may only be paused.
func (s *session) check(ctx context.Context) error {
	answered := make(chan error, 1)
	go func() {
		_, err := s.mux.Ping()
		answered <- err
	}()
	timer := time.NewTimer(checkTimeout)
	defer timer.Stop()
	select {
	case err := <-answered:
		if err != nil {
			s.close()
		}
		return err
	case <-timer.C:
		if s.mux.NumStreams() == 0 {
			s.close()
		}
		return fmt.Errorf("the helper in the guest does not answer within %s: %w", checkTimeout, errdefs.ErrUnavailable)
	case <-ctx.Done():
		return fmt.Errorf("the helper in the guest does not answer: %w", ctx.Err())
	}
}

// streams are those of one command; see package wire.
type streams struct {
	control, stdio, stderr *yamux.Stream
}

func (s *session) open() (opened streams, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mux.NumStreams() >= maxStreams {
		return streams{}, fmt.Errorf("%d streams of commands are open, end some: %w", maxStreams, errdefs.ErrResourceExhausted)
	}
	for _, stream := range []**yamux.Stream{&opened.control, &opened.stdio, &opened.stderr} {
		if *stream, err = s.mux.OpenStream(); err != nil {
			// The helper counts streams: one too few would mix up all that follow.
			s.close()
			return streams{}, fmt.Errorf("open streams to the guest: %w: %w", err, errdefs.ErrUnavailable)
		}
	}
	return opened, nil
}

// abandon closes all streams and ends whatever waits for them.
func (s streams) abandon() {
	for _, stream := range []*yamux.Stream{s.control, s.stdio, s.stderr} {
		_ = stream.SetDeadline(past)
		_ = stream.Close()
	}
}

// run runs one command to its end.
func (s *session) run(ctx context.Context, c Command) (int, error) {
	opened, err := s.open()
	if err != nil {
		return 0, err
	}
	defer opened.abandon()
	if err := wire.Send(opened.control, wire.Request{Argv: c.Argv, Env: c.Env, TTY: c.TTY}); err != nil {
		return 0, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	ended := make(chan struct{})
	defer close(ended)
	go feed(opened.stdio, c.Stdin)
	go resize(opened.control, c.Resize, ended)

	results := make(chan result, 1)
	go func() { results <- opened.collect(c, ended) }()
	select {
	case r := <-results:
		return r.code, r.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// feed carries input; its own end ends the program's input. A reader that waits for
// its source ends when the source does.
func feed(stdio *yamux.Stream, from io.Reader) {
	if from != nil {
		_, _ = io.Copy(onlyWriter{stdio}, from)
	}
	_ = stdio.Close()
}

// resize tells the helper the terminal's sizes.
func resize(control *yamux.Stream, sizes <-chan wire.Size, ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case size, more := <-sizes:
			if !more {
				return
			}
			if wire.Send(control, wire.Control{Resize: &size}) != nil {
				return
			}
		}
	}
}

type result struct {
	code int
	err  error
}

// collect carries the output and waits for the event that ends the command.
func (s streams) collect(c Command, ended <-chan struct{}) result {
	var outputs sync.WaitGroup
	failures := make(chan error, 2)
	for _, output := range []struct {
		from *yamux.Stream
		to   io.Writer
	}{{s.stdio, c.Stdout}, {s.stderr, c.Stderr}} {
		outputs.Go(func() { failures <- drain(output.to, untilEnd{output.from, ended}) })
	}
	var event wire.Event
	err := wire.Receive(bufio.NewReader(s.control), &event)
	if err == nil && event.Error != "" {
		s.abandon()
		outputs.Wait()
		return result{err: fmt.Errorf("%s: %w", reason(event.Error), errdefs.ErrInvalidArgument)}
	}
	outputs.Wait()
	close(failures)
	for failure := range failures {
		err = errors.Join(err, failure)
	}
	switch {
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("the guest broke the conversation off, it was restarted or is out of memory: %w", errdefs.ErrUnavailable)
	case err == nil && (event.ExitCode < 0 || event.ExitCode > 255):
		err = fmt.Errorf("the guest says that the exit code is %d: %w", event.ExitCode, errdefs.ErrDataLoss)
	}
	return result{event.ExitCode, err}
}

// drain carries output. When nobody takes it any more the rest is thrown away, so
// that the program ends as it would have.
func drain(to io.Writer, from io.Reader) error {
	var writing error
	if to != nil {
		out := &keepError{Writer: to}
		if _, err := io.Copy(out, from); err == nil || out.err == nil {
			return err
		}
		writing = fmt.Errorf("pass output on: %w", out.err)
	}
	_, err := io.Copy(io.Discard, from)
	return errors.Join(writing, err)
}

// keepError tells a writer's error from the reader's.
type keepError struct {
	io.Writer
	err error
}

func (k *keepError) Write(p []byte) (int, error) {
	n, err := k.Writer.Write(p)
	k.err = err
	return n, err
}

// untilEnd ends with the command: a stream that is closed on our side would go on
// for as long as the guest sends.
type untilEnd struct {
	from  io.Reader
	ended <-chan struct{}
}

func (u untilEnd) Read(p []byte) (int, error) {
	select {
	case <-u.ended:
		return 0, io.ErrClosedPipe
	default:
		return u.from.Read(p)
	}
}

// onlyWriter keeps io.Copy from taking short cuts.
type onlyWriter struct{ io.Writer }

// reason makes the guest's words fit for an error.
func reason(text string) string {
	if len(text) > maxReason {
		text = text[:maxReason] + "…"
	}
	return fmt.Sprintf("the guest says %q", text)
}
