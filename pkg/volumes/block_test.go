package volumes

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func TestBlockDeviceRefuses(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, os.DevNull, t.TempDir()} {
		if node, err := BlockDevice(path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("BlockDevice(%s) = %s, %v", path, node, err)
		}
	}
	if node, err := BlockDevice("/nonexistent"); !errdefs.IsNotFound(err) {
		t.Errorf("BlockDevice of nothing = %s, %v", node, err)
	}
}
