//go:build integration

package tpm

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	program  = "/usr/bin/swtpm"
	waitTime = time.Minute
	nobody   = 65534 // any user but root; swtpm needs no more
)

// TestLauncher is no test but the launcher of those below, which run this program
// again with arguments.
func TestLauncher(t *testing.T) {
	args := flag.Args()
	if len(args) == 0 {
		return
	}
	join := func(group string) error {
		if group != "/the/group" {
			return fmt.Errorf("asked to join %q", group)
		}
		return nil
	}
	if err := Run(args, join); err != nil {
		fmt.Fprintln(os.Stderr, err)
		t.FailNow()
	}
}

func server(t *testing.T, swtpm string) Server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test changes its user: run it as root")
	}
	return Server{Launcher: []string{"/proc/self/exe", "-test.run=^TestLauncher$", "--"}, Program: swtpm, UID: nobody, GID: nobody}
}

func newTPM(t *testing.T) TPM {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o711); err != nil { // for QEMU's user
			t.Fatal(err)
		}
	}
	return TPM{State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "tpm"), Group: "/the/group"}
}

// processOf finds a TPM's process by the folder that it was given; nil if there is none.
func processOf(t *testing.T, tpm TPM) os.FileInfo {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		text, err := os.ReadFile(line)
		if err != nil || !strings.HasPrefix(string(text), program+"\x00") || !strings.Contains(string(text), "dir="+tpm.State+",") {
			continue
		}
		info, err := os.Stat(filepath.Dir(line))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	return nil
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTime)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("gave up waiting until %s", what)
		case <-tick.C:
		}
	}
}

// TestServesQEMU: a real QEMU, unprivileged, gets a TPM that remembers, and that ends
// with it.
func TestServesQEMU(t *testing.T) {
	s, tpm := server(t, program), newTPM(t)
	for range 2 { // the second finds what the first has left
		if err := s.Start(t.Context(), tpm); err != nil {
			t.Fatal(err)
		}
		process := processOf(t, tpm)
		if process == nil {
			t.Fatal("no swtpm runs")
		}
		if uid := process.Sys().(*syscall.Stat_t).Uid; uid != nobody {
			t.Errorf("swtpm runs as user %d", uid)
		}
		cmd := exec.CommandContext(t.Context(), "qemu-system-x86_64", "-S", "-nodefaults", "-no-user-config", "-display", "none",
			"-machine", "pc,accel=tcg", "-m", "32", "-qmp", "stdio",
			"-chardev", "socket,id=c,path="+tpm.Socket, "-tpmdev", "emulator,id=t,chardev=c", "-device", "tpm-crb,tpmdev=t")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		cmd.Dir = "/"
		cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}{"execute":"query-tpm"}{"execute":"quit"}`)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), `"model": "tpm-crb"`) {
			t.Errorf("QEMU, from the package qemu-system-x86: %v: %s", err, out)
		}
		eventually(t, "swtpm has ended", func() bool { return processOf(t, tpm) == nil })
		if entries, err := os.ReadDir(tpm.State); err != nil || len(entries) == 0 {
			t.Errorf("the TPM keeps %v, %v", entries, err)
		}
	}
}

func TestStartExplains(t *testing.T) {
	tpm := newTPM(t)
	err := server(t, "/no/swtpm").Start(t.Context(), tpm)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "install the Debian package swtpm") || strings.Contains(err.Error(), "\n") {
		t.Errorf("without a swtpm: %v", err)
	}
	tpm.Group = "/another"
	if err := server(t, program).Start(t.Context(), tpm); err == nil || !strings.Contains(err.Error(), `asked to join "/another"`) {
		t.Errorf("in a group that cannot be joined: %v", err)
	}
	if processOf(t, tpm) != nil {
		t.Error("a swtpm runs all the same")
	}
	if err := Run(nil, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("without arguments: %v", err)
	}
}
