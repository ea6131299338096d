package console

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// Options name the files of one Follower.
type Options struct {
	Console string // raw output of the guest; need not exist yet, its folder must
	Log     string // CRI log file; created if absent, its folder must exist
	State   string // how far copying has come; created if absent
	Logger  *slog.Logger
	// Lost is called when output was gone before it could be copied; optional.
	Lost func()
}

// Follower copies one console to one log until it is stopped.
type Follower struct {
	watcher *Watcher
	options Options
	wake    chan struct{}
	reopen  chan chan error
	stop    chan struct{} // closed to end copying
	finish  chan struct{} // closed to end copying once nobody writes the console
	done    chan struct{} // closed when copying has ended
	once    struct{ stop, finish onceCloser }

	copier  copier // belongs to run, as does failing
	failing bool
}

// How long the Follower waits: for more output to copy at one go, for the rest of
// an unfinished line, and after a failure.
const (
	gatherTime = 10 * time.Millisecond
	promptTime = 100 * time.Millisecond
	retryTime  = time.Second
)

// How much is copied, in bytes, before looking whether something else is wanted,
// and at the end at most. A guest that prints without end must not keep its
// Follower from stopping; all that virtlogd keeps of a console by default is 8 MiB.
const (
	turn     = 1 << 20
	lastTurn = 16 << 20
)

// Start begins to copy; Stop must be called. It goes on where an earlier Follower
// with the same State ended, however that ended. Nothing is done twice at a time:
// only one Follower may use a State.
func Start(w *Watcher, o Options) (*Follower, error) {
	f := &Follower{
		watcher: w, options: o,
		wake:   make(chan struct{}, 1),
		reopen: make(chan chan error),
		stop:   make(chan struct{}),
		finish: make(chan struct{}),
		done:   make(chan struct{}),
	}
	folder, err := w.add(filepath.Dir(o.Console), folderEvents, f.wake)
	if err != nil {
		return nil, fmt.Errorf("follow console %s: %w", o.Console, err)
	}
	f.copier, err = newCopier(o)
	if err != nil {
		w.remove(folder, f.wake)
		return nil, fmt.Errorf("follow console %s: %w", o.Console, err)
	}
	go f.run(folder)
	return f, nil
}

// Stop copies what the console has by now and ends. It is for when the guest goes
// on and another Follower will take over. The context bounds the wait only:
// copying ends anyway.
func (f *Follower) Stop(ctx context.Context) error {
	f.once.stop.close(f.stop)
	return f.wait(ctx, "stop")
}

// Finish copies until nobody has the console open for writing, and ends. It is for
// when the guest has ended and its last words may still be on their way. When the
// context is done first, it ends as Stop does.
func (f *Follower) Finish(ctx context.Context) error {
	f.once.finish.close(f.finish)
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		f.once.stop.close(f.stop)
		<-f.done
		return fmt.Errorf("finish following console %s: it is still being written: %w", f.options.Console, ctx.Err())
	}
}

func (f *Follower) wait(ctx context.Context, what string) error {
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s following console %s: %w", what, f.options.Console, ctx.Err())
	}
}

// Reopen goes on in a new file of the log's name, after kubelet has moved the old
// one away. If it fails, the old file remains in use and no new one exists.
func (f *Follower) Reopen(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case f.reopen <- answer:
		return <-answer
	case <-f.done:
		return fmt.Errorf("reopen log %s: %w", f.options.Log, os.ErrClosed)
	case <-ctx.Done():
		return fmt.Errorf("reopen log %s: %w", f.options.Log, ctx.Err())
	}
}

// run copies whenever there is something to copy. It sleeps on channels alone
// while there is nothing; alarm is when to look next without being woken.
func (f *Follower) run(folder int32) {
	defer close(f.done)
	defer f.copier.close()
	defer f.watcher.remove(folder, f.wake)
	watched := watchedFile{watcher: f.watcher, wake: f.wake}
	defer watched.forget()

	alarm := newAlarm()
	defer alarm.stop()
	alarm.within(0)
	finish := f.finish
	for {
		select {
		case <-f.wake:
			alarm.within(gatherTime)
		case <-alarm.timer.C:
			alarm.fired()
			f.copyNow(&watched, alarm)
			if finish == nil && !f.copier.source.written() {
				f.copyRest(&watched)
				return
			}
		case <-finish:
			finish = nil
			alarm.within(0)
		case answer := <-f.reopen:
			answer <- f.copier.reopen()
		case <-f.stop:
			f.copyRest(&watched)
			return
		}
	}
}

// copyNow copies what there is and sets the alarm for what it had to leave.
func (f *Follower) copyNow(watched *watchedFile, alarm *alarm) {
	again, err := f.copier.copySome(watched, turn, false)
	if err == nil {
		err = watched.err // copying works, but nothing will wake us
	}
	switch {
	case err != nil:
		if !f.failing {
			f.options.Logger.Warn("a console cannot be copied to its log as it should; trying again every second",
				"console", f.options.Console, "err", err)
		}
		alarm.notBefore(retryTime)
	case again > 0:
		alarm.within(again)
	}
	if f.failing && err == nil {
		f.options.Logger.Info("a console is copied to its log again", "console", f.options.Console)
	}
	f.failing = err != nil
}

func (f *Follower) copyRest(watched *watchedFile) {
	if _, err := f.copier.copySome(watched, lastTurn, true); err != nil {
		f.options.Logger.Warn("the end of a console was not copied to its log", "console", f.options.Console, "err", err)
	}
}
