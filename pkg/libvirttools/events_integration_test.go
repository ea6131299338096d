//go:build integration

package libvirttools_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/tests/bootsector"
)

func itoa(n int) string { return strconv.Itoa(n) }

// watch collects events until the test ends; the first is the first Resync.
func watch(t *testing.T, c *libvirttools.Client) <-chan libvirttools.Event {
	t.Helper()
	events := make(chan libvirttools.Event, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Watch(ctx, func(e libvirttools.Event) { events <- e }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v", err)
		}
	})
	return events
}

// await returns the next event of that kind about that domain.
func await(t *testing.T, events <-chan libvirttools.Event, kind libvirttools.Kind, id string) libvirttools.Event {
	t.Helper()
	ctx := deadline(t)
	for {
		select {
		case e := <-events:
			if e.Kind == kind && e.UUID == id {
				return e
			}
		case <-ctx.Done():
			t.Fatalf("no event %s about %q", kind, id)
		}
	}
}

func TestEventsSayWhy(t *testing.T) {
	c := client(t)
	events := watch(t, c)
	await(t, events, libvirttools.KindResync, "")
	g := newGuest(t, c)
	await(t, events, libvirttools.KindDefined, g.UUID)
	for _, test := range []struct {
		name   string
		end    func()
		reason libvirttools.Reason
		kind   libvirttools.Kind // seen before the stop
	}{
		{"guest powers off", func() { g.tell(t, bootsector.PowerOff) }, libvirttools.ReasonShutdown, libvirttools.KindStopping},
		{"guest panics", func() { g.tell(t, bootsector.Panic) }, libvirttools.ReasonCrashed, libvirttools.KindCrashed},
		{"QEMU is killed", func() {
			if err := g.process(t).Kill(deadline(t)); err != nil {
				t.Fatal(err)
			}
		}, libvirttools.ReasonCrashed, ""},
		{"destroyed", func() {
			if err := c.Destroy(deadline(t), g.UUID); err != nil {
				t.Fatal(err)
			}
		}, libvirttools.ReasonDestroyed, ""},
	} {
		g.boot(t, c)
		await(t, events, libvirttools.KindStarted, g.UUID)
		test.end()
		if test.kind != "" {
			await(t, events, test.kind, g.UUID)
		}
		if e := await(t, events, libvirttools.KindStopped, g.UUID); e.Reason != test.reason || e.At.IsZero() {
			t.Errorf("%s: stopped for %q at %v, want %q", test.name, e.Reason, e.At, test.reason)
		}
		wantState(t, c, g.UUID, libvirttools.PhaseShutOff, test.reason)
	}
}

// A guest that resets, by itself or by a triple fault, goes on in the same domain.
func TestGuestReboot(t *testing.T) {
	c := client(t)
	events := watch(t, c)
	await(t, events, libvirttools.KindResync, "")
	g := newGuest(t, c)
	g.boot(t, c)
	qemu := g.process(t)
	for i, letter := range []string{bootsector.Reset, bootsector.TripleFault} {
		g.tell(t, letter)
		await(t, events, libvirttools.KindRebooted, g.UUID)
		eventually(t, "the guest to boot again", func() bool {
			return strings.Count(g.console(t), bootsector.Ready) == i+2
		})
	}
	if !qemu.Alive() {
		t.Error("the reboot replaced QEMU")
	}
}

