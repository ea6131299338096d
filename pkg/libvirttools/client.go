package libvirttools

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"libvirt.org/go/libvirt"
)

// closeGrace is how long Close waits for calls that are under way.
const closeGrace = 5 * time.Second

// defaultSilence is long enough for a libvirtd on a busy node.
const defaultSilence = 30 * time.Second

// Options configure a Client.
type Options struct {
	// URI of libvirtd, for example "qemu:///system". Required.
	URI string
	// Owner tells apart several Ambipod nodes that use one libvirtd. The Client
	// sees and changes only domains that were built with the same owner.
	Owner string
	// Logger gets what no caller learns: lost and regained connections. Required.
	Logger *slog.Logger
	// Silence is for how long libvirtd may be mute before the connection counts as
	// dead; default 30 s, resolution 6 s. Calls whose contexts last longer end then.
	Silence time.Duration
}

// Client drives one libvirtd. It connects when first used and reconnects by
// itself. A libvirtd that cannot be reached makes every method fail with
// errdefs.ErrUnavailable.
type Client struct {
	owner string
	log   *slog.Logger

	acts  *link // changes domains; may be busy for seconds
	looks *link // answers at once
	talks *link // asks guests, who may never answer
	reads *link // asks QEMUs for numbers; a stopped one never answers

	mu     sync.Mutex // guards the rest
	inLoop bool       // holds the event loop
	closed bool
}

// NewClient returns a Client that has not connected yet. Close it after use.
func NewClient(o Options) *Client {
	silence := o.Silence
	if silence == 0 {
		silence = defaultSilence
	}
	return &Client{
		owner: o.Owner,
		log:   o.Logger,
		acts:  &link{uri: o.URI, silence: silence},
		looks: &link{uri: o.URI, silence: silence},
		talks: &link{uri: o.URI, silence: silence},
		reads: &link{uri: o.URI, silence: silence},
	}
}

// Close ends the connections. Guests go on running. Calls that are under way get
// closeGrace to return; if libvirtd hangs, the error says so, and what is left of
// them ends when it answers or dies. That a QEMU still owes its numbers is no error.
func (c *Client) Close() error {
	c.mu.Lock()
	closed, inLoop := c.closed, c.inLoop
	c.closed = true
	c.mu.Unlock()
	if closed {
		return nil
	}
	c.acts.shut()
	c.looks.shut()
	c.talks.shut()
	c.reads.shut()
	answered, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		c.acts.wg.Wait()
		c.looks.wg.Wait()
		c.talks.wg.Wait()
		close(answered)
		c.reads.wg.Wait()
		if inLoop {
			loop.leave() // not before: it serves the calls
		}
	}()
	timer := time.NewTimer(closeGrace)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
	}
	select {
	case <-answered:
		return nil
	default:
		return fmt.Errorf("calls to libvirt at %s have not returned after %s: %w", c.looks.uri, closeGrace, errdefs.ErrUnavailable)
	}
}

// prepare makes sure that the event loop runs, which must be so before libvirt
// opens a connection.
func (c *Client) prepare() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inLoop || c.closed {
		return nil // a closed link has its own answer
	}
	if err := loop.enter(); err != nil {
		return err
	}
	c.inLoop = true
	return nil
}

// act runs fn on the connection for changes.
func act[T any](ctx context.Context, c *Client, fn func(*libvirt.Connect) (T, error)) (T, error) {
	if err := c.prepare(); err != nil {
		var none T
		return none, err
	}
	return call(ctx, c.acts, fn)
}

// look runs fn on the connection for questions.
func look[T any](ctx context.Context, c *Client, fn func(*libvirt.Connect) (T, error)) (T, error) {
	if err := c.prepare(); err != nil {
		var none T
		return none, err
	}
	return call(ctx, c.looks, fn)
}

// Info is what Check found.
type Info struct {
	LibvirtVersion string // of libvirtd, "9.0.0"
	QEMUVersion    string // of the emulator that libvirtd uses by default
}

// Check asks libvirtd whether it can run VMs. Its first call after libvirtd's
// first start may take seconds, in which libvirtd looks at every emulator.
func (c *Client) Check(ctx context.Context) (Info, error) {
	info, err := look(ctx, c, func(conn *libvirt.Connect) (Info, error) {
		daemon, err := conn.GetLibVersion()
		if err != nil {
			return Info{}, err
		}
		emulator, err := conn.GetVersion()
		if err != nil {
			return Info{}, err
		}
		return Info{LibvirtVersion: version(daemon), QEMUVersion: version(emulator)}, nil
	})
	if err != nil {
		return Info{}, fmt.Errorf("check libvirt: %w", err)
	}
	return info, nil
}

// version undoes libvirt's encoding major*1,000,000 + minor*1,000 + release.
func version(n uint32) string {
	return fmt.Sprintf("%d.%d.%d", n/1_000_000, n/1_000%1_000, n%1_000)
}
