package guestexec

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/guestagent"
	"github.com/ambipod/ambipod/pkg/guestexec/wire"
	"github.com/ambipod/ambipod/pkg/unixsocket"
)

// launchPatience is the default of Options.Patience; emulated guests take seconds.
const launchPatience = 2 * time.Minute

// ErrUnsupported says that the guest cannot have a helper: the VM has no channel for
// it, the agent may not start programs, or the guest runs no such programs. It is an
// errdefs.ErrFailedPrecondition.
var ErrUnsupported = fmt.Errorf("commands with streams do not work in this guest: %w", errdefs.ErrFailedPrecondition)

// VM is where a command is to run.
type VM struct {
	ID     string // of the container, for logs and for Forget
	Name   string // what errors call it
	Socket string // of the VM's wire.Port
	Agent  *guestagent.Agent
}

// Command is a program to run in a guest, as root, in the root folder.
type Command struct {
	Argv []string // the program, looked up in the guest's PATH, and its arguments
	Env  []string // NAME=value, over the environment that the guest gives
	TTY  bool     // give it a terminal: Stdout then has all output

	Stdin          io.Reader // nil: the program has an input that is empty
	Stdout, Stderr io.Writer // nil: output is thrown away
	// Resize has the terminal's sizes, the first one too; nil if it never has any.
	Resize <-chan wire.Size
}

// Options configure an Executor; all are required unless they say otherwise.
type Options struct {
	Helper string // path of vmguest on the node
	// SocketOwners are the users that a VM's socket and its listener may belong to.
	SocketOwners []int
	// Patience is how long a helper may take to come up in a guest, from the first word
	// to the agent on; 0 is two minutes.
	Patience time.Duration
	Logger   *slog.Logger
}

// Executor runs commands in guests. Use New, and Close after use.
type Executor struct {
	options Options

	launches sync.WaitGroup
	stop     context.Context //nolint:containedctx // the lifetime of launches, which no caller owns
	cancel   context.CancelFunc

	running, begun atomic.Int64 // commands

	mu    sync.Mutex // guards slots
	slots map[string]*slot
}

// slot has a VM's session, or the attempt to make one.
type slot struct {
	done    chan struct{} // closed when session and err are set
	session *session
	err     error
}

// New returns an Executor without sessions.
func New(o Options) *Executor {
	o.Patience = cmp.Or(o.Patience, launchPatience)
	ctx, cancel := context.WithCancel(context.Background())
	return &Executor{options: o, stop: ctx, cancel: cancel, slots: map[string]*slot{}}
}

// Run runs a command and returns its exit code, 128 and the signal's number if a
// signal ended it. When the context ends first, the program is killed and the
// context's error returned. Run does not close the streams of the command; its last
// read of Stdin ends when the caller closes that.
//
// Errors: guestagent.ErrNoAgent; ErrUnsupported; errdefs.ErrInvalidArgument when the
// program cannot be started; errdefs.ErrUnavailable when the guest broke the
// conversation off.
func (e *Executor) Run(ctx context.Context, vm VM, c Command) (int, error) {
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return 0, fmt.Errorf("run a command in %s: no command given: %w", vm.Name, errdefs.ErrInvalidArgument)
	}
	s, err := e.session(ctx, vm)
	if err != nil {
		return 0, fmt.Errorf("run %s in %s: %w", c.Argv[0], vm.Name, err)
	}
	e.begun.Add(1)
	e.running.Add(1)
	defer e.running.Add(-1)
	code, err := s.run(ctx, c)
	if err != nil {
		return 0, fmt.Errorf("run %s in %s: %w", c.Argv[0], vm.Name, err)
	}
	return code, nil
}

// Counts are figures about all VMs.
type Counts struct {
	Sessions int   // VMs in which the helper runs, or is being started
	Running  int   // commands
	Begun    int64 // commands, since the Executor was made
}

