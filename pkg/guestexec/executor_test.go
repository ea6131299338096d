package guestexec_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/guestexec"
	"github.com/ambipod/ambipod/pkg/guestexec/wire"
)

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// run runs a shell script in the guest.
func run(t *testing.T, e *guestexec.Executor, vm guestexec.VM, script string, stdin io.Reader) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code, err := e.Run(testContext(t), vm, guestexec.Command{
		Argv: []string{"sh", "-c", script}, Stdin: stdin, Stdout: &out, Stderr: &errOut,
	})
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return code, out.String(), errOut.String()
}

// TestCommandsHaveTheirEnvironment: over the guest's own, of which the rest stays.
func TestCommandsHaveTheirEnvironment(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	var out bytes.Buffer
	_, err := g.executor().Run(testContext(t), g.vm(), guestexec.Command{
		Argv: []string{"sh", "-c", `echo "$COLOUR|$EMPTY|$HOME|${PATH:+path}"`}, Env: []string{"COLOUR=light=blue", "EMPTY=", "HOME=/elsewhere"}, Stdout: &out,
	})
	if want := "light=blue||/elsewhere|path\n"; err != nil || out.String() != want {
		t.Errorf("got %q, %v, want %q", out.String(), err, want)
	}
}

func TestCommandsHaveStreamsAndExitCodes(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	e := g.executor()
	for _, test := range []struct {
		script, stdin  string
		code           int
		stdout, stderr string
	}{
		{"echo out; echo err >&2; exit 3", "", 3, "out\n", "err\n"},
		{"cat", "hello", 0, "hello", ""},
		{"read x; echo got $x", "line\nmore\n", 0, "got line\n", ""},
		{"kill -TERM $$", "", 143, "", ""},
		{"pwd", "", 0, "/\n", ""},
		{"test -n \"$PATH\" && test -n \"$HOME\"", "", 0, "", ""},
		{"true", strings.Repeat("nobody reads this", 100_000), 0, "", ""},
	} {
		code, stdout, stderr := run(t, e, g.vm(), test.script, strings.NewReader(test.stdin))
		if code != test.code || stdout != test.stdout || stderr != test.stderr {
			t.Errorf("%s: %d %q %q, want %d %q %q", test.script, code, stdout, stderr, test.code, test.stdout, test.stderr)
		}
	}
	if n := g.launched(); n != 1 {
		t.Errorf("the helper was started %d times for one session", n)
	}
}

func TestBytesPassUnchangedBothWays(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	e := g.executor()
	const size = 20 << 20
	data := make([]byte, size)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	code, out, _ := run(t, e, g.vm(), "cat", bytes.NewReader(data))
	if code != 0 || sha256.Sum256([]byte(out)) != sha256.Sum256(data) {
		t.Errorf("cat: code %d, %d bytes came back changed, sent %d", code, len(out), size)
	}
}

func TestOutputIsLive(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	e := g.executor()
	toGuest, feed := io.Pipe()
	fromGuest, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := e.Run(testContext(t), g.vm(), guestexec.Command{
			Argv: []string{"sh", "-c", "while read line; do echo got $line; done"}, Stdin: toGuest, Stdout: out,
		})
		_ = out.Close()
		done <- err
	}()
	for i := range 3 {
		fmt.Fprintf(feed, "%d\n", i)
		want := fmt.Sprintf("got %d\n", i)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(fromGuest, got); err != nil || string(got) != want {
			t.Fatalf("round %d: %q %v", i, got, err)
		}
	}
	_ = feed.Close()
	if rest, err := io.ReadAll(fromGuest); err != nil || len(rest) > 0 {
		t.Errorf("after the input's end: %q %v", rest, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestTerminalHasSizeAndSignals(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	e := g.executor()
	toGuest, feed := io.Pipe()
	fromGuest, out := io.Pipe()
	sizes := make(chan wire.Size, 1)
	sizes <- wire.Size{Rows: 33, Cols: 77}
	type end struct {
		code int
		err  error
	}
	done := make(chan end, 1)
	go func() {
		code, err := e.Run(testContext(t), g.vm(), guestexec.Command{
			Argv:  []string{"sh", "-c", `until [ "$(stty size)" = "33 77" ]; do :; done; tty; trap 'echo interrupted; exit 7' INT; echo ready; while :; do sleep 0.1; done`},
			TTY:   true,
			Stdin: toGuest, Stdout: out, Resize: sizes,
		})
		_ = out.Close()
		done <- end{code, err}
	}()
	seen := make([]byte, 0, 100)
	buffer := make([]byte, 100)
	for !strings.Contains(string(seen), "ready") {
		n, err := fromGuest.Read(buffer)
		seen = append(seen, buffer[:n]...)
		if err != nil {
			t.Fatalf("%q: %v", seen, err)
		}
	}
	if !strings.Contains(string(seen), "/dev/pts/") {
		t.Errorf("tty(1) says %q", seen)
	}
	fmt.Fprint(feed, "\x03") // Ctrl-C
	rest, err := io.ReadAll(fromGuest)
	if err != nil || !strings.Contains(string(rest), "interrupted") {
		t.Errorf("after Ctrl-C: %q %v", rest, err)
	}
	if r := <-done; r.err != nil || r.code != 7 {
		t.Errorf("ended with %d, %v, want 7", r.code, r.err)
	}
	_ = feed.Close()
}

// alive tells whether the process of which the guest wrote the number runs.
func alive(t *testing.T, pidFile string) bool {
	t.Helper()
	pid, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(pid)), "stat"))
	return err == nil && !strings.Contains(string(status), ") Z ")
}

