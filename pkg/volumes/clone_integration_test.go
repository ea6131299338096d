//go:build integration

package volumes

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/diskusage"
)

// mountXFS mounts a new file system that can share blocks between files.
func mountXFS(t *testing.T) string {
	t.Helper()
	file, dir := filepath.Join(t.TempDir(), "xfs"), t.TempDir()
	const size = 320 * mebibyte // mkfs.xfs wants 300 at least
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.xfs", "-q", file}, {"mount", "-o", "loop", file, dir}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s (install the package xfsprogs if mkfs.xfs is missing)", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestCloneRootSharesBlocks(t *testing.T) {
	dir := mountXFS(t)
	image := bytes.Repeat([]byte("from the image.\n"), 16*mebibyte/16)
	r := Root{
		Path: filepath.Join(dir, "vm", "root.raw"), Base: filepath.Join(dir, "image"), BaseFormat: "raw",
		VirtualSize: int64(len(image)), Size: 64*mebibyte + 1, UID: 65534, GID: 65534,
	}
	if err := os.Mkdir(filepath.Dir(r.Path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.Base, image, 0o440); err != nil {
		t.Fatal(err)
	}
	write := func(at int64, text string) {
		t.Helper()
		file, err := os.OpenFile(r.Path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
		if err := file.Sync(); err != nil {
			t.Fatal(err)
		}
		file.Close()
	}
	own := func() uint64 {
		t.Helper()
		usage, err := diskusage.MeasureOwn(filepath.Dir(r.Path))
		if err != nil {
			t.Fatal(err)
		}
		return usage.Bytes
	}
	for _, want := range []string{"from", "mine"} { // again, it leaves the disk alone
		if cloned, err := CloneRoot(r); !cloned || err != nil {
			t.Fatalf("CloneRoot = %v, %v", cloned, err)
		}
		content, err := os.ReadFile(r.Path)
		if err != nil || string(content[:4]) != want || !bytes.Equal(content[4:len(image)], image[4:]) || len(content) != 64*mebibyte+sectorSize {
			t.Errorf("the disk has %d bytes and begins with %q (%v); want %q", len(content), content[:4], err, want)
		}
		write(0, "mine")
	}
	stat, err := os.Stat(r.Path)
	if err != nil {
		t.Fatal(err)
	}
	if owner, ok := stat.Sys().(*syscall.Stat_t); !ok || owner.Uid != 65534 || owner.Gid != 65534 || stat.Mode() != 0o600 {
		t.Errorf("owner and mode are %+v %v", owner, stat.Mode())
	}
	if base, err := os.ReadFile(r.Base); err != nil || !bytes.Equal(base, image) {
		t.Errorf("the image was changed (%v)", err)
	}
	if used := own(); used > mebibyte {
		t.Errorf("the disk takes %d bytes beside the image, of which the guest has written 4", used)
	}
	write(32*mebibyte, string(image[:4*mebibyte]))
	if used := own(); used < 4*mebibyte || used > 5*mebibyte {
		t.Errorf("the disk takes %d bytes, of which the guest has written 4 MiB", used)
	}
	if whole, err := diskusage.Measure(dir); err != nil || whole.Bytes < uint64(2*len(image)) {
		t.Errorf("Measure = %+v, %v; it counts shared blocks in each file", whole, err)
	}
	// The image can go; the disk stays whole.
	if err := os.Remove(r.Base); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(r.Path); err != nil || !bytes.Equal(content[4:len(image)], image[4:]) {
		t.Errorf("without the image the disk is damaged (%v)", err)
	}
	r.Size += mebibyte
	if _, err := CloneRoot(r); !errdefs.IsAlreadyExists(err) {
		t.Errorf("another size: %v", err)
	}
}