// Counts tells how busy the Executor is.
func (e *Executor) Counts() Counts {
	e.mu.Lock()
	defer e.mu.Unlock()
	return Counts{Sessions: len(e.slots), Running: int(e.running.Load()), Begun: e.begun.Load()}
}

// Forget ends a VM's session, if it has one. Call it when the VM has ended.
func (e *Executor) Forget(id string) {
	e.mu.Lock()
	old := e.slots[id]
	delete(e.slots, id)
	e.mu.Unlock()
	if old != nil {
		e.launches.Go(old.discard)
	}
}

// Close ends all sessions, and with them the commands that run.
func (e *Executor) Close() {
	e.cancel()
	e.mu.Lock()
	ids := make([]string, 0, len(e.slots))
	for id := range e.slots {
		ids = append(ids, id)
	}
	e.mu.Unlock()
	for _, id := range ids {
		e.Forget(id)
	}
	e.launches.Wait()
}

// discard ends the session once there is one.
func (s *slot) discard() {
	<-s.done
	if s.session != nil {
		s.session.close()
	}
}

// session returns a live session with a VM.
func (e *Executor) session(ctx context.Context, vm VM) (*session, error) {
	for {
		current, fresh := e.slot(vm) //nolint:contextcheck // a launch outlives the call that asked for it
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the helper in the guest is not ready yet: %w", ctx.Err())
		case <-current.done:
		}
		if current.err != nil {
			return nil, current.err
		}
		if fresh {
			return current.session, nil
		}
		err := current.session.check(ctx)
		if err == nil {
			return current.session, nil
		}
		if !current.session.mux.IsClosed() {
			return nil, err
		}
		e.options.Logger.InfoContext(ctx, "session with the helper in a guest has ended", "container", vm.ID, "err", err)
		e.replace(vm.ID, current)
	}
}

// slot returns the VM's slot. A fresh one, made by this very call, is being launched.
func (e *Executor) slot(vm VM) (current *slot, fresh bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if current := e.slots[vm.ID]; current != nil {
		return current, false
	}
	made := &slot{done: make(chan struct{})}
	e.slots[vm.ID] = made
	e.launches.Go(func() {
		defer close(made.done)
		// The callers may give up; the next one will be glad of the session.
		ctx, cancel := context.WithTimeout(e.stop, e.options.Patience)
		defer cancel()
		made.session, made.err = e.launch(ctx, vm)
		if made.err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			// That deadline is not the caller's: only its words are passed on.
			made.err = fmt.Errorf("the helper did not come up in the guest within %s, see whether the guest is busy or short of memory: %w: %s",
				e.options.Patience, errdefs.ErrUnavailable, made.err.Error())
		}
		if made.err != nil {
			e.remove(vm.ID, made)
		}
	})
	return made, true
}

// replace takes a slot whose session has broken out of use.
func (e *Executor) replace(id string, old *slot) {
	e.remove(id, old)
	e.launches.Go(old.discard)
}

func (e *Executor) remove(id string, old *slot) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.slots[id] == old {
		delete(e.slots, id)
	}
}

// launch connects to the VM's port, sends the helper into the guest and greets it.
func (e *Executor) launch(ctx context.Context, vm VM) (_ *session, err error) {
	connection, err := unixsocket.Dial(ctx, vm.Socket, e.options.SocketOwners...)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("the VM has no channel %s, create the pod anew: %w: %w", wire.Port, ErrUnsupported, err)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, connection.Close())
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = connection.SetDeadline(past) })
	defer stop()
	started := time.Now()
	buffered := bufio.NewReader(connection)
	token, err := deliver(ctx, vm.Agent, e.options.Helper, connection, buffered)
	if err != nil {
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	s, err := begin(connection, buffered, token)
	if err != nil {
		return nil, err
	}
	e.options.Logger.InfoContext(ctx, "helper runs in the guest", "container", vm.ID, "took", time.Since(started).Round(time.Millisecond))
	return s, nil
}