func eventually(t *testing.T, what string, ready func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for !ready() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("gave up waiting for %s", what)
		}
	}
}

func TestCallerWhoGivesUpHasTheProgramKilled(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	e := g.executor()
	pidFile := filepath.Join(g.dir, "pid")
	ctx, cancel := context.WithCancel(testContext(t))
	go func() {
		defer cancel()
		eventually(t, "the program to start", func() bool {
			text, _ := os.ReadFile(pidFile)
			return strings.HasSuffix(string(text), "\n")
		})
	}()
	_, err := e.Run(ctx, g.vm(), guestexec.Command{Argv: []string{"sh", "-c", "yes & echo $! >" + pidFile + "; yes"}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want context.Canceled", err)
	}
	eventually(t, "the program's child to be killed", func() bool { return !alive(t, pidFile) })
	if code, out, _ := run(t, e, g.vm(), "echo still here", nil); code != 0 || out != "still here\n" {
		t.Errorf("next command: %d %q", code, out)
	}
}

func TestProgramLeftBehindDoesNotHoldTheCommand(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	e := g.executor()
	pidFile := filepath.Join(g.dir, "pid")
	code, out, _ := run(t, e, g.vm(), "sleep 300 & echo $! >"+pidFile+"; echo done", nil)
	if code != 0 || out != "done\n" {
		t.Errorf("%d %q", code, out)
	}
	if !alive(t, pidFile) {
		t.Error("the program that was left behind is gone")
	}
	run(t, e, g.vm(), "kill $(cat "+pidFile+")", nil)
}

// blocked is a reader of output who never reads.
type blocked struct{ until <-chan struct{} }

func (b blocked) Write([]byte) (int, error) {
	<-b.until
	return 0, io.ErrClosedPipe
}

func TestStuckClientHoldsUpNobody(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	e := g.executor()
	until := make(chan struct{})
	ctx, cancel := context.WithCancel(testContext(t))
	var stuck sync.WaitGroup
	stuck.Go(func() {
		_, err := e.Run(ctx, g.vm(), guestexec.Command{Argv: []string{"yes"}, Stdout: blocked{until}})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("stuck command: %v", err)
		}
	})
	for range 5 {
		if code, out, _ := run(t, e, g.vm(), "echo fine", nil); code != 0 || out != "fine\n" {
			t.Errorf("%d %q", code, out)
		}
	}
	cancel()
	stuck.Wait()
	close(until)
}

func TestManyCommandsAtOnce(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	e := g.executor()
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			want := fmt.Sprintf("in %d\n", i)
			if code, out, _ := run(t, e, g.vm(), fmt.Sprintf("cat; exit %d", i), strings.NewReader(want)); code != i || out != want {
				t.Errorf("command %d: %d %q", i, code, out)
			}
		})
	}
	all.Wait()
	if n := g.launched(); n != 1 {
		t.Errorf("%d helpers for one session", n)
	}
}

func TestSessionIsMadeAnewAfterTheGuestRestarted(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	e := g.executor()
	run(t, e, g.vm(), "true", nil)
	g.unplug()
	eventually(t, "the command to work again", func() bool {
		var out bytes.Buffer
		code, err := e.Run(testContext(t), g.vm(), guestexec.Command{Argv: []string{"echo", "again"}, Stdout: &out})
		return err == nil && code == 0 && out.String() == "again\n"
	})
	if n := g.launched(); n != 2 {
		t.Errorf("%d helpers, want 2", n)
	}
}

