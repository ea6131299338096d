package volumes

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/ambipod/ambipod/pkg/diskusage"
)

func newBlank(t *testing.T, format, fileSystem string) Blank {
	t.Helper()
	return Blank{
		Path: filepath.Join(t.TempDir(), "disk"), Format: format, Size: 16*mebibyte + 1, FileSystem: fileSystem,
		UID: os.Getuid(), GID: os.Getgid(),
	}
}

// contentOf is what a guest reads from a disk.
func contentOf(t *testing.T, b Blank) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	run(t, "convert", "-f", b.Format, "-O", "raw", b.Path, raw)
	content, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestCreateBlank(t *testing.T) {
	for _, format := range baseFormats {
		for _, fileSystem := range []string{"", "ext4"} {
			t.Run(format+" "+fileSystem, func(t *testing.T) {
				b := newBlank(t, format, fileSystem)
				for range 2 { // again, it changes nothing
					if err := CreateBlank(t.Context(), b); err != nil {
						t.Fatal(err)
					}
				}
				content := contentOf(t, b)
				if len(content) != 16*mebibyte+512 {
					t.Errorf("the guest sees %d bytes", len(content))
				}
				if empty := len(bytes.Trim(content, "\x00")) == 0; empty != (fileSystem == "") {
					t.Errorf("the disk is empty: %t", empty)
				}
				if fileSystem != "" {
					checkFileSystem(t, content)
				}
				usage, err := diskusage.Measure(b.Path)
				if err != nil || usage.Bytes > 4*mebibyte {
					t.Errorf("an empty disk takes %d bytes, %v", usage.Bytes, err)
				}
				files, err := os.ReadDir(filepath.Dir(b.Path))
				if info, statErr := os.Stat(b.Path); err != nil || statErr != nil || len(files) != 1 || info.Mode() != 0o600 {
					t.Errorf("want the disk alone with mode 0600, got %v %v %v %v", files, info, err, statErr)
				}
			})
		}
	}
}

// checkFileSystem has e2fsck look for the least error.
func checkFileSystem(t *testing.T, content []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "fs")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "e2fsck", "-f", "-n", file).CombinedOutput(); err != nil {
		t.Errorf("e2fsck, of the package e2fsprogs: %v: %s", err, out)
	}
}

func TestCreateBlankKeepsData(t *testing.T) {
	b := newBlank(t, "qcow2", "ext4")
	if err := CreateBlank(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "qcow2", "-c", "write -P 0x67 0 512", b.Path).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-io: %v: %s", err, out)
	}
	if err := CreateBlank(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if content := contentOf(t, b); !bytes.HasPrefix(content, []byte("gggg")) {
		t.Errorf("the disk begins with %q", content[:4])
	}
}

func TestCreateBlankAfterACrash(t *testing.T) {
	b := newBlank(t, "qcow2", "ext4")
	for _, left := range []string{unfinished(b.Path), plain(unfinished(b.Path))} {
		if err := os.WriteFile(left, []byte("half of it"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := CreateBlank(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(filepath.Dir(b.Path)); err != nil || len(files) != 1 {
		t.Errorf("something was left: %v, %v", files, err)
	}
}

func TestCreateBlankRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*testing.T, *Blank)
		is     func(error) bool
	}{
		"a relative path":         {func(_ *testing.T, b *Blank) { b.Path = "nbd:host" }, errdefs.IsInvalidArgument},
		"another format":          {func(_ *testing.T, b *Blank) { b.Format = "vmdk" }, errdefs.IsInvalidArgument},
		"another file system":     {func(_ *testing.T, b *Blank) { b.FileSystem = "ext4 -E root_owner" }, errdefs.IsInvalidArgument},
		"no size":                 {func(_ *testing.T, b *Blank) { b.Size = 0 }, errdefs.IsInvalidArgument},
		"no room for the journal": {func(_ *testing.T, b *Blank) { b.Size, b.FileSystem = 512, "ext4" }, func(err error) bool { return err != nil }},
		"a folder in its place":   {func(t *testing.T, b *Blank) { mkdir(t, b.Path) }, errdefs.IsAlreadyExists},
		"another size": {func(t *testing.T, b *Blank) {
			if err := CreateBlank(t.Context(), *b); err != nil {
				t.Fatal(err)
			}
			b.Size *= 2
		}, errdefs.IsAlreadyExists},
	} {
		for _, format := range baseFormats {
			t.Run(name+", "+format, func(t *testing.T) {
				b := newBlank(t, format, "")
				dir := filepath.Dir(b.Path)
				test.change(t, &b)
				before, err := os.ReadDir(dir)
				if err != nil {
					t.Fatal(err)
				}
				if err := CreateBlank(t.Context(), b); !test.is(err) {
					t.Errorf("got %v", err)
				}
				if after, err := os.ReadDir(dir); err != nil || len(after) != len(before) {
					t.Errorf("something was left: %v, %v", after, err)
				}
			})
		}
	}
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestCreateBlankOverAnImage(t *testing.T) {
	root := newBase(t, "qcow2")
	if err := CreateRoot(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	b := Blank{Path: root.Path, Format: "qcow2", Size: root.VirtualSize}
	if err := CreateBlank(t.Context(), b); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a disk over an image was taken for an empty one: %v", err)
	}
}

func TestCreateBlankInterrupted(t *testing.T) {
	b := newBlank(t, "qcow2", "ext4")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := CreateBlank(ctx, b); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was cancelled", err)
	}
	b = newBlank(t, "raw", "ext4")
	t.Setenv("PATH", t.TempDir())
	if err := CreateBlank(t.Context(), b); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "install the package e2fsprogs") {
		t.Errorf("got %v, want advice", err)
	}
}

func TestOpenDisk(t *testing.T) {
	dir := t.TempDir()
	disk, link, pipe := filepath.Join(dir, "disk"), filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Symlink(disk, link), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	file, err := OpenDisk(disk)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString("x"); err != nil {
		t.Error(err)
	}
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	for _, wrong := range []string{link, pipe} {
		if _, err := OpenDisk(wrong); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s was taken for a disk: %v", wrong, err)
		}
	}
	if _, err := OpenDisk(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v for a disk that does not exist", err)
	}
}
