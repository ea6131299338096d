//go:build integration

package guestexec_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/guestagent"
	"github.com/ambipod/ambipod/pkg/guestexec"
	"github.com/ambipod/ambipod/pkg/guestexec/wire"
)

// slow is how long one step in an emulated guest may take.
const slow = 3 * time.Minute

func slowly(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), slow)
	t.Cleanup(cancel)
	return ctx
}

func TestRealAgentRunsPrograms(t *testing.T) {
	agent := bootedGuest(t).agent()
	for _, test := range []struct {
		script, stdin  string
		code           int
		stdout, stderr string
	}{
		{"echo out; echo err >&2; exit 3", "", 3, "out\n", "err\n"},
		{"cat", "hello\x00\xff", 0, "hello\x00\xff", ""},
		{"kill -KILL $$", "", 137, "", ""},
	} {
		result, err := agent.Run(slowly(t), guestagent.Command{Argv: []string{"/bin/sh", "-c", test.script}, Stdin: []byte(test.stdin)})
		if err != nil {
			t.Errorf("%s: %v", test.script, err)
			continue
		}
		if result.ExitCode != test.code || string(result.Stdout) != test.stdout || string(result.Stderr) != test.stderr {
			t.Errorf("%s: %d %q %q", test.script, result.ExitCode, result.Stdout, result.Stderr)
		}
	}
	if _, err := agent.Run(slowly(t), guestagent.Command{Argv: []string{"/no/such/program"}}); !errdefs.IsAborted(err) {
		t.Errorf("unknown program: %v, want the agent's refusal", err)
	}
	result, err := agent.Run(slowly(t), guestagent.Command{Argv: []string{"/bin/sh", "-c", "head -c 2000000 /dev/zero"}})
	if err != nil || len(result.Stdout) != 2_000_000 {
		t.Errorf("2 MB of output: %d bytes, %v", len(result.Stdout), err)
	}
}

