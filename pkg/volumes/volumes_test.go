package volumes

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const baseSize = 8 << 20

// base makes an image to build on.
func base(t *testing.T, format string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "base")
	if err := qemuImg(t.Context(), "create", "-q", "-f", format, path, "8M"); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCreateRoot(t *testing.T) {
	for _, c := range []struct {
		name, format string
		size, want   int64
	}{
		{"as large as the image", "qcow2", 0, baseSize},
		{"grown", "qcow2", 3 * baseSize, 3 * baseSize},
		{"over a raw image", "raw", baseSize, baseSize},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := base(t, c.format)
			path := filepath.Join(t.TempDir(), "root.qcow2")
			root := Root{Path: path, Base: image, BaseFormat: c.format, VirtualSize: baseSize, Size: c.size, UID: os.Getuid(), GID: os.Getgid()}
			for range 2 { // a half-done creation is begun again
				if err := CreateRoot(t.Context(), root); err != nil {
					t.Fatal(err)
				}
			}
			out, err := exec.CommandContext(t.Context(), "qemu-img", "info", "--output=json", path).Output()
			if err != nil {
				t.Fatal(err)
			}
			var info struct {
				Format       string `json:"format"`
				Size         int64  `json:"virtual-size"`
				Backing      string `json:"full-backing-filename"`
				BackedFormat string `json:"backing-filename-format"`
			}
			if err := json.Unmarshal(out, &info); err != nil {
				t.Fatal(err)
			}
			if info.Format != "qcow2" || info.Size != c.want || info.Backing != image || info.BackedFormat != c.format {
				t.Errorf("disk is %+v", info)
			}
			stat, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if stat.Mode().Perm() != modeDisk {
				t.Errorf("mode is %v", stat.Mode().Perm())
			}
		})
	}
}

func TestCreateRootRefuses(t *testing.T) {
	dir := t.TempDir()
	root := Root{Path: filepath.Join(dir, "root.qcow2"), Base: base(t, "qcow2"), BaseFormat: "qcow2", VirtualSize: baseSize, UID: os.Getuid(), GID: os.Getgid()}

	small := root
	small.Size = baseSize - 1
	if err := CreateRoot(t.Context(), small); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a disk smaller than its image: %v", err)
	}
	absent := root
	absent.Base = filepath.Join(dir, "nope")
	if err := CreateRoot(t.Context(), absent); err == nil || !strings.Contains(err.Error(), "nope") {
		t.Errorf("an image that is not there: %v", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDiskUsage(t *testing.T) {
	dir := t.TempDir()
	empty, err := DiskUsage(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "full"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if err := sparse.Truncate(1 << 40); err != nil {
		t.Fatal(err)
	}
	if err := sparse.Close(); err != nil {
		t.Fatal(err)
	}
	usage, err := DiskUsage(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := usage.Bytes - empty.Bytes; got < 1<<20 || got > 2<<20 {
		t.Errorf("1 MiB of data and a hole of 1 TiB count as %d bytes", got)
	}
	if usage.Inodes != 3 {
		t.Errorf("folder and two files count as %d inodes", usage.Inodes)
	}
	if gone, err := DiskUsage(filepath.Join(dir, "nope")); err != nil || gone != (Usage{}) {
		t.Errorf("a folder that is not there: %+v, %v", gone, err)
	}
}
