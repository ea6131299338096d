package vmctl

import (
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"k8s.io/client-go/tools/remotecommand"
)

// Terminal is a person's terminal in raw mode: all keys go to the other end. Close it
// in any case, else the shell is left with it.
type Terminal struct {
	file  *os.File
	saved *term.State
	sizes chan remotecommand.TerminalSize

	changes chan os.Signal
	closed  chan struct{}
	once    sync.Once
	done    sync.WaitGroup
}

// IsTerminal tells whether a file is a terminal.
func IsTerminal(file *os.File) bool { return term.IsTerminal(int(file.Fd())) }

// OpenTerminal makes a terminal raw and follows its size.
func OpenTerminal(file *os.File) (*Terminal, error) {
	saved, err := term.MakeRaw(int(file.Fd()))
	if err != nil {
		return nil, fmt.Errorf("make the terminal raw: %w", err)
	}
	t := &Terminal{
		file: file, saved: saved, sizes: make(chan remotecommand.TerminalSize, 1),
		changes: make(chan os.Signal, 1), closed: make(chan struct{}),
	}
	signal.Notify(t.changes, unix.SIGWINCH)
	t.done.Go(t.follow)
	return t, nil
}

// follow offers the latest size, the first one too.
func (t *Terminal) follow() {
	for {
		if width, height, err := term.GetSize(int(t.file.Fd())); err == nil {
			select {
			case <-t.sizes: // nobody took the previous one
			default:
			}
			t.sizes <- remotecommand.TerminalSize{Width: uint16(width), Height: uint16(height)} //nolint:gosec // as the kernel has them
		}
		select {
		case <-t.changes:
		case <-t.closed:
			close(t.sizes)
			return
		}
	}
}

// Next implements remotecommand.TerminalSizeQueue.
func (t *Terminal) Next() *remotecommand.TerminalSize {
	size, more := <-t.sizes
	if !more {
		return nil
	}
	return &size
}

// Close makes the terminal what it was.
func (t *Terminal) Close() error {
	var err error
	t.once.Do(func() {
		signal.Stop(t.changes)
		close(t.closed)
		t.done.Wait()
		err = term.Restore(int(t.file.Fd()), t.saved)
	})
	if err != nil {
		return fmt.Errorf("restore the terminal: %w", err)
	}
	return nil
}
