//go:build integration

// Package containers_test builds the container images and looks into them.
package containers_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// build runs the recipe and reads the archive that it makes.
func build(t *testing.T, name string) v1.Image {
	t.Helper()
	archive := filepath.Join(t.TempDir(), name+".tar")
	if out, err := exec.CommandContext(t.Context(), "./build.sh", name, archive).CombinedOutput(); err != nil {
		t.Fatalf("build.sh %s: %v: %s", name, err, out)
	}
	image, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(image); err != nil {
		t.Fatal(err)
	}
	return image
}

// files lists an image's files, with the targets of links.
func files(t *testing.T, image v1.Image) map[string]string {
	t.Helper()
	layers := mutate.Extract(image)
	defer layers.Close()
	names := map[string]string{}
	for archive := tar.NewReader(layers); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Uid != 0 || header.Gid != 0 {
			t.Errorf("%s belongs to %d:%d", header.Name, header.Uid, header.Gid)
		}
		names[strings.TrimPrefix(header.Name, "./")] = header.Linkname
	}
}

func assertCommand(t *testing.T, image v1.Image, want string) {
	t.Helper()
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(config.Config.Cmd, " "); got != want {
		t.Errorf("the default command is %q, want %q", got, want)
	}
}

func TestBusybox(t *testing.T) {
	image := build(t, "busybox")
	assertCommand(t, image, "/bin/sh")
	names := files(t, image)
	for _, applet := range []string{"sh", "wget", "sleep", "httpd", "nc"} {
		if names["bin/"+applet] != "busybox" {
			t.Errorf("bin/%s is a link to %q, want busybox", applet, names["bin/"+applet])
		}
	}
	again, err := build(t, "busybox").Digest()
	if err != nil {
		t.Fatal(err)
	}
	if first, err := image.Digest(); err != nil || first != again {
		t.Errorf("two builds differ: %v and %v (%v)", first, again, err)
	}
}

func TestPause(t *testing.T) {
	image := build(t, "pause")
	assertCommand(t, image, "/pause")
	if _, ok := files(t, image)["pause"]; !ok {
		t.Error("the program is missing")
	}
}

// As the first process of a namespace, pause reaps orphans and ends when told to.
func TestPauseReaps(t *testing.T) {
	program := buildPause(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pause := exec.CommandContext(ctx, program)
	pause.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if err := pause.Start(); err != nil {
		t.Fatalf("start pause in a PID namespace (root is needed): %v", err)
	}
	pid := pause.Process.Pid
	// The shell ends at once and leaves pause its child, which ends with its input.
	input, end, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	orphan := exec.CommandContext(ctx, "nsenter", "--target", fmt.Sprint(pid), "--pid",
		"sh", "-c", "cat <&3 >/dev/null 2>&1 & :")
	orphan.ExtraFiles = []*os.File{input}
	if out, err := orphan.CombinedOutput(); err != nil {
		t.Fatalf("leave an orphan: %v: %s", err, out)
	}
	if children(t, pid) == "" {
		t.Error("pause has adopted no orphan")
	}
	for _, file := range []*os.File{input, end} {
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
	reapsAndEnds(ctx, t, pause)
}

// pauseAfterChild, in the environment, is the program that TestBecomePause becomes.
const pauseAfterChild = "AMBIPOD_PAUSE_AFTER_CHILD"

// A child that ends before pause listens is reaped, too.
func TestPauseReapsAtItsStart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	program := buildPause(t)
	pause := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestBecomePause$")
	pause.Env = append(os.Environ(), pauseAfterChild+"="+program)
	if err := pause.Start(); err != nil {
		t.Fatal(err)
	}
	for running := ""; running != program; {
		var err error
		if running, err = os.Readlink(fmt.Sprintf("/proc/%d/exe", pause.Process.Pid)); err != nil || ctx.Err() != nil {
			t.Fatalf("the process does not become pause: %v, %v", err, ctx.Err())
		}
	}
	reapsAndEnds(ctx, t, pause)
}

// TestBecomePause makes its process pause, with a child that has ended already.
func TestBecomePause(t *testing.T) {
	program := os.Getenv(pauseAfterChild)
	if program == "" {
		return // TestPauseReapsAtItsStart runs it
	}
	child := exec.CommandContext(t.Context(), "true")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, child.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	t.Fatal(syscall.Exec(program, []string{program}, os.Environ()))
}

func buildPause(t *testing.T) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "pause")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./pause").CombinedOutput(); err != nil {
		t.Fatalf("build pause: %v: %s", err, out)
	}
	return program
}

// reapsAndEnds waits until a running pause has no children, and has it end.
func reapsAndEnds(ctx context.Context, t *testing.T, pause *exec.Cmd) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for adopted := children(t, pause.Process.Pid); adopted != ""; adopted = children(t, pause.Process.Pid) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("pause does not reap %s", adopted)
		}
	}
	if err := pause.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := pause.Wait(); err != nil {
		t.Errorf("pause ended with %v", err)
	}
}

func children(t *testing.T, pid int) string {
	t.Helper()
	var all string
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(lists) == 0 {
		t.Fatalf("pause has no threads (%v)", err)
	}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		all += string(text)
	}
	return all
}
