//go:build integration

package main

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ambipod/ambipod/pkg/network/fdproto"
	"github.com/ambipod/ambipod/pkg/network/fdserver"
	"github.com/ambipod/ambipod/pkg/network/netns"
	"github.com/ambipod/ambipod/pkg/network/tap"
	"github.com/ambipod/ambipod/pkg/vmwrapper"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// qemuUID is any user but root; QEMU needs no more.
const qemuUID = 65534

const timeout = 2 * time.Minute

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// passableDir is a temporary folder that other users can pass through.
func passableDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		must(t, os.Chmod(d, 0o711)) // for QEMU's user
	}
	return dir
}

func buildWrapper(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "vmwrapper")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// serve runs a descriptor server whose grant for key leads to a tap in a
// namespace of its own.
func serve(t *testing.T, o fdserver.Options, key string, admitted chan<- int) {
	t.Helper()
	ns := filepath.Join(t.TempDir(), "ns")
	must(t, netns.Create(ns))
	t.Cleanup(func() { must(t, netns.Remove(ns)) })
	must(t, netns.Do(ns, func() error { return tap.Create("tap0", true) }))
	o.Logger = slog.New(slog.DiscardHandler)
	s, err := fdserver.Listen(t.Context(), o)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() { cancel(); must(t, <-done) })
	s.Grant(key, fdserver.Grant{
		NICs:  []fdproto.NIC{{MAC: "02:00:00:00:00:01", MTU: 1450}},
		Admit: func(pid int) error { admitted <- pid; return nil },
		Taps: func(context.Context) (taps [][]*os.File, err error) {
			err = netns.Do(ns, func() error {
				files, err := tap.Open("tap0", true, 2)
				taps = [][]*os.File{files}
				return err
			})
			return taps, err
		},
	})
}

// command starts the wrapper as libvirt does: as QEMU's user, with nothing but
// the environment of the domain.
func command(ctx context.Context, wrapper string, env []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, wrapper, args...)
	cmd.Env = append([]string{"PATH=/usr/bin:/bin", "LC_ALL=C"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: qemuUID, Gid: qemuUID}}
	cmd.Dir = "/"
	return cmd
}

// TestBecomesQEMU: real QEMU, unprivileged, takes the network card and the tap.
func TestBecomesQEMU(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a network namespace: run it as root")
	}
	if _, err := os.Stat(vmwrapper.DefaultEmulator); err != nil {
		t.Fatalf("install the Debian package qemu-system-x86: %v", err)
	}
	dir := passableDir(t)
	wrapper := buildWrapper(t, dir)
	key, admitted := fdserver.NewKey(), make(chan int, 1)
	socket := filepath.Join(dir, "fd.sock")
	serve(t, fdserver.Options{Socket: socket, UID: qemuUID, GID: qemuUID, Executable: wrapper, VHostDevice: "/dev/vhost-net"}, key, admitted)

	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	env := []string{vmwrapper.EnvSocket + "=" + socket, vmwrapper.EnvKey + "=" + key}
	args := []string{"-S", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc,accel=tcg", "-m", "32", "-qmp", "stdio"}
	cmd := command(ctx, wrapper, env, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if pid := <-admitted; pid != cmd.Process.Pid {
		t.Errorf("admitted process %d, QEMU is %d", pid, cmd.Process.Pid)
	}
	for _, c := range []string{`"qmp_capabilities"`, `"query-rx-filter"`, `"query-pci"`, `"human-monitor-command","arguments":{"command-line":"info network"}`, `"quit"`} {
		_, err := stdin.Write([]byte(`{"execute":` + c + `}`))
		must(t, err)
	}
	var replies strings.Builder
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		replies.WriteString(lines.Text() + "\n")
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("QEMU: %v\n%s", err, stderr.String())
	}
	for _, want := range []string{`"main-mac": "02:00:00:00:00:01"`, `"slot": 16`, `"qdev_id": "ambipod-nic0"`, `ambipod-net0: index=1,type=tap`} {
		if !strings.Contains(replies.String(), want) {
			t.Errorf("QEMU does not say %s:\n%s\n%s", want, replies.String(), stderr.String())
		}
	}

	// The key is used up: whoever read it from the environment gets nothing.
	out, err := command(ctx, wrapper, env, args...).CombinedOutput()
	if err == nil || !strings.HasPrefix(string(out), "vmwrapper: vmruntime refused the network descriptors: the key is unknown, revoked or already used") ||
		strings.Count(string(out), "\n") != 1 {
		t.Errorf("second use: %v, %q", err, out)
	}
}

// TestProbe: without a key it is QEMU itself.
func TestProbe(t *testing.T) {
	wrapper := buildWrapper(t, passableDir(t))
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	got, err := command(ctx, wrapper, nil, "-version").Output()
	must(t, err)
	want, err := exec.CommandContext(ctx, vmwrapper.DefaultEmulator, "-version").Output()
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestStaysSmall: it is started with every VM, in libvirtd's mount namespace,
// whatever libraries are there.
func TestStaysSmall(t *testing.T) {
	f, err := elf.Open(buildWrapper(t, t.TempDir()))
	must(t, err)
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the program is not static")
		}
	}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Standard", ".").Output()
	must(t, err)
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var p struct {
			ImportPath string
			Standard   bool
		}
		must(t, d.Decode(&p))
		switch {
		case p.Standard, strings.HasSuffix(p.ImportPath, "/cmd/vmwrapper"),
			strings.HasSuffix(p.ImportPath, "/pkg/vmwrapper"), strings.HasSuffix(p.ImportPath, "/pkg/network/fdproto"):
		default:
			t.Errorf("imports %s", p.ImportPath)
		}
	}
}
