// Package guest runs commands in a guest for pkg/guestexec. It is the whole of
// cmd/vmguest, which the node sends into a guest when it is first needed; package
// wire has the protocol.
//
// Serve is the one entry point. Each command has a session of its own (setsid), a
// terminal of its own if asked for, and is killed, with its process group, when the
// node closes its control stream. Nothing of the helper is left when Serve returns,
// except programs that have left their process group.
package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/yamux"

	"github.com/ambipod/ambipod/pkg/guestexec/wire"
)

// Serve greets the node over its port and runs the commands that it sends, until
// the node goes away, which is no error, or the context ends. It closes the port.
func Serve(ctx context.Context, port io.ReadWriteCloser, token string) error {
	stop := context.AfterFunc(ctx, func() { _ = port.Close() })
	defer stop()
	defer func() { _ = port.Close() }()

	if _, err := io.WriteString(port, wire.Hello(token)); err != nil {
		return fmt.Errorf("greet the node: %w", err)
	}
	buffered := bufio.NewReader(port)
	if err := wire.Await(buffered, wire.Hello(token)); err != nil {
		return err
	}
	session, err := yamux.Server(wire.Conn{Reader: buffered, Writer: port, Closer: port}, wire.SessionConfig())
	if err != nil {
		return fmt.Errorf("begin session: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _, _ = session.GoAway(), session.Close() })()

	// The commands end with their streams, which end with the session.
	var commands sync.WaitGroup
	defer commands.Wait()
	defer func() { _ = session.Close() }()
	for {
		streams, err := accept(session)
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, yamux.ErrSessionShutdown) || ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept a command: %w", err)
		}
		commands.Go(streams.serve)
	}
}

// streams are those of one command.
type streams struct {
	control, stdio, stderr *yamux.Stream
}

// accept waits for the three streams of a command, which the node opens together.
func accept(session *yamux.Session) (s streams, err error) {
	for _, stream := range []**yamux.Stream{&s.control, &s.stdio, &s.stderr} {
		if *stream, err = session.AcceptStream(); err != nil {
			return streams{}, err
		}
	}
	return s, nil
}

// serve runs the command of these streams and closes them.
func (s streams) serve() {
	defer func() {
		for _, stream := range []*yamux.Stream{s.stdio, s.stderr, s.control} {
			_ = stream.Close()
		}
	}()
	control := bufio.NewReader(s.control)
	var request wire.Request
	if err := wire.Receive(control, &request); err != nil {
		return // the node has changed its mind
	}
	event := s.run(request, control)
	_ = wire.Send(s.control, event)
}

func (s streams) run(request wire.Request, control *bufio.Reader) wire.Event {
	c, err := start(request)
	if err != nil {
		return wire.Event{Error: err.Error()}
	}
	var steering sync.WaitGroup
	steering.Go(func() {
		c.steer(control)
		// Output that waits for the node to read some will not be read any more.
		_, _ = s.stdio.SetWriteDeadline(past), s.stderr.SetWriteDeadline(past)
	})
	code := c.copyUntilEnd(s)
	// Ends the reading of controls, and with it steering.
	_ = s.control.SetReadDeadline(past)
	steering.Wait()
	return wire.Event{ExitCode: code}
}
