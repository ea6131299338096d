package volumes

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestOverlaysSatisfyQEMU has QEMU check overlays of many sizes, and use them up to
// their last byte.
func TestOverlaysSatisfyQEMU(t *testing.T) {
	const gibibyte = 1 << 30
	for _, size := range []int64{
		3 * mebibyte, l1EntryCovers, l1EntryCovers + sectorSize, 100 * gibibyte,
		clusterSize / l1EntrySize * l1EntryCovers, clusterSize/l1EntrySize*l1EntryCovers + sectorSize, // 1 and 2 clusters of L1
		64 << 40,
	} {
		for _, format := range baseFormats {
			t.Run(fmt.Sprintf("%d over %s", size, format), func(t *testing.T) {
				t.Parallel()
				r := newBase(t, format)
				r.Size = size
				if err := CreateRoot(t.Context(), r); err != nil {
					t.Fatal(err)
				}
				got, err := readInfo(t.Context(), r.Path)
				if want := (info{VirtualSize: size, Base: r.Base, BaseFormat: format}); err != nil || got != want {
					t.Errorf("the disk is %+v, %v; want %+v", got, err, want)
				}
				run(t, "check", "-q", "-f", "qcow2", r.Path)
				const part = 64 << 10
				last, beyond := size-part, int64(3*mebibyte-part)
				for _, do := range []string{
					fmt.Sprintf("read -P 0 %d %d", beyond, part), // of the image
					fmt.Sprintf("read -P 0 %d %d", last, part),   // of nothing
					fmt.Sprintf("write -P 0x67 %d %d", last, part),
					fmt.Sprintf("read -P 0x67 %d %d", last, part),
				} {
					if out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "qcow2", "-c", do, r.Path).CombinedOutput(); err != nil || strings.Contains(string(out), "failed") {
						t.Errorf("qemu-io %s: %v: %s", do, err, out)
					}
				}
				run(t, "check", "-q", "-f", "qcow2", r.Path)
			})
		}
	}
}

func TestOverlaysThatDoNotFit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := writeOverlay(path, "/"+strings.Repeat("x", maxBackingName), "raw", mebibyte); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a long name of the image: %v", err)
	}
	if err := writeOverlay(path, "/image", "raw", maxL1Size/l1EntrySize*l1EntryCovers+1); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an endless disk: %v", err)
	}
}
