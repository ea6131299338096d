//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"k8s.io/client-go/tools/remotecommand"

	"github.com/ambipod/ambipod/tests/node"
)

// Keys: Ctrl-] detaches, Ctrl-U takes back what was typed on a line.
const (
	detachKey = "\x1d"
	killLine  = "\x15"
)

// terminal is somebody who is attached to a serial console.
type terminal struct {
	keys   *io.PipeWriter
	screen *io.PipeReader
	done   chan error
}

// attach opens a terminal; who does not read its screen is stuck.
func (p *pod) attach(t *testing.T) *terminal {
	t.Helper()
	in, keys := io.Pipe()
	screen, out := io.Pipe()
	term := &terminal{keys: keys, screen: screen, done: make(chan error, 1)}
	go func() {
		err := p.stream(t, deadline(t), remotecommand.StreamOptions{Stdin: in, Stdout: out, Tty: true})
		_ = out.CloseWithError(errors.Join(io.EOF, err))
		term.done <- err
	}()
	t.Cleanup(func() { _ = keys.Close(); _ = screen.Close() })
	return term
}

func (term *terminal) typeIn(keys string) {
	go func() { _, _ = io.WriteString(term.keys, keys) }()
}

// see reads the screen until it has shown something.
func (term *terminal) see(t *testing.T, want string) {
	t.Helper()
	if err := term.shows(want); err != nil {
		t.Fatal(err)
	}
}

func (term *terminal) shows(want string) error {
	var seen []byte
	buffer := make([]byte, 4096)
	for !strings.Contains(string(seen), want) {
		n, err := term.screen.Read(buffer)
		seen = append(seen[max(0, len(seen)-len(want)):], buffer[:n]...)
		if err != nil {
			return fmt.Errorf("the screen ends with %q, want %q: %w", seen, want, err)
		}
	}
	return nil
}

// detach ends the terminal, and nothing else.
func (term *terminal) detach(t *testing.T) {
	t.Helper()
	term.typeIn(detachKey)
	go func() { _, _ = io.Copy(io.Discard, term.screen) }()
	if err := <-term.done; err != nil {
		t.Errorf("detached client: %v", err)
	}
}

// accessConsole attaches two clients to the serial console.
func accessConsole(t *testing.T, p *pod) {
	first := p.attach(t)
	first.typeIn("\r")
	first.see(t, "login:")
	second := p.attach(t)
	second.typeIn("somebody")
	second.see(t, "somebody")
	first.see(t, "somebody")
	first.detach(t)
	second.typeIn("else")
	second.see(t, "else")
	second.detach(t)
}

// accessStuck has a client that reads nothing while its guest prints: the guest, the
// log, the other client and commands go on, and it can leave. An emulated serial line
// is too slow to fill all buffers on the way; pkg/console's tests have none.
func accessStuck(t *testing.T, p *pod) {
	stuck, well := p.attach(t), p.attach(t)
	stuck.typeIn(killLine + "\r")
	stuck.see(t, "login:")
	well.typeIn("\r")
	well.see(t, "login:")
	seen := make(chan error, 1)
	go func() { seen <- well.shows("end of the flood") }()
	p.sync(t, "yes 'a line for a client that does not read it' | head -c 8000 >/dev/ttyS0; echo end of the'' flood >/dev/ttyS0")
	if err := <-seen; err != nil {
		t.Error(err)
	}
	if _, err := node.WaitPodLog(deadline(t), p.logPath(), "end of the flood"); err != nil {
		t.Error(err)
	}
	well.detach(t)
	stuck.detach(t)
}
