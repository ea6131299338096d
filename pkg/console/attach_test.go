package console

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const attachPatience = 30 * time.Second

// fakeConsole is QEMU's end of a console's socket: one client at a time.
type fakeConsole struct {
	t       *testing.T
	socket  string
	clients chan net.Conn
	dials   int
	mu      sync.Mutex
}

func newFakeConsole(t *testing.T) *fakeConsole {
	t.Helper()
	c := &fakeConsole{t: t, socket: filepath.Join(t.TempDir(), "c"), clients: make(chan net.Conn, 4)}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", c.socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			c.clients <- conn
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-done
	})
	return c
}

func (c *fakeConsole) dial(ctx context.Context, socket string) (net.Conn, error) {
	c.mu.Lock()
	c.dials++
	c.mu.Unlock()
	return (&net.Dialer{}).DialContext(ctx, "unix", socket)
}

// guest returns the connection that QEMU has now.
func (c *fakeConsole) guest() net.Conn {
	c.t.Helper()
	select {
	case conn := <-c.clients:
		c.t.Cleanup(func() { _ = conn.Close() })
		return conn
	case <-time.After(attachPatience):
		c.t.Fatal("nobody connects to the console")
		return nil
	}
}

// terminal is a client with a keyboard and a screen.
type terminal struct {
	keys   *io.PipeWriter
	screen *io.PipeReader
	result chan error
}

func attach(t *testing.T, a *Attachments, ctx context.Context, socket string) *terminal { //nolint:revive // t comes first
	t.Helper()
	in, keys := io.Pipe()
	screen, out := io.Pipe()
	term := &terminal{keys: keys, screen: screen, result: make(chan error, 1)}
	go func() {
		err := a.Attach(ctx, socket, Client{In: in, Out: out, Detach: true})
		_ = in.Close()
		_ = out.Close()
		term.result <- err
	}()
	t.Cleanup(func() { _ = keys.Close(); _ = screen.Close() })
	return term
}

func (term *terminal) see(t *testing.T, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(term.screen, got); err != nil || string(got) != want {
		t.Fatalf("screen shows %q (%v), want %q", got, err, want)
	}
}

func (term *terminal) press(t *testing.T, keys string) {
	t.Helper()
	if _, err := io.WriteString(term.keys, keys); err != nil {
		t.Fatal(err)
	}
}

func (term *terminal) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-term.result:
		return err
	case <-time.After(attachPatience):
		t.Fatal("the attachment does not end")
		return nil
	}
}

// connected waits until the guest has n clients' worth of screens.
func connected(t *testing.T, a *Attachments, socket string, n int) {
	t.Helper()
	deadline := time.After(attachPatience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		a.mu.Lock()
		h := a.hubs[socket]
		a.mu.Unlock()
		if h == nil && n == 0 {
			return
		}
		if h != nil {
			h.mu.Lock()
			count := len(h.screens)
			h.mu.Unlock()
			if count == n {
				return
			}
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("gave up waiting for %d clients", n)
		}
	}
}

func TestClientsShareTheConsole(t *testing.T) {
	t.Parallel()
	c := newFakeConsole(t)
	a := NewAttachments(c.dial)
	first := attach(t, a, t.Context(), c.socket)
	guest := c.guest()
	second := attach(t, a, t.Context(), c.socket)
	connected(t, a, c.socket, 2)

	if _, err := io.WriteString(guest, "login: "); err != nil {
		t.Fatal(err)
	}
	first.see(t, "login: ")
	second.see(t, "login: ")

	second.press(t, "root\n")
	got := make([]byte, 5)
	if _, err := io.ReadFull(guest, got); err != nil || string(got) != "root\n" {
		t.Errorf("the guest got %q, %v", got, err)
	}
	if c.dials != 1 {
		t.Errorf("%d connections to a console that serves one", c.dials)
	}

	first.press(t, "\x1d")
	if err := first.end(t); err != nil {
		t.Errorf("detached client: %v", err)
	}
	if _, err := io.WriteString(guest, "still on"); err != nil {
		t.Fatal(err)
	}
	second.see(t, "still on")

	_ = guest.Close() // the VM ends
	if err := second.end(t); err != nil {
		t.Errorf("client of a VM that ended: %v", err)
	}
	connected(t, a, c.socket, 0)
}

func TestDetachKeyEndsAndWhatCameBeforeIsTyped(t *testing.T) {
	t.Parallel()
	c := newFakeConsole(t)
	term := attach(t, NewAttachments(c.dial), t.Context(), c.socket)
	guest := c.guest()
	term.press(t, "exit\r\x1drm -rf")
	if err := term.end(t); err != nil {
		t.Error(err)
	}
	typed, err := io.ReadAll(guest)
	if err != nil || string(typed) != "exit\r" {
		t.Errorf("the guest got %q, %v; want no more than %q", typed, err, "exit\r")
	}
}

