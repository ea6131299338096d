package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// detachKey ends an attachment that asks for it: Ctrl-], as in virsh and telnet. A
// terminal passes all other keys on, Ctrl-C too.
const detachKey = 0x1d

// inputTimeout is for how long a guest may leave what is typed unread; then it is
// thrown away, so that one client's input does not hold up another's.
const inputTimeout = 5 * time.Second

// Attachments connects clients with the consoles of running VMs. QEMU serves one
// connection of a console at a time, so all clients of a console share one, which
// exists while there are any. Clients see what is printed while they are attached.
//
// The output for a client that is slower than the guest is bounded: what does not
// fit is left out, and the client is told so. No client holds up another, the log or
// the guest.
type Attachments struct {
	dial func(ctx context.Context, socket string) (net.Conn, error)

	mu   sync.Mutex // guards hubs and their count of clients
	hubs map[string]*hub

	dropped atomic.Int64 // bytes
}

// Counts are figures about all consoles.
type Counts struct {
	Clients int   // attached now
	Dropped int64 // bytes that clients were too slow for
}

// Counts tells how busy the consoles are.
func (a *Attachments) Counts() Counts {
	a.mu.Lock()
	defer a.mu.Unlock()
	counts := Counts{Dropped: a.dropped.Load()}
	for _, h := range a.hubs {
		counts.Clients += h.clients
	}
	return counts
}

// NewAttachments returns Attachments without clients; dial connects to the socket of
// a console.
func NewAttachments(dial func(ctx context.Context, socket string) (net.Conn, error)) *Attachments {
	return &Attachments{dial: dial, hubs: map[string]*hub{}}
}

// Client is one end of an attachment.
type Client struct {
	In     io.Reader // what is typed; nil for a client that only looks
	Out    io.Writer // what the guest prints; nil for a client that only types
	Detach bool      // Ctrl-] in In ends the attachment
}

// Attach connects a client with a console until the VM ends or the client detaches,
// which both are no errors, until its Out fails or the context ends. The end of In
// alone does not end it. Its last read of In, or write to Out, may outlast Attach: it
// ends when the caller closes these.
func (a *Attachments) Attach(ctx context.Context, socket string, c Client) error {
	h, err := a.join(ctx, socket)
	if err != nil {
		return fmt.Errorf("attach to console %s: %w", socket, err)
	}
	defer a.leave(socket, h)
	screen := newBacklog(&a.dropped)
	h.add(screen)
	defer h.remove(screen)

	detached := make(chan struct{})
	if c.In != nil {
		go func() {
			if h.typeAll(c.In, c.Detach) {
				close(detached)
			}
		}()
	}
	shown := make(chan error, 1)
	go func() { shown <- screen.showAll(c.Out) }()
	select {
	case err := <-shown:
		return err
	case <-detached:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// join returns the console's hub, connected, and counts the client.
func (a *Attachments) join(ctx context.Context, socket string) (*hub, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := a.hubs[socket]; h != nil {
		h.clients++
		return h, nil
	}
	// Under the lock: a second connection would get no output. A local socket
	// connects at once or not at all.
	connection, err := a.dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	h := &hub{connection: connection, done: make(chan struct{}), screens: map[*backlog]struct{}{}, clients: 1}
	a.hubs[socket] = h
	go h.run(func() { a.forget(socket, h) })
	return h, nil
}

// leave ends the hub with its last client.
func (a *Attachments) leave(socket string, h *hub) {
	a.mu.Lock()
	h.clients--
	last := h.clients == 0
	if last && a.hubs[socket] == h {
		delete(a.hubs, socket)
	}
	a.mu.Unlock()
	if last {
		_ = h.connection.Close()
		<-h.done
	}
}

// forget makes the next client connect anew, after the console has closed.
func (a *Attachments) forget(socket string, h *hub) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.hubs[socket] == h {
		delete(a.hubs, socket)
	}
}

// hub is the one connection to a console.
type hub struct {
	connection net.Conn
	done       chan struct{} // closed when run has ended
	clients    int           // guarded by Attachments.mu

	typing sync.Mutex // one write at a time

	mu      sync.Mutex // guards screens, ended
	screens map[*backlog]struct{}
	ended   bool
}

// run shows what the guest prints to all, until the connection ends.
func (h *hub) run(forget func()) {
	defer close(h.done)
	buffer := make([]byte, 32<<10)
	for {
		n, err := h.connection.Read(buffer)
		h.show(buffer[:n])
		if err != nil {
			break
		}
	}
	forget()
	_ = h.connection.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	for screen := range h.screens {
		screen.end()
	}
}

func (h *hub) show(output []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for screen := range h.screens {
		screen.add(output)
	}
}

func (h *hub) add(screen *backlog) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.screens[screen] = struct{}{}
	if h.ended {
		screen.end()
	}
}

func (h *hub) remove(screen *backlog) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.screens, screen)
	screen.end()
}

// typeAll types until the end of the input, and reports whether the client detached.
func (h *hub) typeAll(in io.Reader, detach bool) (detached bool) {
	buffer := make([]byte, 4<<10)
	for {
		n, err := in.Read(buffer)
		input := buffer[:n]
		if detach {
			for i, key := range input {
				if key == detachKey {
					input, detached = input[:i], true
					break
				}
			}
		}
		if h.typeIn(input) != nil || detached || err != nil {
			return detached
		}
	}
}

// typeIn types, or throws away what the guest does not read.
func (h *hub) typeIn(input []byte) error {
	if len(input) == 0 {
		return nil
	}
	h.typing.Lock()
	defer h.typing.Unlock()
	if err := h.connection.SetWriteDeadline(time.Now().Add(inputTimeout)); err != nil {
		return err
	}
	_, err := h.connection.Write(input)
	var network net.Error
	if errors.As(err, &network) && network.Timeout() {
		return nil
	}
	return err
}