func TestLibvirtdCrash(t *testing.T) {
	c, d := client(t), daemon(t)
	events := watch(t, c)
	await(t, events, libvirttools.KindResync, "")
	survivor, victim := newGuest(t, c), newGuest(t, c)
	survivor.boot(t, c)
	victim.boot(t, c)
	qemu, doomed := survivor.process(t), victim.process(t)

	if err := d.KillLibvirtd(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := doomed.Kill(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.State(deadline(t), survivor.UUID); err == nil {
		t.Error("State answered without libvirtd")
	}
	survivor.tell(t, "A") // which it echoes
	eventually(t, "the console log without libvirtd", func() bool {
		return strings.HasSuffix(survivor.console(t), "A")
	})
	if err := d.StartLibvirtd(deadline(t)); err != nil {
		t.Fatal(err)
	}

	// No retry of ours: the client must find the new libvirtd by itself.
	wantState(t, c, survivor.UUID, libvirttools.PhaseRunning, libvirttools.ReasonBooted)
	await(t, events, libvirttools.KindResync, "")
	wantState(t, c, victim.UUID, libvirttools.PhaseShutOff, libvirttools.ReasonCrashed)
	if !qemu.Alive() {
		t.Fatal("the VM did not survive libvirtd")
	}
	// Of an end before libvirtd has taken up the domain nobody is told how it came.
	eventually(t, "libvirtd to have taken up the domain", func() bool {
		return strings.TrimSpace(virsh(t, d, "domcontrol", survivor.UUID)) == "ok"
	})
	survivor.tell(t, bootsector.PowerOff)
	if e := await(t, events, libvirttools.KindStopped, survivor.UUID); e.Reason != libvirttools.ReasonShutdown {
		t.Errorf("after the restart, the guest stopped for %q", e.Reason)
	}
}

// A libvirtd that has just started takes up its QEMUs one by one, and tells nobody of one
// that ends before its turn is over: whoever watches must be told to look again.
func TestEndWhileLibvirtdTakesUpDomains(t *testing.T) {
	c, d := client(t), daemon(t)
	events := watch(t, c)
	await(t, events, libvirttools.KindResync, "")
	bystander, victim := newGuest(t, c), newGuest(t, c)
	bystander.boot(t, c)
	victim.boot(t, c)
	doomed := victim.process(t)
	if err := doomed.Signal(syscall.SIGSTOP); err != nil { // so that libvirtd has to wait for it
		t.Fatal(err)
	}
	if err := d.KillLibvirtd(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := d.StartLibvirtd(deadline(t)); err != nil {
		t.Fatal(err)
	}
	await(t, events, libvirttools.KindResync, "")
	wantState(t, c, victim.UUID, libvirttools.PhaseRunning, libvirttools.ReasonBooted)
	if err := doomed.Kill(deadline(t)); err != nil {
		t.Fatal(err)
	}
	for {
		await(t, events, libvirttools.KindResync, "")
		state, err := c.State(deadline(t), victim.UUID)
		if err != nil {
			t.Fatal(err)
		}
		if !state.Active() {
			break
		}
	}
	wantState(t, c, bystander.UUID, libvirttools.PhaseRunning, libvirttools.ReasonBooted)
}

// A call must end with its context, whatever libvirtd does, and leave nothing
// behind once libvirtd goes on.
func TestLibvirtdHangs(t *testing.T) {
	c, d := client(t), daemon(t)
	g := newGuest(t, c)
	before := runtime.NumGoroutine()
	if err := d.FreezeLibvirtd(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.ThawLibvirtd() })
	fresh := clientOf(t, libvirttools.Options{URI: d.URI, Owner: testOwner}) // has yet to connect
	for name, call := range map[string]func(context.Context) error{
		"State": func(ctx context.Context) error { _, err := c.State(ctx, g.UUID); return err },
		"Start": func(ctx context.Context) error { return c.Start(ctx, g.UUID) },
		"Check": func(ctx context.Context) error { _, err := fresh.Check(ctx); return err },
		"Watch": func(ctx context.Context) error { return fresh.Watch(ctx, func(libvirttools.Event) {}) },
	} {
		ctx, cancel := context.WithTimeout(deadline(t), 300*time.Millisecond)
		started := time.Now()
		err := call(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s with a hung libvirtd: %v, want DeadlineExceeded", name, err)
		}
		if took := time.Since(started); took > 10*time.Second {
			t.Errorf("%s with a hung libvirtd took %s", name, took)
		}
	}
	if err := d.ThawLibvirtd(); err != nil {
		t.Fatal(err)
	}
	if _, err := fresh.Check(deadline(t)); err != nil {
		t.Errorf("after libvirtd went on: %v", err)
	}
	if err := fresh.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "the goroutines of hung calls to end", func() bool { return runtime.NumGoroutine() <= before })
}

// Without deadlines, the keep-alive is what ends calls to a libvirtd that is gone
// without having closed its sockets.
func TestKeepAliveFindsDeadLibvirtd(t *testing.T) {
	d := daemon(t)
	c := clientOf(t, libvirttools.Options{URI: d.URI, Owner: testOwner, Silence: 6 * time.Second})
	if _, err := c.Check(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := d.FreezeLibvirtd(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.ThawLibvirtd() })
	// The call fails when the keep-alive closes its connection; the repetition
	// then cannot connect, which is what the context is for.
	ctx, cancel := context.WithTimeout(deadline(t), 12*time.Second)
	defer cancel()
	_, err := c.Check(ctx)
	if err == nil || !strings.Contains(err.Error(), "does not accept the connection") {
		t.Errorf("Check: %v, want it to have noticed and to fail at connecting again", err)
	}
	if err := d.ThawLibvirtd(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Check(deadline(t)); err != nil {
		t.Errorf("after libvirtd went on: %v", err)
	}
}

// Calls from many goroutines, a restart of libvirtd and Close in the midst of them:
// for the race detector, and because every reference to a connection must be
// dropped exactly once.
func TestManyCallersAcrossRestart(t *testing.T) {
	d := daemon(t)
	other := client(t)
	g := newGuest(t, other)
	before := openSockets(t)
	c := clientOf(t, libvirttools.Options{URI: d.URI, Owner: testOwner})
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	var callers sync.WaitGroup
	var answers atomic.Int64
	for range 8 {
		callers.Go(func() {
			for ctx.Err() == nil {
				if _, err := c.State(ctx, g.UUID); err == nil {
					answers.Add(1)
				}
				if err := c.Shutdown(ctx, g.UUID); err == nil {
					answers.Add(1)
				}
			}
		})
	}
	some := func() {
		from := answers.Load()
		eventually(t, "answers", func() bool { return answers.Load() > from+100 })
	}
	some()
	if err := d.StopLibvirtd(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := d.StartLibvirtd(deadline(t)); err != nil {
		t.Fatal(err)
	}
	some()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	callers.Wait()
	if err := other.Destroy(deadline(t), g.UUID); err != nil { // reconnects
		t.Error(err)
	}
	eventually(t, "the sockets of closed and broken connections to be freed", func() bool {
		return openSockets(t) <= before
	})
}

func openSockets(t *testing.T) int {
	t.Helper()
	entries, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	sockets := 0
	for _, entry := range entries {
		if target, err := os.Readlink(entry); err == nil && strings.HasPrefix(target, "socket:") {
			sockets++
		}
	}
	return sockets
}