func TestWithoutTerminalAllBytesAreTyped(t *testing.T) {
	t.Parallel()
	c := newFakeConsole(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	a := NewAttachments(c.dial)
	go func() {
		done <- a.Attach(ctx, c.socket, Client{In: strings.NewReader("a\x1db"), Out: io.Discard})
	}()
	guest := c.guest()
	got := make([]byte, 3)
	if _, err := io.ReadFull(guest, got); err != nil || string(got) != "a\x1db" {
		t.Errorf("the guest got %q, %v", got, err)
	}
	// The input has ended; the attachment goes on until the context ends it.
	select {
	case err := <-done:
		t.Errorf("ended with its input: %v", err)
	default:
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
	if _, err := guest.Read(got); !errors.Is(err, io.EOF) {
		t.Errorf("the connection of the last client stays: %v", err)
	}
}

// stuck never takes output, until it is let go.
type stuck struct{ let chan struct{} }

func (s stuck) Write(p []byte) (int, error) {
	<-s.let
	return len(p), nil
}

func TestStuckClientHoldsUpNeitherOthersNorTheGuest(t *testing.T) {
	t.Parallel()
	c := newFakeConsole(t)
	a := NewAttachments(c.dial)
	let := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	stuckDone := make(chan error, 1)
	go func() { stuckDone <- a.Attach(ctx, c.socket, Client{Out: stuck{let}}) }()
	guest := c.guest()
	live := attach(t, a, t.Context(), c.socket)
	connected(t, a, c.socket, 2)

	line := strings.Repeat("x", 1023) + "\n"
	const lines = 4 * maxBacklog / 1024
	// Line by line, so that the live client keeps up on the busiest machine.
	for range lines {
		if _, err := io.WriteString(guest, line); err != nil {
			t.Fatal(err)
		}
		live.see(t, line)
	}
	a.mu.Lock()
	h := a.hubs[c.socket]
	a.mu.Unlock()
	h.mu.Lock()
	for screen := range h.screens {
		screen.mu.Lock()
		if n := len(screen.waiting); n > maxBacklog {
			t.Errorf("%d bytes are kept for a client, the bound is %d", n, maxBacklog)
		}
		screen.mu.Unlock()
	}
	h.mu.Unlock()
	cancel()
	if err := <-stuckDone; !errors.Is(err, context.Canceled) {
		t.Errorf("stuck client: %v", err)
	}
	close(let)
}

func TestGuestThatReadsNothingHoldsUpNobody(t *testing.T) {
	t.Parallel()
	guest, connection := net.Pipe() // without any buffer
	a := NewAttachments(func(context.Context, string) (net.Conn, error) { return connection, nil })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Attach(ctx, "s", Client{In: strings.NewReader("anybody there?"), Out: io.Discard}) }()
	looker := attach(t, a, t.Context(), "s")
	connected(t, a, "s", 2)
	go func() { _, _ = io.WriteString(guest, "busy") }()
	looker.see(t, "busy")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
	_ = guest.Close()
	if err := looker.end(t); err != nil {
		t.Error(err)
	}
}

func TestConsoleThatCannotBeReachedIsNamed(t *testing.T) {
	t.Parallel()
	a := NewAttachments(func(context.Context, string) (net.Conn, error) { return nil, errors.New("no such file") })
	err := a.Attach(t.Context(), "/run/vm/console.sock", Client{})
	if err == nil || !strings.Contains(err.Error(), "/run/vm/console.sock") {
		t.Errorf("%v", err)
	}
}

func TestClientWhoseScreenBreaksEnds(t *testing.T) {
	t.Parallel()
	c := newFakeConsole(t)
	term := attach(t, NewAttachments(c.dial), t.Context(), c.socket)
	guest := c.guest()
	_ = term.screen.Close()
	go func() { _, _ = io.WriteString(guest, "hello") }()
	if err := term.end(t); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v, want the screen's error", err)
	}
}

func TestBacklogSaysHowMuchItLeftOut(t *testing.T) {
	t.Parallel()
	b := newBacklog(new(atomic.Int64))
	b.add(bytes.Repeat([]byte("a"), maxBacklog))
	b.add([]byte("bcd"))
	b.add([]byte("e"))
	b.end()
	var out bytes.Buffer
	if err := b.showAll(&out); err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("a", maxBacklog) + "\r\n[4 bytes of output were left out: this client is too slow]\r\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("output differs: %s", diff)
	}
}