func TestEndOfTheGuestEndsCommands(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	e := g.executor()
	fromGuest, out := io.Pipe()
	go func() {
		_, _ = fromGuest.Read(make([]byte, 1))
		g.unplug()
		_, _ = io.Copy(io.Discard, fromGuest)
	}()
	_, err := e.Run(testContext(t), g.vm(), guestexec.Command{Argv: []string{"sh", "-c", "echo up; sleep 300"}, Stdout: out})
	_ = out.Close()
	if !errdefs.IsUnavailable(err) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
}

func TestUnknownProgramIsNamed(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	_, err := g.executor().Run(testContext(t), g.vm(), guestexec.Command{Argv: []string{"no-such-program"}})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("%v", err)
	}
}

func TestGuestThatMayNotRunProgramsIsUnsupported(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	g.deny = "Command guest-exec has been disabled"
	_, err := g.executor().Run(testContext(t), g.vm(), guestexec.Command{Argv: []string{"true"}})
	if !errors.Is(err, guestexec.ErrUnsupported) || !strings.Contains(err.Error(), "has been disabled") {
		t.Errorf("%v, want ErrUnsupported with the agent's words", err)
	}
}

func TestGuestThatCannotReceiveTheHelperIsUnsupported(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	g.scriptFails = "no folder of the guest may hold a program"
	_, err := g.executor().Run(testContext(t), g.vm(), guestexec.Command{Argv: []string{"true"}})
	if !errors.Is(err, guestexec.ErrUnsupported) || !strings.Contains(err.Error(), g.scriptFails) {
		t.Errorf("%v, want ErrUnsupported with the script's words", err)
	}
}

func TestVMWithoutChannelIsUnsupported(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	vm := g.vm()
	vm.Socket = filepath.Join(g.dir, "absent.sock")
	_, err := g.executor().Run(testContext(t), vm, guestexec.Command{Argv: []string{"true"}})
	if !errors.Is(err, guestexec.ErrUnsupported) {
		t.Errorf("%v, want ErrUnsupported", err)
	}
}

// TestHostileHelper lets the guest answer with what no honest helper sends. Whatever
// it is, the caller gets an error in time and nothing is left behind.
func TestHostileHelper(t *testing.T) {
	t.Parallel()
	for name, serve := range map[string]func(ctx context.Context, port net.Conn, token string){
		"hangs up": func(_ context.Context, port net.Conn, _ string) { _ = port.Close() },
		"wrong token": func(_ context.Context, port net.Conn, _ string) {
			fmt.Fprint(port, wire.Hello("guess"))
			_ = port.Close()
		},
		"floods": func(_ context.Context, port net.Conn, _ string) {
			line := bytes.Repeat([]byte("x"), 64<<10)
			for {
				if _, err := port.Write(line); err != nil {
					return
				}
			}
		},
		"speaks no yamux": func(_ context.Context, port net.Conn, token string) {
			fmt.Fprint(port, wire.Hello(token))
			_, _ = port.Write(bytes.Repeat([]byte{0xff}, 1<<20))
			_, _ = io.Copy(io.Discard, port)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newFakeGuest(t)
			g.serve = serve
			_, err := g.executor().Run(testContext(t), g.vm(), guestexec.Command{Argv: []string{"true"}})
			if err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v, want an error before the deadline", err)
			}
		})
	}
}

func TestSilentHelperCostsNoMoreThanTheCallersTime(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	g.serve = func(_ context.Context, port net.Conn, _ string) { _, _ = io.Copy(io.Discard, port) }
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := g.executor().Run(ctx, g.vm(), guestexec.Command{Argv: []string{"true"}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want DeadlineExceeded", err)
	}
}

// TestHelperThatDoesNotComeUp: a caller who would wait for ever gets an answer.
func TestHelperThatDoesNotComeUp(t *testing.T) {
	t.Parallel()
	g := newFakeGuest(t)
	g.patience, g.scriptHangs = 300*time.Millisecond, true
	_, err := g.executor().Run(testContext(t), g.vm(), guestexec.Command{Argv: []string{"true"}})
	if !errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "did not come up in the guest within 300ms") {
		t.Errorf("%v, want ErrUnavailable that says for how long it was waited", err)
	}
}
