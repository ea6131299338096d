package volumes

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mebibyte = 1 << 20

// newBase makes an image that holds text at its start.
func newBase(t *testing.T, format string) Root {
	t.Helper()
	dir := t.TempDir()
	raw, base := filepath.Join(dir, "raw"), filepath.Join(dir, "image")
	content := make([]byte, 3*mebibyte)
	copy(content, "from the image")
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "convert", "-f", "raw", "-O", format, raw, base)
	return Root{
		Path: filepath.Join(dir, "root.qcow2"), Base: base, BaseFormat: format,
		VirtualSize: 3 * mebibyte, UID: os.Getuid(), GID: os.Getgid(),
	}
}

// run runs the real qemu-img, which these tests need.
func run(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %s: %v: %s (install the package qemu-utils if it is missing)", strings.Join(args, " "), err, out)
	}
}

func TestCreateRoot(t *testing.T) {
	for _, format := range baseFormats {
		for name, test := range map[string]struct{ size, want int64 }{
			"size of the image": {0, 3 * mebibyte},
			"same size":         {3 * mebibyte, 3 * mebibyte},
			"grown":             {5*mebibyte + 1, 5*mebibyte + 512},
		} {
			t.Run(format+", "+name, func(t *testing.T) {
				r := newBase(t, format)
				r.Size = test.size
				for range 2 { // again, it changes nothing
					if err := CreateRoot(t.Context(), r); err != nil {
						t.Fatal(err)
					}
				}
				got, err := readInfo(t.Context(), r.Path)
				if err != nil {
					t.Fatal(err)
				}
				if want := (info{VirtualSize: test.want, Base: r.Base, BaseFormat: format}); got != want {
					t.Errorf("the disk is %+v, want %+v", got, want)
				}
				assertOwner(t, r)
				assertContent(t, r.Path, "from the image")
			})
		}
	}
}

func assertOwner(t *testing.T, r Root) {
	t.Helper()
	stat, err := os.Stat(r.Path)
	if err != nil {
		t.Fatal(err)
	}
	owner, ok := stat.Sys().(*syscall.Stat_t)
	if !ok || int(owner.Uid) != r.UID || int(owner.Gid) != r.GID || stat.Mode() != 0o600 {
		t.Errorf("owner and mode are %+v %v", owner, stat.Mode())
	}
	if entries, err := os.ReadDir(filepath.Dir(r.Path)); err != nil || len(entries) != 3 {
		t.Errorf("want raw, image and root.qcow2, got %v (%v)", entries, err)
	}
}

func assertContent(t *testing.T, disk, want string) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	run(t, "convert", "-f", "qcow2", "-O", "raw", disk, raw)
	content, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(content[:len(want)]); got != want {
		t.Errorf("the disk begins with %q, want %q", got, want)
	}
}

// A guest's data survive when creation is repeated after a crash.
func TestCreateRootKeepsData(t *testing.T) {
	r := newBase(t, "qcow2")
	if err := CreateRoot(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "qcow2", "-c", "write -P 0x67 0 64k", r.Path).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-io: %v: %s", err, out)
	}
	if err := CreateRoot(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	assertContent(t, r.Path, "gggg")
}

func TestCreateRootOfAnother(t *testing.T) {
	r := newBase(t, "qcow2")
	if err := CreateRoot(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	larger, other := r, r
	larger.Size = 4 * mebibyte
	other.Base = r.Base + "-2"
	for _, wrong := range []Root{larger, other} {
		if err := CreateRoot(t.Context(), wrong); !errdefs.IsAlreadyExists(err) {
			t.Errorf("got error %v, want that it exists", err)
		}
	}
	if err := os.WriteFile(r.Path, []byte("no disk at all"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CreateRoot(t.Context(), r); err == nil {
		t.Error("a file that is no disk was accepted")
	}
}

func TestCreateRootRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Root)
		is     func(error) bool
	}{
		"smaller than the image": {func(r *Root) { r.Size = r.VirtualSize - 1 }, errdefs.IsInvalidArgument},
		"no size of the image":   {func(r *Root) { r.VirtualSize = 0 }, errdefs.IsInvalidArgument},
		"format not stated":      {func(r *Root) { r.BaseFormat = "" }, errdefs.IsInvalidArgument},
		"format not kept":        {func(r *Root) { r.BaseFormat = "vmdk" }, errdefs.IsInvalidArgument},
		"relative base":          {func(r *Root) { r.Base = "nbd:host:1" }, errdefs.IsInvalidArgument},
		"relative path":          {func(r *Root) { r.Path = "root.qcow2" }, errdefs.IsInvalidArgument},
		"base is missing":        {func(r *Root) { r.Base += ".absent" }, errdefs.IsNotFound},
		"no folder":              {func(r *Root) { r.Path = filepath.Join(r.Path, "x", "y") }, func(err error) bool { return err != nil }},
		"base is not qcow2":      {func(r *Root) { r.Base = filepath.Join(filepath.Dir(r.Base), "raw") }, func(err error) bool { return err != nil }},
	} {
		t.Run(name, func(t *testing.T) {
			r := newBase(t, "qcow2")
			dir := filepath.Dir(r.Path)
			test.change(&r)
			if err := CreateRoot(t.Context(), r); !test.is(err) {
				t.Errorf("got error %v", err)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
				t.Errorf("something was left behind: %v (%v)", entries, err)
			}
		})
	}
}

func TestCreateRootCancelled(t *testing.T) {
	r := newBase(t, "qcow2")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := CreateRoot(ctx, r); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want that it was cancelled", err)
	}
}

// Only looking at a disk that is there already takes qemu-img.
func TestCreateRootWithoutQEMU(t *testing.T) {
	r := newBase(t, "qcow2")
	t.Setenv("PATH", t.TempDir())
	if err := CreateRoot(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	err := CreateRoot(t.Context(), r)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "install the package qemu-utils") {
		t.Errorf("got error %v, want advice", err)
	}
}

func TestRemove(t *testing.T) {
	r := newBase(t, "qcow2")
	if err := CreateRoot(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(unfinished(r.Path), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Remove(r.Path); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(r.Path)); err != nil || len(entries) != 2 {
		t.Errorf("want raw and image alone, got %v (%v)", entries, err)
	}
}