func TestRealAgentKillsWhatRunsTooLong(t *testing.T) {
	agent := bootedGuest(t).agent()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := agent.Run(ctx, guestagent.Command{Argv: []string{"/bin/sh", "-c", "sh -c 'sleep 7777' & sleep 8888; echo"}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want DeadlineExceeded", err)
	}
	result, err := agent.Run(slowly(t), guestagent.Command{Argv: []string{"/bin/sh", "-c", "ps | grep -c '[s]leep [78]'"}})
	if err != nil || string(result.Stdout) != "0\n" {
		t.Errorf("programs left in the guest: %q %v", result.Stdout, err)
	}
}

func TestRealGuestHasStreams(t *testing.T) {
	g := bootedGuest(t)
	e := g.executor(t)
	started := time.Now()
	code, err := e.Run(slowly(t), g.vm(), guestexec.Command{Argv: []string{"true"}})
	if err != nil || code != 0 {
		t.Fatalf("first command: %d %v", code, err)
	}
	t.Logf("first command, helper included, took %s", time.Since(started))

	var out, errOut bytes.Buffer
	code, err = e.Run(slowly(t), g.vm(), guestexec.Command{
		Argv: []string{"sh", "-c", "cat; echo err >&2; exit 5"}, Stdin: strings.NewReader("in"), Stdout: &out, Stderr: &errOut,
	})
	if err != nil || code != 5 || out.String() != "in" || errOut.String() != "err\n" {
		t.Errorf("%d %q %q %v", code, out.String(), errOut.String(), err)
	}
	code, err = e.Run(slowly(t), g.vm(), guestexec.Command{Argv: []string{"sh", "-c", "! ls -d /run/.ambipod.* /tmp/.ambipod.*"}})
	if err != nil || code != 0 {
		t.Errorf("the helper's file is left in the guest: %d %v", code, err)
	}
}

func TestRealGuestCarriesMegabytes(t *testing.T) {
	g := bootedGuest(t)
	e := g.executor(t)
	data := make([]byte, 8<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	started := time.Now()
	code, err := e.Run(slowly(t), g.vm(), guestexec.Command{Argv: []string{"cat"}, Stdin: bytes.NewReader(data), Stdout: &out})
	if err != nil || code != 0 || sha256.Sum256(out.Bytes()) != sha256.Sum256(data) {
		t.Fatalf("%d bytes came back changed: %d %v", out.Len(), code, err)
	}
	t.Logf("8 MiB both ways took %s", time.Since(started))
}

func TestRealGuestHasTerminals(t *testing.T) {
	g := bootedGuest(t)
	e := g.executor(t)
	toGuest, feed := io.Pipe()
	fromGuest, out := io.Pipe()
	sizes := make(chan wire.Size, 1)
	sizes <- wire.Size{Rows: 20, Cols: 55}
	done := make(chan error, 1)
	go func() {
		code, err := e.Run(slowly(t), g.vm(), guestexec.Command{Argv: []string{"sh"}, TTY: true, Stdin: toGuest, Stdout: out, Resize: sizes})
		if err == nil && code != 9 {
			err = errors.New("wrong exit code")
		}
		_ = out.Close()
		done <- err
	}()
	go func() { _, _ = io.WriteString(feed, "until [ \"$(stty size)\" = '20 55' ]; do :; done; tty; exit 9\n") }()
	screen, err := io.ReadAll(fromGuest)
	if err != nil || !strings.Contains(string(screen), "/dev/pts/") {
		t.Errorf("screen %q %v", screen, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	_ = feed.Close()
}

func TestRealGuestKillsWhatNobodyWaitsFor(t *testing.T) {
	g := bootedGuest(t)
	e := g.executor(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	fromGuest, out := io.Pipe()
	go func() {
		_, _ = fromGuest.Read(make([]byte, 1))
		cancel()
		_, _ = io.Copy(io.Discard, fromGuest)
	}()
	_, err := e.Run(ctx, g.vm(), guestexec.Command{Argv: []string{"sh", "-c", "echo up; sleep 9999"}, Stdout: out})
	_ = out.Close()
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want Canceled", err)
	}
	code, err := e.Run(slowly(t), g.vm(), guestexec.Command{Argv: []string{"sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do ps | grep -q '[s]leep 9999' || exit 0; sleep 1; done; exit 1"}})
	if err != nil || code != 0 {
		t.Errorf("the program goes on in the guest: %d %v", code, err)
	}
}

// TestRealGuestOutlivesTheNodesDaemon drops the session as a restart of vmruntime
// does and expects the helper to leave, and the next one to work.
func TestRealGuestOutlivesTheNodesDaemon(t *testing.T) {
	g := bootedGuest(t)
	for range 2 {
		e := g.executor(t)
		if code, err := e.Run(slowly(t), g.vm(), guestexec.Command{Argv: []string{"true"}}); err != nil || code != 0 {
			t.Fatalf("%d %v", code, err)
		}
		e.Close()
	}
	result, err := g.agent().Run(slowly(t), guestagent.Command{Argv: []string{
		"/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do pidof vmguest || exit 0; sleep 1; done; exit 1",
	}})
	if err != nil || result.ExitCode != 0 {
		t.Errorf("a helper is left in the guest: %+v %v", result, err)
	}
}

// TestRealGuestThatReboots comes last: it makes the guest new.
func TestRealGuestThatReboots(t *testing.T) {
	g := bootedGuest(t)
	e := g.executor(t)
	boot := func() string {
		var out bytes.Buffer
		code, err := e.Run(slowly(t), g.vm(), guestexec.Command{Argv: []string{"cat", "/proc/sys/kernel/random/boot_id"}, Stdout: &out})
		if err != nil || code != 0 {
			return ""
		}
		return out.String()
	}
	before := boot()
	if before == "" {
		t.Fatal("no boot ID")
	}
	if _, err := g.agent().Run(slowly(t), guestagent.Command{Argv: []string{"/bin/sh", "-c", "reboot -f & exit 0"}}); err != nil {
		t.Logf("reboot: %v", err) // its answer may be lost with the guest
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootTime)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for after := boot(); after == "" || after == before; after = boot() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			console, _ := os.ReadFile(g.domain.Console.Log)
			t.Fatalf("commands do not work again; console:\n%s", console[max(0, len(console)-1000):])
		}
	}
}
