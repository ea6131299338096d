package network

import (
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

func TestEndStrays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start := func(environment string) *exec.Cmd {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sleep", "1000")
		cmd.Env = []string{"A=B", environment, "C=D"}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	stray := start("CNI_NETNS=" + filepath.Join(dir, "0123"))
	others := []*exec.Cmd{
		start("CNI_NETNS=/run/netns/of-somebody-else"),
		start("X_CNI_NETNS=" + filepath.Join(dir, "0123")),
		start("CNI_NETNS=" + dir + "-2/0123"),
	}
	reaped := make(chan error, 1)
	go func() { reaped <- stray.Wait() }()
	if ended, err := endStrays(dir); err != nil || ended != 1 {
		t.Errorf("%d processes ended, %v", ended, err)
	}
	if err := <-reaped; err == nil {
		t.Error("the stray was not killed")
	}
	for _, other := range others {
		if other.Process.Signal(syscall.Signal(0)) != nil {
			t.Errorf("process with the environment %v was killed", other.Env)
		}
		_ = other.Process.Kill()
		_ = other.Wait()
	}
}
