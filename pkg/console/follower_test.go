package console

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// patience is far beyond what any condition here takes.
const patience = 30 * time.Second

func start(t *testing.T, w *Watcher, o Options) *Follower {
	t.Helper()
	f, err := Start(w, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, f) })
	return f
}

func stop(t *testing.T, f *Follower) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := f.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// await waits for a condition of a log, which inotify of its own kind reports.
func await(t *testing.T, path, what string, ok func(plain, raw string) bool) {
	t.Helper()
	w := newTestWatcher(t)
	wake := make(chan struct{}, 1)
	folder, err := w.add(filepath.Dir(path), folderEvents, wake)
	if err != nil {
		t.Fatal(err)
	}
	defer w.remove(folder, wake)
	file, err := w.add(path, fileEvents, wake)
	if err != nil {
		t.Fatal(err)
	}
	defer w.remove(file, wake)
	deadline := time.After(patience)
	for {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if end := strings.LastIndexByte(string(raw), '\n'); ok(decode(t, raw[:end+1]), string(raw)) {
			return
		}
		select {
		case <-wake:
		case <-deadline:
			t.Fatalf("waited for %s; the log says %q", what, raw)
		}
	}
}

func awaitText(t *testing.T, path, text string) {
	t.Helper()
	await(t, path, text, func(plain, _ string) bool { return strings.Contains(plain, text) })
}

func TestFollowerCopiesAsItComes(t *testing.T) {
	dir := testFolder(t)
	o := testOptions(dir, slog.New(slog.DiscardHandler))
	start(t, newTestWatcher(t), o) // before the console exists
	g := newGuest(t, dir)
	g.print("booting\r\n")
	awaitText(t, o.Log, "booting\n")
	g.print("login: ")
	await(t, o.Log, "a prompt", func(_, raw string) bool { return strings.HasSuffix(raw, " P login: \n") })
	g.print("root\r\n")
	await(t, o.Log, "the answer", func(_, raw string) bool { return strings.HasSuffix(raw, " F root\n") })
	g.rotate()
	g.print("after rotation\n")
	awaitText(t, o.Log, "after rotation\n")
	await(t, o.Log, "everything", func(got, _ string) bool { return got == plain(g.all) })
}

func TestFollowerReopens(t *testing.T) {
	dir := testFolder(t)
	o := testOptions(dir, slog.New(slog.DiscardHandler))
	g := newGuest(t, dir)
	f := start(t, newTestWatcher(t), o)
	g.print("before\n")
	awaitText(t, o.Log, "before\n")
	moved := o.Log + ".20261121-093000"
	if err := os.Rename(o.Log, moved); err != nil {
		t.Fatal(err)
	}
	if err := f.Reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.print("after\n")
	awaitText(t, o.Log, "after\n")
	stop(t, f)
	for path, want := range map[string]string{moved: "before\n", o.Log: "after\n"} {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := decode(t, raw); got != want {
			t.Errorf("%s says %q, want %q", path, got, want)
		}
	}
	if err := f.Reopen(t.Context()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("reopening a stopped follower: got error %v, want that it is closed", err)
	}
}

