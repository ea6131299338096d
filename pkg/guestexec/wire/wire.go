// Package wire is what the node (pkg/guestexec) and its helper in a guest
// (pkg/guestexec/guest) say to each other over the virtio-serial port Port.
//
// First the helper has to get there. The guest agent starts a shell script that opens
// the port and sends the line Ready(TOKEN); the node answers with the line Program(TOKEN)
// and the helper's program, which the script stores and becomes. Then both say hello:
// the helper sends Hello(TOKEN) and the node answers with the same line. TOKEN came
// with the script's command line. Whoever waits for a line skips what comes before it,
// up to maxStale bytes: leftovers of an earlier conversation. Then the connection is a yamux session in which the node opens all
// streams, three for each command and in this order:
//
//	control  node → helper: a Request, then Controls; helper → node: one Event.
//	         JSON, one object a line. The end of this stream ends the command.
//	stdio    node → helper: standard input; helper → node: standard output, or the
//	         terminal's. Each direction ends by itself.
//	stderr   helper → node: standard error; empty with a terminal.
//
// The helper sends the Event when it has sent all output. Neither side trusts the
// other: lines are at most MaxLine bytes, and yamux bounds what a stream may have
// under way, so a stream that nobody reads holds up no other.
package wire

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/yamux"
)

// Port is the name of the virtio-serial port.
const Port = "org.ambipod.exec.0"

// PortDescriptor is the number under which the helper inherits the open port.
const PortDescriptor = 3

// FolderPrefix begins the name of the folder that holds the helper's program in the
// guest until it runs.
const FolderPrefix = ".ambipod."

const (
	// MaxLine bounds a JSON line; Linux allows command lines of about 2 MiB.
	MaxLine = 4 << 20
	// maxStale is what may come before a wanted line: all that the buffers on the way
	// can hold.
	maxStale = 4 << 20
)

// How long one side may be mute before the other gives the session up. A guest that
// is emulated on a busy node, or paused for a snapshot, is slow and not dead.
const (
	aliveInterval = 30 * time.Second
	aliveTimeout  = 30 * time.Second
)

// Size is a terminal's, in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Request starts a command.
type Request struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env,omitempty"` // NAME=value, over the guest's own environment
	TTY  bool     `json:"tty,omitempty"`
}

// Control changes a running command.
type Control struct {
	Resize *Size `json:"resize,omitempty"`
}

// Event ends a command.
type Event struct {
	// Error says in one sentence why the command could not be started.
	Error string `json:"error,omitempty"`
	// ExitCode is the command's, or 128 and the number of the signal that ended it.
	ExitCode int `json:"exitCode"`
}

// Ready is the line of a guest that can receive the helper.
func Ready(token string) string { return "AMBIPOD-READY 1 " + token + "\n" }

// Program is the line of the node after which the helper's program comes.
func Program(token string) string { return "AMBIPOD-PROGRAM 1 " + token + "\n" }

// Hello is the line of both sides before the session.
func Hello(token string) string { return "AMBIPOD-HELLO 1 " + token + "\n" }

// Await reads up to the end of the wanted line. It reads byte by byte, so that
// nothing of what follows is taken away; r should be buffered.
func Await(r io.ByteReader, wanted string) error {
	var line []byte
	for range maxStale {
		b, err := r.ReadByte()
		if err != nil {
			return fmt.Errorf("wait for %q: %w", wanted, err)
		}
		if line = append(line, b); len(line) > len(wanted) {
			line = line[1:]
		}
		// It may come right after leftovers that do not end a line.
		if string(line) == wanted {
			return nil
		}
	}
	return fmt.Errorf("%d bytes without %q", maxStale, wanted)
}

// Conn is a connection whose reading side may already be buffered.
type Conn struct {
	io.Reader
	io.Writer
	io.Closer
}

// SessionConfig is how both sides set up yamux. Streams are never closed by time:
// a command may read its input hours after the last of it was sent.
func SessionConfig() *yamux.Config {
	config := yamux.DefaultConfig()
	config.KeepAliveInterval = aliveInterval
	config.ConnectionWriteTimeout = aliveTimeout
	config.StreamOpenTimeout = 0
	config.StreamCloseTimeout = 0
	config.LogOutput = io.Discard // every error is also returned
	return config
}

// ErrTooLong is returned for a line longer than MaxLine.
var ErrTooLong = errors.New("line is too long")

// Send writes one JSON line.
func Send(w io.Writer, message any) error {
	line, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if _, err := w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// Receive reads one JSON line. It returns io.EOF at the end of the stream.
func Receive(r *bufio.Reader, message any) error {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > MaxLine {
			return ErrTooLong
		}
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) && len(line) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	if err := json.Unmarshal(line, message); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	return nil
}
