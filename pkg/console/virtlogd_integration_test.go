//go:build integration

package console

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/tests/libvirtd"
)

// A real guest prints as fast as it can, the real virtlogd writes and rotates, and
// Followers come and go: the log has each line once, in order, to the last one.
func TestFollowsVirtlogd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("/var/tmp", "con") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, err := range []error{os.Chmod(dir, 0o711), os.Mkdir(filepath.Join(dir, "pod"), 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	client, id := startCounter(ctx, t, dir)

	var warnings logged
	w := newTestWatcher(t)
	o := testOptions(dir, warnings.logger())
	rotated := func() bool { _, err := os.Stat(o.Console + ".0"); return err == nil }
	var f *Follower
	for restarts := 0; ; restarts++ {
		if f, err = Start(w, o); err != nil {
			t.Fatal(err)
		}
		if restarts >= 5 && rotated() {
			break
		}
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("virtlogd did not rotate the console")
		}
		stop(t, f)
	}
	if err := client.Destroy(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := f.Finish(ctx); err != nil {
		t.Fatal(err)
	}

	raw, err := os.ReadFile(o.Log)
	if err != nil {
		t.Fatal(err)
	}
	got := decode(t, raw)
	if diff := cmp.Diff(printed(t, o.Console), got); diff != "" {
		t.Errorf("the log is not what virtlogd wrote (-virtlogd +log):\n%.2000s", diff)
	}
	lines := strings.Split(got, "\n")
	for n, line := range lines[:len(lines)-1] { // the last may be cut off
		if want := fmt.Sprintf("%08d", n); line != want {
			t.Fatalf("line %d is %q", n, line)
		}
	}
	if warnings.Len() > 0 {
		t.Errorf("warned: %s", warnings.String())
	}
}

// printed is all that virtlogd has kept. A VM that was switched off between a line's
// carriage return and its newline leaves a return that is no text.
func printed(t *testing.T, console string) string {
	t.Helper()
	var all []byte
	for _, name := range []string{".2", ".1", ".0", ""} {
		text, err := os.ReadFile(console + name)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		all = append(all, text...)
	}
	return strings.TrimRight(plain(all), "\r")
}

// startCounter boots testdata/counter.S under a private libvirtd.
func startCounter(ctx context.Context, t *testing.T, dir string) (*libvirttools.Client, string) {
	t.Helper()
	disk := assemble(ctx, t, dir)
	daemon, err := libvirtd.Start(ctx, libvirtd.Options{Dir: filepath.Join(dir, "l")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cleanUp(context.WithoutCancel(ctx), t, daemon.Stop) })
	client := libvirttools.NewClient(libvirttools.Options{URI: daemon.URI, Owner: dir, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { client.Close() })
	id := uuid.NewString()
	xml, err := libvirttools.BuildXML(libvirttools.Domain{
		UUID: id, Name: "test-" + id, Owner: dir,
		SandboxID: strings.Repeat("a1", 32), ContainerID: strings.ReplaceAll(id+id, "-", ""),
		MemoryBytes: 32 << 20, VCPUs: 1, Accel: libvirttools.AccelTCG, Emulator: "/usr/bin/qemu-system-x86_64",
		Disks:       []libvirttools.Disk{{Path: disk, Format: libvirttools.FormatRaw}},
		Console:     libvirttools.Console{Socket: filepath.Join(dir, "con.sock"), Log: filepath.Join(dir, "console.log")},
		AgentSocket: filepath.Join(dir, "agent.sock"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Define(ctx, xml); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cleanUp(context.WithoutCancel(ctx), t, func(ctx context.Context) error { return client.Destroy(ctx, id) })
	})
	if err := client.Start(ctx, id); err != nil {
		t.Fatal(err)
	}
	return client, id
}

func cleanUp(ctx context.Context, t *testing.T, act func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := act(ctx); err != nil {
		t.Error(err)
	}
}

// assemble makes a disk of testdata/counter.S.
func assemble(ctx context.Context, t *testing.T, dir string) string {
	t.Helper()
	object, disk := filepath.Join(dir, "counter.o"), filepath.Join(dir, "disk")
	for _, argv := range [][]string{
		{"as", "--32", "-o", object, "testdata/counter.S"},
		{"ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", disk, object},
	} {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s (install binutils if it is missing)", argv[0], err, out)
		}
	}
	if err := os.Truncate(disk, 1<<20); err != nil {
		t.Fatal(err)
	}
	return disk
}