func TestReopenRefused(t *testing.T) {
	dir := testFolder(t)
	o := testOptions(dir, slog.New(slog.DiscardHandler))
	g := newGuest(t, dir)
	f := start(t, newTestWatcher(t), o)
	moved := o.Log + ".moved"
	for _, err := range []error{os.Rename(o.Log, moved), os.Mkdir(o.Log, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Reopen(t.Context()); err == nil {
		t.Fatal("a folder was opened as a log")
	}
	g.print("goes on\n")
	awaitText(t, moved, "goes on\n")
}

// Followers are stopped and started while the guest prints and virtlogd rotates.
func TestRestartsWhileTheGuestPrints(t *testing.T) {
	dir := testFolder(t)
	o := testOptions(dir, slog.New(slog.DiscardHandler))
	w := newTestWatcher(t)
	g := newGuest(t, dir)
	g.backups = 200
	printed := make(chan struct{})
	go func() {
		defer close(printed)
		for n := range 4000 {
			g.print("line " + strconv.Itoa(n) + " \xfe\r\n")
			if n%150 == 149 {
				g.rotate()
			}
		}
	}()
	restarts := 0
	for ended := false; !ended; restarts++ {
		f, err := Start(w, o)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-printed:
			ended = true
		case <-time.After(time.Duration(restarts%4) * time.Millisecond):
		}
		stop(t, f)
	}
	raw, err := os.ReadFile(o.Log)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(plain(g.all), decode(t, raw)); diff != "" {
		t.Errorf("after %d restarts:\n%s", restarts, diff)
	}
	if restarts < 3 {
		t.Errorf("only %d restarts took place", restarts)
	}
}

// A guest that floods its console neither delays another's log nor its own stop.
func TestFloodIsNobodyElsesProblem(t *testing.T) {
	w := newTestWatcher(t)
	flooded, quiet := testFolder(t), testFolder(t)
	flooder := newGuest(t, flooded)
	f := start(t, w, testOptions(flooded, slog.New(slog.DiscardHandler)))
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		line := strings.Repeat("flood ", 2000) + "\n"
		for size := 0; ; size += len(line) {
			select {
			case <-end:
				return
			default:
			}
			if _, err := flooder.file.WriteString(line); err != nil {
				return
			}
			if size > 1<<20 {
				size = 0
				flooder.rotate()
			}
		}
	}()
	o := testOptions(quiet, slog.New(slog.DiscardHandler))
	g := newGuest(t, quiet)
	start(t, w, o)
	for n := range 5 {
		text := "quiet " + strconv.Itoa(n) + "\n"
		g.print(text)
		awaitText(t, o.Log, text)
	}
	stop(t, f)
	close(end)
	<-ended
}

// The last words of a guest reach the console after the guest is gone.
func TestFinishWaitsForTheWriter(t *testing.T) {
	dir := testFolder(t)
	o := testOptions(dir, slog.New(slog.DiscardHandler))
	g := newGuest(t, dir)
	f := start(t, newTestWatcher(t), o)
	finished := make(chan error, 1)
	go func() { finished <- f.Finish(t.Context()) }()
	g.print("going down\n")
	awaitText(t, o.Log, "going down\n")
	select {
	case err := <-finished:
		t.Fatalf("finished (%v) while the console was open", err)
	default:
	}
	g.print("last words")
	g.file.Close()
	select {
	case err := <-finished:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("did not finish after the console was closed")
	}
	raw, err := os.ReadFile(o.Log)
	if err != nil {
		t.Fatal(err)
	}
	if got := decode(t, raw); got != "going down\nlast words" {
		t.Errorf("the log says %q", got)
	}
}

func TestFinishGivesUpWithItsContext(t *testing.T) {
	dir := testFolder(t)
	o := testOptions(dir, slog.New(slog.DiscardHandler))
	g := newGuest(t, dir)
	f := start(t, newTestWatcher(t), o)
	g.print("still talking\n")
	awaitText(t, o.Log, "still talking\n")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Finish(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want that the context was cancelled", err)
	}
}

func TestStartRefusals(t *testing.T) {
	dir := testFolder(t)
	w := newTestWatcher(t)
	for name, change := range map[string]func(*Options){
		"no folder of the console": func(o *Options) { o.Console = filepath.Join(dir, "absent", "console.log") },
		"no folder of the log":     func(o *Options) { o.Log = filepath.Join(dir, "absent", "0.log") },
		"no folder of the state":   func(o *Options) { o.State = filepath.Join(dir, "absent", "state") },
		"state is a folder":        func(o *Options) { o.State = dir },
	} {
		t.Run(name, func(t *testing.T) {
			o := testOptions(dir, slog.New(slog.DiscardHandler))
			change(&o)
			if f, err := Start(w, o); err == nil {
				stop(t, f)
				t.Error("started")
			}
		})
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.watches) > 0 {
		t.Errorf("%d watches remain", len(w.watches))
	}
}
