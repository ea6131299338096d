// Package logind stands in for systemd-logind, for kubelets on machines that do not run
// systemd: a private system bus on which somebody answers to logind's name, hands out
// inhibitor locks and announces shutdowns that never come.
//
// What it says follows org.freedesktop.login1(5), as far as kubelet asks: the property
// InhibitDelayMaxUSec, the method Inhibit and the signal PrepareForShutdown.
//
// Concurrency: all methods may be called concurrently.
//
// Trap: a lock is a descriptor and is released when its last copy is closed. Ours, from
// which the bus takes its own, is closed when a shutdown is announced and not before:
// nobody tells when the answer has been sent.
package logind

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
)

const (
	name    = "org.freedesktop.login1"
	object  = "/org/freedesktop/login1"
	manager = name + ".Manager"
)

// maxDelay is for how long logind lets locks delay a shutdown; kubelet rewrites
// logind's configuration if it wants more.
const maxDelay = 10 * time.Minute

// busTime bounds the wait for the bus's socket.
const busTime = 30 * time.Second

const config = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>%s</listen>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
  </policy>
</busconfig>
`

// Logind is one bus and its logind.
type Logind struct {
	address string
	bus     *exec.Cmd
	conn    *dbus.Conn
	watch   sync.WaitGroup // one for each lock

	mu    sync.Mutex // guards the rest
	ours  []*os.File // our copies of locks
	ends  []*os.File // where their release is seen
	locks int
}

// Start runs a bus in a folder, whose path must be short.
func Start(ctx context.Context, dir string) (*Logind, error) {
	l := &Logind{address: "unix:path=" + filepath.Join(dir, "bus")}
	file := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, config, l.address), 0o600); err != nil {
		return nil, fmt.Errorf("configure bus: %w", err)
	}
	l.bus = exec.CommandContext(context.WithoutCancel(ctx), "dbus-daemon", "--config-file="+file, "--nofork", "--nopidfile")
	if err := l.bus.Start(); err != nil {
		return nil, fmt.Errorf("start dbus-daemon, of the Debian package dbus-daemon: %w", err)
	}
	if err := l.serve(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Logind) serve(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, busTime)
	defer cancel()
	if err := l.connect(ctx); err != nil {
		return err
	}
	if err := l.conn.ExportMethodTable(map[string]any{"Inhibit": l.inhibit}, object, manager); err != nil {
		return fmt.Errorf("serve logind: %w", err)
	}
	delay := &prop.Prop{Value: uint64(maxDelay.Microseconds()), Emit: prop.EmitFalse} //nolint:gosec // positive
	if _, err := prop.Export(l.conn, object, prop.Map{manager: {"InhibitDelayMaxUSec": delay}}); err != nil {
		return fmt.Errorf("serve logind: %w", err)
	}
	if reply, err := l.conn.RequestName(name, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		return fmt.Errorf("take logind's name: answer %d: %w", reply, errors.Join(err, errdefs.ErrFailedPrecondition))
	}
	return nil
}

// connect waits for the bus's socket.
func (l *Logind) connect(ctx context.Context) error {
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := dbus.Dial(l.address)
		if err == nil {
			l.conn = conn
			return l.greet(ctx)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("connect to bus: %w: %w", err, ctx.Err())
		case <-again.C:
		}
	}
}

// greet gives up with the context: a bus that does not answer is waited for without end.
func (l *Logind) greet(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { _ = l.conn.Close() })()
	if err := l.conn.Auth(nil); err != nil {
		return fmt.Errorf("connect to bus: %w", err)
	}
	if err := l.conn.Hello(); err != nil {
		return fmt.Errorf("connect to bus: %w", err)
	}
	return nil
}

// Address is the value of DBUS_SYSTEM_BUS_ADDRESS.
func (l *Logind) Address() string { return l.address }

// inhibit is logind's Inhibit.
func (l *Logind) inhibit(what, _, _, mode string) (dbus.UnixFD, *dbus.Error) {
	if what != "shutdown" || mode != "delay" {
		return 0, dbus.MakeFailedError(fmt.Errorf("%s locks of %s: %w", mode, what, errdefs.ErrNotImplemented))
	}
	end, lock, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ours, l.ends = append(l.ours, lock), append(l.ends, end)
	l.locks++
	l.watch.Go(func() {
		_, _ = end.Read(make([]byte, 1)) // nobody writes: it ends with the last copy
		l.mu.Lock()
		defer l.mu.Unlock()
		l.locks--
	})
	return dbus.UnixFD(lock.Fd()), nil //nolint:gosec // descriptors are small
}

// Locks is how many locks are held.
func (l *Logind) Locks() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.locks
}

// Announce says that the machine shuts down, or that it does not after all.
func (l *Logind) Announce(shutdown bool) error {
	if err := l.forget(); err != nil {
		return err
	}
	if err := l.conn.Emit(object, manager+".PrepareForShutdown", shutdown); err != nil {
		return fmt.Errorf("announce shutdown: %w", err)
	}
	return nil
}

// forget closes our copies of locks.
func (l *Logind) forget() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var failures error
	for _, lock := range l.ours {
		failures = errors.Join(failures, lock.Close())
	}
	l.ours = nil
	return failures
}

// Close ends the bus and with it all locks.
func (l *Logind) Close() error {
	var failures error
	if l.conn != nil {
		failures = l.conn.Close()
	}
	failures = errors.Join(failures, l.bus.Process.Kill())
	_ = l.bus.Wait() // it was killed
	failures = errors.Join(failures, l.forget())
	for _, end := range l.ends {
		failures = errors.Join(failures, end.Close())
	}
	l.watch.Wait()
	return failures
}
