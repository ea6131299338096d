package process_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ambipod/ambipod/tests/process"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a program that is reaped when it ends.
func start(t *testing.T, script string) process.Process {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", script)
	ready, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p, err := process.Find(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestEndObeysSIGTERM(t *testing.T) {
	p := start(t, `trap 'exit 0' TERM; echo ready; while :; do read -r _ || sleep 0.1; done`)
	if !p.Alive() {
		t.Fatal("process is not alive right after its start")
	}
	if err := p.End(deadline(t), 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if p.Alive() {
		t.Error("process is alive after End")
	}
}

func TestEndKillsAStubbornProcess(t *testing.T) {
	p := start(t, `trap '' TERM; echo ready; exec sleep 60`)
	if err := p.End(deadline(t), 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if p.Alive() {
		t.Error("process is alive after End")
	}
}

func TestWaitObeysTheContext(t *testing.T) {
	p := start(t, `echo ready; exec sleep 60`)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait returned %v, want the context's error", err)
	}
}

func TestALaterProcessWithTheSamePIDIsNotTouched(t *testing.T) {
	self, err := process.Find(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	earlier := process.Process{PID: self.PID, Start: self.Start - 1}
	if earlier.Alive() {
		t.Error("a process of another start time is called alive")
	}
	// This would end the test itself.
	if err := earlier.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	if err := earlier.Wait(deadline(t)); err != nil {
		t.Error(err)
	}
}

func TestFindReportsAMissingProcess(t *testing.T) {
	const beyondAnyPID = 1 << 30
	if _, err := process.Find(beyondAnyPID); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Find of a missing process returned %v, want os.ErrNotExist", err)
	}
}

func TestZeroProcessIsNoProcess(t *testing.T) {
	var none process.Process
	if none.Alive() {
		t.Error("the zero process is alive")
	}
	if err := none.Kill(deadline(t)); err != nil {
		t.Error(err)
	}
}
