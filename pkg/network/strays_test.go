package network

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

func TestEndStrays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start := func(environment string, argv ...string) *exec.Cmd {
		t.Helper()
		if len(argv) == 0 {
			argv = []string{"sleep", "1000"}
		}
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Env = []string{"A=B", environment, "C=D"}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	stray := start("CNI_NETNS=" + filepath.Join(dir, "0123"))
	done := filepath.Join(dir, "done")
	busy := start("CNI_NETNS="+filepath.Join(dir, "4567"), "/bin/sh", "-c", "/bin/sleep 0.3; echo >"+done)
	others := []*exec.Cmd{
		start("CNI_NETNS=/run/netns/of-somebody-else"),
		start("X_CNI_NETNS=" + filepath.Join(dir, "0123")),
		start("CNI_NETNS=" + dir + "-2/0123"),
	}
	reaped := make(chan error, 1)
	reapedBusy := make(chan error, 1)
	go func() { reaped <- stray.Wait() }()
	go func() { reapedBusy <- busy.Wait() }()
	if ended, err := endStrays(dir); err != nil || ended < 1 { // the busy one may have ended by itself
		t.Errorf("%d processes ended, %v", ended, err)
	}
	if err := <-reaped; err == nil {
		t.Error("the stray was not killed")
	}
	if err := <-reapedBusy; err != nil {
		t.Errorf("the one that was busy: %v", err)
	}
	if _, err := os.Stat(done); err != nil {
		t.Errorf("the one that was busy has not got done: %v", err)
	}
	for _, other := range others {
		if other.Process.Signal(syscall.Signal(0)) != nil {
			t.Errorf("process with the environment %v was killed", other.Env)
		}
		_ = other.Process.Kill()
		_ = other.Wait()
	}
}
